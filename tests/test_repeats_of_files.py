"""Stored blobs that are asked for again byte for byte: sent again from their files."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs
from structlog.typing import EventDict

import mirror.web.repeats
from mirror.web.registry import Registry
from tests.fakes.registry import FakeRegistry
from tests.support.connections import answer_of, connected, has_arrived
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, eventually, some_bytes, until_idle

DATA = some_bytes(1_000_000)
MUCH = some_bytes(6_000_000, seed=1)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of requests that went the whole way."""
    paths: list[str] = []
    handle = Registry.handle

    async def noting(registry: Registry, request: web.BaseRequest) -> web.StreamResponse:
        paths.append(request.path)
        return await handle(registry, request)

    monkeypatch.setattr(Registry, "handle", noting)
    return paths


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house


async def stored(house: House, registry: FakeRegistry, data: bytes) -> str:
    """The path of a blob that is here, and open."""
    path = add_layer(registry, data)
    assert (await house.get(path)).body == data
    await until_idle(house)
    assert (await house.get(path)).body == data
    return path


async def _so_many(lines: list[EventDict], count: int) -> bool:
    return len(lines) == count


def request_for(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: mirror", *headers, "", ""]).encode()


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ((), 200, DATA),
        (("Range: bytes=300000-",), 206, DATA[300_000:]),
        (("Range: bytes=200000-299999",), 206, DATA[200_000:300_000]),
    ],
    ids=["whole", "from", "range"],
)
async def test_the_same_bytes_are_given_again(
    house: House,
    registry: FakeRegistry,
    read: list[str],
    asked: tuple[str, ...],
    status: int,
    expected: bytes,
) -> None:
    path = await stored(house, registry, DATA)
    read.clear()
    async with connected(house.url) as (transport, wire):
        for number in range(4):
            transport.write(request_for(path, *asked))
            answer, body = await answer_of(wire)
            assert (answer.status, body == expected) == (status, True), number
            assert len(answer.headers.getall("Date")) == 1
        transport.write(request_for("/healthz"))
        assert (await answer_of(wire))[1] == b"alive\n"
    assert len(read) == 1


async def test_each_is_counted_and_logged(house: House, registry: FakeRegistry) -> None:
    path = await stored(house, registry, DATA)
    with capture_logs() as lines:
        async with connected(house.url) as (transport, wire):
            for _ in range(3):
                transport.write(request_for(path))
                await answer_of(wire)
    assert [line["bytes"] for line in lines] == [len(DATA)] * 3
    assert len({str({**line, "seconds": 0}) for line in lines}) == 1
    assert await house.metric("mirror_client_bytes_total", kind="blob") == 5 * len(DATA)
    assert await house.metric("mirror_requests_total", kind="blob", cache="hit") == 4
    assert await house.metric("mirror_client_first_byte_seconds_count", kind="blob") == 5


async def test_a_slow_client_is_waited_for_and_the_next_request_with_it(
    house: House, registry: FakeRegistry, read: list[str]
) -> None:
    path = await stored(house, registry, MUCH)
    async with connected(house.url, receive_buffer_bytes=5000) as (transport, wire):
        transport.write(request_for(path))
        assert (await answer_of(wire))[1] == MUCH
        read.clear()
        transport.pause_reading()
        transport.write(request_for(path))
        await asyncio.sleep(0.2)
        transport.write(request_for("/healthz"))
        await asyncio.sleep(0.2)
        transport.resume_reading()
        assert (await answer_of(wire))[1] == MUCH
        assert (await answer_of(wire))[1] == b"alive\n"
    assert read == []


async def test_what_is_gone_is_looked_for_again(
    house: House, registry: FakeRegistry, read: list[str]
) -> None:
    path = await stored(house, registry, DATA)
    async with connected(house.url) as (transport, wire):
        for _ in range(2):
            transport.write(request_for(path))
            await answer_of(wire)
        read.clear()
        next(house.storage.glob(f"blobs/*/*/{path.rpartition(':')[2]}")).unlink()
        transport.write(request_for(path))
        assert (await answer_of(wire))[1] == DATA
    assert len(read) == 1
    assert sum(seen.kind == "blob" for seen in registry.requests) == 2


async def test_a_client_that_leaves_frees_the_file(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await stored(house, registry, MUCH)
    await house.get(path)
    with capture_logs() as lines:
        async with connected(house.url, receive_buffer_bytes=5000) as (transport, wire):
            transport.write(request_for(path))
            assert len((await answer_of(wire))[1]) == len(MUCH)
            transport.pause_reading()
            transport.write(request_for(path))
            await eventually(lambda: has_arrived(transport))
            transport.abort()
        await eventually(partial(_so_many, lines, 2))
    assert lines[-1]["cut_short"] is True
    assert 0 < lines[-1]["bytes"] < len(MUCH)


async def test_a_mirror_that_ends_lets_it_end(
    registry: FakeRegistry, tmp_path: Path, read: list[str]
) -> None:
    async with AsyncExitStack() as stack:
        mirror = mirroring(tmp_path, {UPSTREAM: registry}, shutdown_grace="1h")
        house = await stack.enter_async_context(mirror)
        path = await stored(house, registry, MUCH)
        async with connected(house.url, receive_buffer_bytes=5000) as (transport, wire):
            transport.write(request_for(path))
            await answer_of(wire)
            read.clear()
            transport.pause_reading()
            transport.write(request_for(path))
            await eventually(lambda: has_arrived(transport))
            async with asyncio.TaskGroup() as group:
                group.create_task(stack.aclose())
                await asyncio.sleep(0.1)
                transport.resume_reading()
                answer = await answer_of(wire)
            assert (answer[1] == MUCH, read) == (True, [])


async def test_a_file_that_cannot_be_read_ends_the_connection_and_is_not_read_again(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await stored(house, registry, DATA)
    sendfile, pread, failing = os.sendfile, os.pread, [False]

    def send(out: int, file: int, offset: int, count: int) -> int:
        if failing[0]:
            raise OSError(errno.EIO, "Input/output error")
        return sendfile(out, file, offset, count)

    def read(file: int, count: int, offset: int) -> bytes:
        if failing[0]:
            raise OSError(errno.EIO, "Input/output error")
        return pread(file, count, offset)

    monkeypatch.setattr(os, "sendfile", send)
    monkeypatch.setattr(os, "pread", read)
    async with connected(house.url) as (transport, wire):
        transport.write(request_for(path))
        assert (await answer_of(wire))[1] == DATA
        failing[0] = True
        transport.write(request_for(path))
        answer, body = await answer_of(wire)
        assert (answer.ended, body) == ("short", b"")
    failing[0] = False
    assert (await house.get(path)).body == DATA
    assert await house.metric("mirror_damaged_blobs_total", reason="unreadable") == 1


async def test_what_is_larger_goes_its_whole_way(
    house: House, registry: FakeRegistry, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.repeats, "FILE_BYTES", len(DATA) - 1)
    path = await stored(house, registry, DATA)
    read.clear()
    async with connected(house.url) as (transport, wire):
        for _ in range(3):
            transport.write(request_for(path))
            assert (await answer_of(wire))[1] == DATA
    assert len(read) == 3
