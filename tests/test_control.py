"""The control socket: who reaches it, what goes over it, and how either end hears of the other's
end.
"""

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import structlog
from aiohttp import web

from mirror.control import client, server
from mirror.control.client import NobodyThere, ask
from mirror.control.server import ControlServer
from mirror.errors import StorageFailed
from mirror.upkeep.keeper import Keeper
from mirror.upkeep.lines import Line, Lines, Refused, item, result
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.registry import FakeRegistry
from tests.support.commands import Told, pull, told
from tests.support.house import mirroring
from tests.support.layers import some_bytes

HUB = "docker.io"
Work = Callable[[], Lines]


class OneCommand:
    """A keeper that knows one."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def run(self, _command: str, _arguments: object) -> Lines:
        return self._work()


@asynccontextmanager
async def controlled(folder: Path, work: Work) -> AsyncIterator[ControlServer]:
    control = ControlServer(cast(Keeper, OneCommand(work)), folder / "control.sock")
    await control.open()
    try:
        yield control
    finally:
        await control.aclose()


@asynccontextmanager
async def another_mirror(
    folder: Path, handle: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "control.sock")).start()
    try:
        yield
    finally:
        await runner.cleanup()


# --- The file -------------------------------------------------------------------------------------


async def test_only_who_runs_the_mirror_reaches_it(registry: FakeRegistry, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {HUB: registry}) as house:
        found = (house.storage / "control.sock").stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert (await house.get("/1/ls")).status == 404, "it is not there for clients"
    assert not (house.storage / "control.sock").exists()


async def test_what_a_killed_mirror_left_is_replaced(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "data" / "control.sock"))
    with pytest.raises(NobodyThere):
        await told(tmp_path / "data", "ls")
    async with mirroring(tmp_path, {HUB: registry}) as house:
        assert (await told(house.storage, "ls")).result["images"] == 0


async def test_a_path_that_is_too_long_for_a_socket_is_none(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    async with mirroring(folder, {HUB: registry}) as house:
        assert (await told(house.storage, "ls")).result["images"] == 0
    with pytest.raises(NobodyThere):
        await told(house.storage, "ls")


@pytest.mark.parametrize("error", [None, OSError(30, "Read-only file system")])
async def test_without_a_socket_it_serves_all_the_same(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError | None,
) -> None:
    (tmp_path / "data").mkdir()
    in_the_way = tmp_path / "data" / "control.sock"
    in_the_way.write_text("the operator's own")
    if error is not None:

        def listening(_path: Path) -> socket.socket:
            raise error

        monkeypatch.setattr(server, "listening", listening)
    with structlog.testing.capture_logs() as logs:
        async with mirroring(tmp_path, {HUB: registry}) as house:
            assert (await house.get("/readyz")).status == 200
    assert [line["event"][:17] for line in logs if line["log_level"] == "warning"] == [
        "no control socket"
    ]
    assert in_the_way.read_text() == "the operator's own"


# --- What goes over it ----------------------------------------------------------------------------


async def one_item() -> Lines:
    yield item(name="one")
    yield result(count=1)


async def test_lines_come_as_they_are_made(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow() -> Lines:
        yield item(name="one")
        await gate.wait()
        yield result(count=1)

    async with controlled(tmp_path, slow):
        seen: list[Line] = []
        async for line in ask(tmp_path / "control.sock", "ls", {}):
            seen.append(line)
            gate.set()
    assert seen == [item(name="one"), result(count=1)]


async def test_silence_is_told_from_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(client, "SILENCE_SECONDS", 2)

    async def slow() -> Lines:
        await asyncio.sleep(3)
        yield result(count=1)

    async with controlled(tmp_path, slow):
        assert (await told(tmp_path, "ls")).result == {"count": 1}
    monkeypatch.setattr(client, "SILENCE_SECONDS", 0.25)
    hung = asyncio.Event()

    async def hang(_request: web.Request) -> web.StreamResponse:
        await hung.wait()
        return web.Response()

    async with another_mirror(tmp_path, hang):
        with pytest.raises(Refused, match="does not answer"):
            await told(tmp_path, "ls")
        hung.set()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Refused("no"), "no"),
        (StorageFailed("the index fails"), "the index fails"),
        (OSError(5, "Input/output error"), "this mirror's disk fails: Input/output error"),
        (RuntimeError("secret"), "this mirror failed; its log says more"),
    ],
)
async def test_why_a_command_failed_is_told(tmp_path: Path, error: Exception, message: str) -> None:
    async def fail() -> Lines:
        yield item(name="one")
        raise error

    async with controlled(tmp_path, fail):
        with pytest.raises(Refused) as refused, structlog.testing.capture_logs():
            await told(tmp_path, "ls")
    assert refused.value.message == message


async def test_another_version_is_told_by_its_name(tmp_path: Path) -> None:
    async def newer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=404, headers={"Mirror-Version": "99.1"})

    async with another_mirror(tmp_path, newer):
        with pytest.raises(Refused, match=r"is of version 99\.1"):
            await told(tmp_path, "ls")


async def test_a_refusal_by_another_version_is_one(tmp_path: Path) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        told = {"error": {"message": "no such image"}}
        return web.json_response(told, status=400, headers={"Mirror-Version": "99.1"})

    async with another_mirror(tmp_path, refuse):
        with pytest.raises(Refused, match="no such image"):
            await told(tmp_path, "ls")


async def test_a_line_may_be_long(tmp_path: Path) -> None:
    async def talk() -> Lines:
        yield item(name="x" * 1_000_000)
        yield result(count=1)

    async with controlled(tmp_path, talk):
        assert len((await told(tmp_path, "ls")).items[0]["name"]) == 1_000_000


@pytest.mark.parametrize("body", ["no JSON\n", "[]\n", '{"error": 1}\n', "", '{"item": {}}\n'])
async def test_nonsense_is_no_answer(tmp_path: Path, body: str) -> None:
    async def talk(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=body)

    async with another_mirror(tmp_path, talk):
        with pytest.raises(Refused, match=r"makes no sense|ended before"):
            await told(tmp_path, "ls")


async def test_an_odd_request_gets_an_answer(registry: FakeRegistry, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {HUB: registry}) as house:
        connector = aiohttp.UnixConnector(str(house.storage / "control.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:

            async def post(path: str, body: bytes) -> tuple[int, Any]:
                async with session.post(f"http://x{path}", data=body) as response:
                    assert response.headers["Mirror-Version"]
                    return response.status, json.loads(await response.read())["error"]["message"]

            assert (await post("/2/ls", b"{}"))[0] == 404
            for body in (b"", b"[]", b"{", b"\xff", b"1"):
                assert (await post("/1/ls", body))[0] == 400
            assert "does not know" in (await post("/1/explode", b"{}"))[1]
            assert "lacks its image" in (await post("/1/rm", b"{}"))[1]
            assert "kind" in (await post("/1/ls", b'{"pattern": 1}'))[1]
            async with session.post("http://x/1/ls", data=bytes(100_000)) as response:
                assert response.status == 413
            async with session.get("http://x/1/ls") as response:
                assert response.status == 405


# --- Either end's end -----------------------------------------------------------------------------


async def test_a_command_ends_with_its_asker(tmp_path: Path) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> Lines:
        begun.set()
        try:
            yield item(name="one")
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with controlled(tmp_path, endless):
        asking = asyncio.ensure_future(told(tmp_path, "verify"))

        async with asyncio.timeout(DEADLINE_SECONDS):
            await begun.wait()
        asking.cancel()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await ended.wait()


async def test_a_command_is_told_that_the_mirror_ends(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image("library/app", "latest", [some_bytes(2 * 1024 * 1024)])
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, image, tag="latest")
        asking = asyncio.ensure_future(
            told(house.storage, "verify", bytes_per_second=1000, refetches=False)
        )
        await asyncio.sleep(0.3)
    outcome: Told | BaseException
    (outcome,) = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(outcome, Refused)
    assert "shutting down" in outcome.message


async def test_who_may_not_reach_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    async with controlled(tmp_path, one_item):
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "create_unix_connection", refuse)
        with pytest.raises(Refused, match="as the user that runs the mirror"):
            await told(tmp_path, "ls")
    assert os.listdir(tmp_path) == []
