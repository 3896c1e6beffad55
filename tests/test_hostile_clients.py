"""Clients that take all the room there is, or never take what they asked for."""

import asyncio
import gzip
import json
import os
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

import mirror.web.connection
import mirror.web.places
from mirror.web.places import connections_allowed, place_of
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.images import OCI_INDEX
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire
from tests.support.connections import answer_of, connect, connected
from tests.support.house import mirroring
from tests.support.layers import APP, UPSTREAM, add_layer, eventually, some_bytes
from tests.support.limits import descriptors_allowed, most_descriptors
from tests.support.process import serving
from tests.support.procfs import memory_bytes

MANIFEST = f"/v2/{UPSTREAM}/{APP}/manifests/latest"
HEAD = b"GET %b HTTP/1.1\r\nHost: mirror\r\n\r\n"
# Loopback is a whole network: hostile clients come from addresses of their own.
THEM, OTHERS = "127.0.0.2", "127.0.0.3"
ACCEPTED_AT_ONCE = 500


async def greeted(wire: Wire) -> int:
    """The status of what the mirror says to a client that has not asked for anything but a ping."""
    if wire.transport is not None:
        wire.transport.write(HEAD % b"/v2/")
    return (await answer_of(wire))[0].status


@pytest.fixture
def eight_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror.web.places, "MAX_CONNECTIONS", 8)


@pytest.mark.usefixtures("eight_places")
async def test_one_address_takes_half_of_the_room_at_most(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house, AsyncExitStack() as them:
        wires = [(await them.enter_async_context(connected(house.url, THEM)))[1] for _ in range(8)]
        assert [await greeted(wire) for wire in wires[:4]] == [200] * 4
        for wire in wires[4:]:
            stream, body = await answer_of(wire)
            assert (stream.status, stream.headers["Retry-After"]) == (503, "30")
            assert json.loads(body)["errors"][0]["code"] == "UNAVAILABLE"
            assert await wire.more() is False
        assert await house.metric("mirror_connections_refused_total") == 4
        async with connected(house.url, OTHERS) as (_, wire):
            assert await greeted(wire) == 200


@pytest.mark.usefixtures("eight_places")
async def test_beyond_the_room_there_is_nobody_comes_in_until_others_leave(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        async with AsyncExitStack() as them:
            for local in [THEM] * 4 + [OTHERS] * 4:
                _, wire = await them.enter_async_context(connected(house.url, local))
                assert await greeted(wire) == 200
            assert (await house.get("/healthz")).status == 503

        async def has_room() -> bool:
            return (await house.get("/healthz")).status == 200

        await eventually(has_room)


@pytest.mark.parametrize(("soft", "allowed"), [(1024, 768), (4000, 3000)])
def test_the_room_is_what_descriptors_are_left_for(soft: int, allowed: int) -> None:
    with descriptors_allowed(soft):
        assert connections_allowed() == allowed


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::1", "20010db800010002::"),
        ("2001:db8:1:2:ffff::9", "20010db800010002::"),
        ("2001:db8:1:3::1", "20010db800010003::"),
        ("fe80::1%eth0", "fe80000000000000::"),
        ("", ""),
    ],
)
def test_connections_are_counted_by_address_or_network(host: str, place: str) -> None:
    assert place_of(host).zfill(18 if ":" in place else 0) == place


@pytest.mark.alone
async def test_ten_thousand_idle_connections_shut_nobody_out(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    """In a process of its own, since both ends of a connection need a descriptor."""
    hard = most_descriptors()
    count = 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard * 7 // 10)
    registry.add_image(APP)
    with descriptors_allowed(hard):
        async with (
            serving(tmp_path, {UPSTREAM: registry}) as mirror,
            asyncio.timeout(DEADLINE_SECONDS),
        ):
            idle = []
            for n in range(count):
                idle.append(await connect(mirror.url, f"127.0.0.{2 + n % 4}"))
                if n % ACCEPTED_AT_ONCE == 0:  # beyond its backlog, the kernel has them wait
                    assert (await mirror.get("/healthz")).status == 200
            for transport, _ in idle[::2]:
                transport.write(b"GET /v2/ HTTP/1.1\r\nHost: ")
            for _ in range(10):
                assert (await mirror.get(MANIFEST)).status == 200
            assert not any(wire.lost for _, wire in idle)
            for transport, _ in idle:
                transport.abort()
            for _, wire in idle:
                while await wire.more():
                    pass


def add_large_index(registry: FakeRegistry) -> bytes:
    body = json.dumps({"manifests": [], "x": "x" * 3_000_000}).encode()
    registry.add_manifest(APP, body, OCI_INDEX, "latest")
    return body


async def test_answers_that_nobody_takes_take_little_memory(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    body = add_large_index(registry)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house, AsyncExitStack() as them:
        assert (await house.get(MANIFEST)).body == body
        before = memory_bytes(os.getpid())
        for _ in range(50):
            transport, _ = await them.enter_async_context(connected(house.url, THEM, 16_384))
            transport.write(HEAD % MANIFEST.encode() * 20)
        async with connected(house.url, OTHERS) as (transport, wire):
            transport.write(HEAD % MANIFEST.encode())
            assert (await answer_of(wire))[1] == body
        assert memory_bytes(os.getpid()) - before < 60_000_000


async def until_given_up(folder: Path, registry: FakeRegistry, path: str) -> None:
    """Asks for it forty times and takes nothing, until the mirror is tired of that.

    Without reading: whoever writes to a connection that is no more hears of it.
    """
    async with (
        mirroring(folder, {UPSTREAM: registry}) as house,
        connected(house.url, THEM, 16_384) as (transport, wire),
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        transport.pause_reading()
        transport.write(HEAD % path.encode() * 40)
        while not wire.lost:
            transport.write(b"\r\n")  # which no parser takes for a request
            await asyncio.sleep(0.05)


async def test_an_answer_that_is_not_taken_in_time_is_given_up(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.connection, "TAKE_SECONDS", 0.3)
    add_large_index(registry)
    await until_given_up(tmp_path, registry, MANIFEST)


async def test_a_blob_that_nobody_takes_is_given_up(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel: sendfile waits where the loop has nothing to count."""
    monkeypatch.setattr(mirror.web.places, "STALL_SECONDS", 1)
    path = add_layer(registry, some_bytes(16_000_000))
    await until_given_up(tmp_path, registry, path)


@asynccontextmanager
async def one_of_them(
    folder: Path, registry: FakeRegistry
) -> AsyncIterator[tuple[asyncio.Transport, Wire]]:
    """A mirror, and a connection to it, for 15 s at most."""
    async with (
        mirroring(folder, {UPSTREAM: registry}) as house,
        connected(house.url, THEM) as (transport, wire),
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        yield transport, wire


async def test_a_second_request_has_to_be_finished_as_well(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.connection, "KEEPALIVE_SECONDS", 0.3)
    async with one_of_them(tmp_path, registry) as (transport, wire):
        assert await greeted(wire) == 200
        transport.write(b"GET /v2/ HTTP/1.1\r\nX: ")
        while not wire.lost:
            transport.write(b"x")
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("method", [b"GET", b"PUT"])
async def test_a_body_without_end_is_not_read_to_its_end(
    method: bytes, tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.connection, "LINGERING_SECONDS", 0.3)
    async with one_of_them(tmp_path, registry) as (transport, wire):
        transport.write(method + b" /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not wire.lost:
            transport.write(b"1\r\nx\r\n")
            await asyncio.sleep(0.01)
        assert (await answer_of(wire))[0].status in (200, 405)


@pytest.mark.parametrize("body", [b"not at all", gzip.compress(bytes(10_000_000))])
async def test_bodies_are_never_decompressed(
    body: bytes, tmp_path: Path, registry: FakeRegistry
) -> None:
    """What is no gzip would be an error, were it looked into."""
    head = f"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}"
    async with one_of_them(tmp_path, registry) as (transport, wire):
        transport.write(head.encode() + b"\r\n\r\n" + body + HEAD % b"/v2/")
        assert (await answer_of(wire))[0].status == 405
        assert (await answer_of(wire))[0].status == 200


HIDDEN = HEAD % b"/healthz"
AMBIGUOUS = {
    "length and chunks": "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "chunks, not last": "Transfer-Encoding: chunked, identity",
    "chunks twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "chunks of no name": "Transfer-Encoding: xchunked",
    "chunks with a space": "Transfer-Encoding : chunked",
    "chunks on a second line": "Transfer-Encoding:\r\n chunked",
    "chunks with a tab": "Transfer-Encoding: \x0bchunked",
    "length with a sign": "Content-Length: +5",
    "length in hex": "Content-Length: 0x5",
    "length with a line": "Content-Length: 1_0",
    "two lengths in one": "Content-Length: 5, 6",
    "two lengths": "Content-Length: 5\r\nContent-Length: 0",
    "length with a space": "Content-Length : 5",
    "length below zero": "Content-Length: -1",
    "name with a NUL": "Content-Length\0: 5",
    "bare line feed": "X: y\nContent-Length: 5",
    "bare carriage return": "X: y\rContent-Length: 5",
}


@pytest.mark.parametrize("header", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_where_a_body_might_end_in_two_places_the_connection_ends(
    header: str, tmp_path: Path, registry: FakeRegistry
) -> None:
    """Another server in front would see another request than we do."""
    async with one_of_them(tmp_path, registry) as (transport, wire):
        transport.write(f"POST /v2/ HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
        transport.write(b"0\r\n\r\n" + HIDDEN)
        while await wire.more():
            pass
        assert b"alive" not in wire.buffer
        assert wire.buffer.split()[1] == b"400"


@pytest.mark.parametrize("chunk", ["-1", "0x1", "1 ;x", "1_0", "f" * 20, "1\n", "1;\n", ""])
async def test_chunks_that_cannot_be_counted_end_the_connection(
    chunk: str, tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.connection, "LINGERING_SECONDS", 0.5)
    async with one_of_them(tmp_path, registry) as (transport, wire):
        transport.write(b"POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        transport.write(f"{chunk}\r\nx\r\n0\r\n\r\n".encode() + HIDDEN)
        while await wire.more():
            pass
        assert b"alive" not in wire.buffer
        assert b" 500 " not in wire.buffer
