"""Several processes on one port and one folder."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.fakes.client import RawResponse, RawStream, raw_get, raw_open
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import Gate, WrongByte
from tests.fakes.registry import FakeRegistry
from tests.real.mirror import IMPORTABLE, SERVE
from tests.support.commands import told
from tests.support.connections import answer_of, connected
from tests.support.layers import APP, UPSTREAM, add_layer, eventually, some_bytes
from tests.support.process import Process, serving, write_settings

MANIFEST = f"/v2/{UPSTREAM}/{APP}/manifests/latest"
DATA = some_bytes(8_000_000)


@dataclass
class Mirror:
    """One of several processes; `told` is what it said as it began to serve."""

    process: Process
    told: Mapping[str, Any]

    @property
    def owner_pid(self) -> int:
        return int(self.told["owner_pid"])

    @property
    def front_pids(self) -> list[int]:
        return list(self.told["front_pids"])

    async def get(self, path: str, **options: Any) -> RawResponse:
        return await raw_get(self.process.url + path, **options)

    async def metric(self, name: str) -> float:
        page = (await self.get("/metrics")).body.decode()
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))

    async def until_told(self, event: str) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while event.encode() not in await self.process.stderr.readline():
                pass


@asynccontextmanager
async def mirror_of(
    folder: Path, registry: FakeRegistry, workers: int, **settings: Any
) -> AsyncIterator[Mirror]:
    upstreams: dict[str, FakeRegistry | str] = {UPSTREAM: registry}
    async with serving(folder, upstreams, workers=workers, **settings) as process:
        mirror = Mirror(process, process.told)
        yield mirror
        if process.process.returncode is None:
            process.send(signal.SIGTERM)
            assert await process.exit_code() == 0


@pytest.fixture
async def mirror(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[Mirror]:
    async with mirror_of(tmp_path, registry, workers=2) as mirror:
        yield mirror


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def until_ended(pids: list[int]) -> None:
    async def have_ended() -> bool:
        return not any(map(is_running, pids))

    await eventually(have_ended)


async def test_each_kind_of_answer(mirror: Mirror, registry: FakeRegistry) -> None:
    image = registry.add_image(APP, layers=[DATA, b"small"])
    large = f"/v2/{UPSTREAM}/{APP}/blobs/{image.layers[0]}"
    small = f"/v2/{UPSTREAM}/{APP}/blobs/{image.layers[1]}"
    for _ in range(3):  # by either front, first asked and then known
        assert (await mirror.get("/healthz")).body == b"alive\n"
        assert (await mirror.get("/readyz")).body == b"ready\n"
        assert (await mirror.get("/v2/")).status == 200
        manifest = await mirror.get(MANIFEST)
        assert (manifest.status, manifest.body) == (200, image.manifest)
        assert manifest.headers["Docker-Content-Digest"] == image.digest
        head = await mirror.get(MANIFEST, method="HEAD")
        assert head.headers["Content-Length"] == str(len(image.manifest))
        unchanged = await mirror.get(MANIFEST, headers={"If-None-Match": f'"{image.digest}"'})
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert (await mirror.get(large)).body == DATA
        assert (await mirror.get(small)).body == b"small"
        part = await mirror.get(large, headers={"Range": "bytes=1000-1999"})
        assert (part.status, part.body) == (206, DATA[1000:2000])
        rest = await mirror.get(large, headers={"Range": "bytes=-10"})
        assert (rest.status, rest.body) == (206, DATA[-10:])
        parts = await mirror.get(large, headers={"Range": "bytes=0-9,100-109"})
        assert (parts.status, parts.body.count(b"Content-Range: ")) == (206, 2)
        beyond = await mirror.get(large, headers={"Range": "bytes=99999999-"})
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")
        assert (await mirror.get(f"/v2/{UPSTREAM}/{APP}/tags/list")).status == 200
        assert (await mirror.get(MANIFEST + "-none")).status == 404
        assert (await mirror.get(MANIFEST, method="PUT")).status == 405
        assert (await mirror.get("/v2/evil.test/a/manifests/x?ns=evil.test")).status == 404
        for answer in (manifest, head, part, parts, beyond):
            assert not [name for name in answer.headers if name.lower().startswith("mirror-")]


SAID_FROM_OUTSIDE = [
    (b"POST /counts", b"X: y", {404, 405}),
    (b"GET /v2/", b'Mirror-Counts: 1\r\nMirror-Told: {"kind": 1}', {200}),
    (b"GET /v2/", b"Mirror-By-File: 1", {200}),
    (b"GET /v2/", b"Mirror-Line: 1\r\nConnection: upgrade\r\nUpgrade: websocket", {200}),
    (b"GET /v2/a\xff/manifests/x", b"X: y", {400, 404}),
    (b"HEAD " + MANIFEST.encode(), b"Accept: \xff", {404}),
    (b"GET http://evil.test/v2/", b"X: y", {200, 404}),
    (b"OPTIONS *", b"X: y", {404, 405}),
]


async def test_what_is_between_the_processes_cannot_be_said_from_outside(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    registry.add_image(APP)
    for line, header, statuses in SAID_FROM_OUTSIDE:
        async with connected(mirror.process.url) as (transport, wire):
            transport.write(line + b" HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
            stream = RawStream(wire, line.split()[0].decode())
            async with asyncio.timeout(DEADLINE_SECONDS):
                await stream.begin()
        assert stream.status in statuses, line
        assert not [name for name in stream.headers if name.lower().startswith("mirror-")]
    assert await mirror.metric("mirror_requests_total") == len(SAID_FROM_OUTSIDE)


@pytest.mark.parametrize("workers", [2, 4])
async def test_many_clients_of_all_fronts_share_one_download(
    registry: FakeRegistry, tmp_path: Path, workers: int
) -> None:
    gate = Gate(4_000_000)
    registry.fail(gate, kind="blob")
    path = add_layer(registry, DATA)
    async with mirror_of(tmp_path, registry, workers) as mirror, asyncio.TaskGroup() as group:
        tasks = [group.create_task(mirror.get(path)) for _ in range(24)]
        await eventually(lambda: _equals(mirror, "mirror_download_followers", 24))
        gate.open()
        bodies = {(await task).body for task in tasks}
    assert bodies == {DATA}
    assert [seen.method for seen in registry.requests if seen.kind == "blob"] == ["GET"]


async def _equals(mirror: Mirror, name: str, value: float) -> bool:
    return await mirror.metric(name) == value


async def test_a_killed_owner_costs_no_client_its_pull(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    registry.fail(Gate(5_000_000), kind="blob", times=1)
    path = add_layer(registry, DATA)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(mirror.get(path)) for _ in range(8)]
        await registry.until(lambda: any(seen.held for seen in registry.requests))
        await eventually(lambda: _equals(mirror, "mirror_download_followers", 8))
        os.kill(mirror.owner_pid, signal.SIGKILL)
        answers = [await task for task in tasks]
    assert {answer.ended for answer in answers} == {"complete"}
    assert {answer.body for answer in answers} == {DATA}
    ranges = [seen.headers.get("Range") for seen in registry.requests if seen.kind == "blob"]
    assert len(ranges) == 2
    assert int((ranges[1] or "bytes=0-")[6:].split("-")[0]) > 3_000_000


@pytest.mark.parametrize(
    ("wanted", "right"),
    [
        ("bytes=6000000-6999999", DATA[6_000_000:7_000_000]),
        ("bytes=6000000-", DATA[6_000_000:]),
        ("bytes=-2000000", DATA[-2_000_000:]),
    ],
)
async def test_a_killed_owner_costs_no_range_though_the_first_client_has_gone(
    mirror: Mirror, registry: FakeRegistry, wanted: str, right: bytes
) -> None:
    first, second = Gate(2_000_000), Gate(500_000)
    for gate in (first, second):
        registry.fail(gate, kind="blob", times=1)
    path = add_layer(registry, DATA)
    url = mirror.process.url + path
    async with raw_open(url) as leaving:
        got = 0
        while got < 1_998_000:
            got += len(await leaving.read())
        async with raw_open(url, {"Range": wanted}) as stream:
            body = b""
            while len(body) < 499_000:
                body += await stream.read()
            leaving.hang_up(reset=True)
            await eventually(lambda: _equals(mirror, "mirror_download_followers", 1))
            os.kill(mirror.owner_pid, signal.SIGKILL)
            while piece := await stream.read():
                body += piece
    assert (stream.status, stream.ended, body == right) == (206, "complete", True)
    assert (await mirror.get(path)).body == DATA
    assert registry.body_bytes("blob") < len(DATA) + 100_000


async def test_what_was_answered_is_answered_while_the_owner_is_away(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP)
    for _ in range(8):
        assert (await mirror.get(MANIFEST)).status == 200
    os.kill(mirror.owner_pid, signal.SIGKILL)
    for _ in range(8):
        assert (await mirror.get(MANIFEST)).body == image.manifest


async def test_a_killed_front_is_started_again_and_loses_no_connection_that_waits(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP)
    for pid in mirror.front_pids:
        os.kill(pid, signal.SIGKILL)
    answers = await asyncio.gather(*(mirror.get(MANIFEST) for _ in range(10)))
    assert {answer.body for answer in answers} == {image.manifest}
    await mirror.until_told("process started again")


async def test_metrics_are_those_of_all(mirror: Mirror, registry: FakeRegistry) -> None:
    registry.add_image(APP)
    await asyncio.gather(*(mirror.get(MANIFEST) for _ in range(40)))
    assert await mirror.metric("mirror_requests_total") == 40
    assert await mirror.metric("mirror_client_first_byte_seconds_count") == 40
    assert await mirror.metric("mirror_pulls_saved_total") == 39


async def test_a_clean_end_lets_transfers_end(registry: FakeRegistry, tmp_path: Path) -> None:
    gate = Gate(4_000_000)
    registry.fail(gate, kind="blob")
    path = add_layer(registry, DATA)
    async with (
        mirror_of(tmp_path, registry, 2) as mirror,
        raw_open(mirror.process.url + path) as stream,
    ):
        body = await stream.read(1000)
        mirror.process.send(signal.SIGTERM)
        await asyncio.sleep(0.3)
        gate.open()
        while piece := await stream.read():
            body += piece
        assert body == DATA
        assert await mirror.process.exit_code() == 0
        await until_ended([mirror.owner_pid, *mirror.front_pids])


async def test_without_their_supervisor_they_end_and_leave_nothing(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TemporaryDirectory() as folder:  # a socket's path is short
        monkeypatch.setenv("TMPDIR", folder)
        async with mirror_of(tmp_path, registry, 2) as mirror:
            mirror.process.send(signal.SIGKILL)
            await until_ended([mirror.owner_pid, *mirror.front_pids])
            await mirror.process.exit_code()
        assert os.listdir(folder) == []


async def test_a_second_signal_ends_all(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.fail(Gate(1000), kind="blob")
    path = add_layer(registry, DATA)
    async with (
        mirror_of(tmp_path, registry, 2) as mirror,
        raw_open(mirror.process.url + path) as stream,
    ):
        assert await stream.read(10)
        mirror.process.send(signal.SIGINT)
        await asyncio.sleep(0.3)
        mirror.process.send(signal.SIGINT)
        await mirror.process.exit_code()
        await until_ended([mirror.owner_pid, *mirror.front_pids])


# Waits for half a second beyond the grace.
HASTY = (
    "from mirror.workers import supervisor; supervisor.LAST_SECONDS = 0.5; "
    "from mirror.cli import app; app()"
)


async def test_a_front_that_hangs_does_not_take_the_owners_time(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = add_layer(registry, DATA)
    program = [sys.executable, "-c", HASTY, "serve"]
    async with mirror_of(tmp_path, registry, 2, program=program, shutdown_grace="1s") as mirror:
        for _ in range(3):
            assert (await mirror.get(path)).status == 200
        await eventually(lambda: _equals(mirror, "mirror_downloads_active", 0))
        os.kill(mirror.front_pids[0], signal.SIGSTOP)
        mirror.process.send(signal.SIGTERM)
        assert await mirror.process.exit_code() == 0
        await until_ended([mirror.owner_pid, *mirror.front_pids])
    with closing(sqlite3.connect(mirror.process.storage / "index.db")) as index:
        [(uses,)] = index.execute("SELECT uses FROM blobs").fetchall()
    assert uses > 1, "what was used is written down at the end"


async def test_a_header_that_is_no_unicode_means_the_same_as_to_one_process(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    path = add_layer(registry, DATA)
    async with connected(mirror.process.url) as (transport, wire):
        transport.write(
            f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + b"Range: bytes=1-2\xff\r\n\r\n"
        )
        stream, body = await answer_of(wire)
    assert (stream.status, body) == (200, DATA)


@pytest.mark.parametrize("asked", [None, "bytes=0-9,50-"])
async def test_wrong_bytes_are_not_asked_for_again_and_again(
    registry: FakeRegistry, tmp_path: Path, asked: str | None
) -> None:
    registry.fail(WrongByte(60_000), kind="blob")
    path = add_layer(registry, DATA[:100_000])
    storage = {"path": str(tmp_path / "data"), "max_size": "50KiB"}  # so that it passes through
    async with mirror_of(tmp_path, registry, 2, storage=storage) as mirror:
        answer = await mirror.get(path, headers={"Range": asked} if asked else None)
    assert answer.status == 502 or answer.ended == "short"
    assert len([seen for seen in registry.requests if seen.kind == "blob"]) < 6


async def test_a_killed_owner_costs_nobody_what_passes_through(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    gate = Gate(5_000_000)
    registry.fail(gate, kind="blob", method="GET", times=1)
    path = add_layer(registry, DATA)
    storage = {"path": str(tmp_path / "data"), "max_size": "1MiB"}
    async with (
        mirror_of(tmp_path, registry, 2, storage=storage) as mirror,
        raw_open(mirror.process.url + path) as stream,
    ):
        body = await stream.read(1_000)
        os.kill(mirror.owner_pid, signal.SIGKILL)
        while piece := await stream.read():
            body += piece
    assert (stream.ended, body) == ("complete", DATA)


async def test_a_killed_owner_lets_no_wrong_end_through(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    registry.fail(Gate(4_000_000), WrongByte(1_000_000), kind="blob", times=1)
    path = add_layer(registry, DATA)
    wanted = {"Range": "bytes=100-99999999"}  # to the end, wherever that is
    async with raw_open(mirror.process.url + path, wanted) as stream:
        body = b""
        while len(body) < 2_000_000:  # with the wrong byte, so that it lies on the disk as well
            body += await stream.read()
        os.kill(mirror.owner_pid, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while piece := await stream.read():
                body += piece
    assert stream.status == 206
    assert len(body) < len(DATA) - 100


async def test_a_part_is_answered_without_waiting_for_the_rest_though_the_owner_was_killed(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    first, later = Gate(1_000_000), Gate(4_000_000)
    registry.fail(first, kind="blob", times=1)
    registry.fail(later, kind="blob")
    path = add_layer(registry, DATA)
    async with connected(mirror.process.url) as (transport, wire):
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\n"
        transport.write(f"{head}Range: bytes=0-1999999\r\n\r\n".encode())
        stream = RawStream(wire, "GET")
        async with asyncio.timeout(DEADLINE_SECONDS):
            await stream.begin()
            body = await stream.read(1_000)
            os.kill(mirror.owner_pid, signal.SIGKILL)
            while piece := await stream.read():
                body += piece
        assert body == DATA[:2_000_000]
        transport.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer_of(wire))[1] == b"alive\n"
        later.open()


async def test_a_service_manager_may_tell_all_processes_to_end(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    gate = Gate(4_000_000)
    registry.fail(gate, kind="blob")
    path = add_layer(registry, DATA)
    async with (
        mirror_of(tmp_path, registry, 2) as mirror,
        raw_open(mirror.process.url + path) as stream,
    ):
        body = await stream.read(1000)
        for pid in (*mirror.front_pids, mirror.owner_pid):
            os.kill(pid, signal.SIGTERM)
        await asyncio.sleep(0.2)
        answers = [await mirror.get(MANIFEST) for _ in range(8)]  # by either front
        assert {answer.body for answer in answers} == {image.manifest}
        mirror.process.send(signal.SIGTERM)
        await asyncio.sleep(0.2)
        gate.open()
        while piece := await stream.read():
            body += piece
        assert body == DATA
        assert await mirror.process.exit_code() == 0


async def test_processes_that_cannot_meet_say_so(registry: FakeRegistry, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    file = write_settings(tmp_path, {UPSTREAM: registry}, workers=2)
    process = await asyncio.create_subprocess_exec(
        *SERVE,
        "--config",
        str(file),
        env={**os.environ, **IMPORTABLE, "TMPDIR": str(long)},
        stderr=PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 1
    [line] = told.splitlines()
    assert "TMPDIR" in json.loads(line)["reason"]
    assert not list(long.iterdir())


async def test_no_command_takes_the_folder_while_the_owner_is_away(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    path = add_layer(registry, DATA)
    assert (await mirror.get(path)).body == DATA
    mirror.process.send(signal.SIGSTOP)  # who would start it again
    os.kill(mirror.owner_pid, signal.SIGKILL)
    storage = mirror.process.storage
    command = [sys.executable, "-m", "mirror", "verify"]
    environment = {**os.environ, **IMPORTABLE, "MIRROR_STORAGE__PATH": str(storage)}
    verify = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=PIPE, stderr=PIPE
    )
    _, told_why = await verify.communicate()
    assert (verify.returncode, b"is in use" in told_why) == (1, True)
    mirror.process.send(signal.SIGCONT)
    assert (await mirror.get(path)).body == DATA


async def test_what_went_is_not_served_any_more_by_either_front(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP, layers=[DATA])
    paths = [MANIFEST, f"/v2/{UPSTREAM}/{APP}/blobs/{image.layers[0]}"]
    may_be_repeated = {"Connection": "keep-alive"}
    for path in paths * 8:
        assert (await mirror.get(path, headers=may_be_repeated)).status == 200
    await eventually(lambda: _equals(mirror, "mirror_downloads_active", 0))
    await told(mirror.process.storage, "rm", image=f"{UPSTREAM}/{APP}:latest")
    await registry.stop()
    answers = [await mirror.get(path, headers=may_be_repeated) for path in paths * 8]
    assert not {200} & {answer.status for answer in answers}


async def test_fronts_give_up_the_room_of_what_was_removed(
    mirror: Mirror, registry: FakeRegistry
) -> None:
    path = add_layer(registry, DATA)
    for _ in range(8):
        assert (await mirror.get(path)).body == DATA

    def kept() -> list[str]:
        files = [each for pid in mirror.front_pids for each in Path(f"/proc/{pid}/fd").iterdir()]
        names = [os.readlink(each) for each in files if each.is_symlink()]
        return [name for name in names if path.rpartition(":")[2] in name]

    async def is_given_up() -> bool:
        return not kept()

    assert kept()
    for stored in (mirror.process.storage / "blobs").rglob(path.rpartition(":")[2]):
        stored.unlink()
    await eventually(is_given_up)
