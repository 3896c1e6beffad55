"""Bodies of several blocks, over plain HTTP and TLS: all bytes, in order, and the connection lives
on.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import trustme

from mirror.store.staging import StagedBlob
from mirror.upstream.body import (
    FIRST_BLOCK_BYTES,
    MAX_BLOCK_BYTES,
    MAX_GROWN_BYTES,
    MAX_SPARE_BYTES,
    Blocks,
    read_body,
)
from mirror.upstream.pace import Pace
from tests.fakes.client import raw_get
from tests.fakes.faults import Cut, Gate, NoLength, Trickle
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import APP, UPSTREAM, add_layer, some_bytes

SIZES = (1, 65_536, FIRST_BLOCK_BYTES - 1, FIRST_BLOCK_BYTES, FIRST_BLOCK_BYTES + 1, 12_000_077)


@pytest.fixture(params=["http", "https"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[FakeRegistry]:
    tls = None
    if request.param == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with FakeRegistry(tls=tls) as registry:
        yield registry


@pytest.fixture
async def house(upstream: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    settings = {"endpoints": [upstream.url], "tls": {"skip_verify": True}, "idle_timeout": "1s"}
    async with mirroring(tmp_path, {UPSTREAM: settings}) as house:
        yield house


async def test_blobs_of_all_sizes_come_over_one_connection(
    house: House, upstream: FakeRegistry
) -> None:
    for seed, size_bytes in enumerate(SIZES):
        data = some_bytes(size_bytes, seed=seed)
        answer = await raw_get(house.url + add_layer(upstream, data))
        assert (answer.status, answer.body) == (200, data)
    assert upstream.connections_accepted == 1


@pytest.mark.parametrize("at", [FIRST_BLOCK_BYTES, 3 * FIRST_BLOCK_BYTES + 5])
async def test_what_arrived_before_a_break_is_not_fetched_again(
    house: House, upstream: FakeRegistry, at: int
) -> None:
    data = some_bytes(5 * FIRST_BLOCK_BYTES)
    upstream.fail(Cut(at), kind="blob", times=1)
    answer = await raw_get(house.url + add_layer(upstream, data))
    assert answer.body == data
    assert upstream.body_bytes() == len(data)


async def test_small_pieces_are_written_together(
    house: House, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first one at once."""
    written, write = list[int](), StagedBlob.write

    def note(self: StagedBlob, offset: int, data: memoryview) -> None:
        written.append(len(data))
        write(self, offset, data)

    monkeypatch.setattr(StagedBlob, "write", note)
    data, piece_bytes = some_bytes(FIRST_BLOCK_BYTES), 2048
    upstream.fail(Trickle(10_000_000, chunk_bytes=piece_bytes), kind="blob")
    answer = await raw_get(house.url + add_layer(upstream, data))
    assert answer.body == data
    assert sum(written) == len(data)
    assert written[0] < len(data) / 4
    assert len(written) < len(data) / piece_bytes / 2


async def test_a_body_without_a_length_comes_whole(house: House, upstream: FakeRegistry) -> None:
    data = some_bytes(3 * FIRST_BLOCK_BYTES + 1)
    upstream.fail(NoLength(), kind="blob")
    answer = await raw_get(house.url + add_layer(upstream, data))
    assert answer.body == data


def test_what_is_given_back_is_used_again_and_little_is_kept() -> None:
    blocks = Blocks()
    given_back = [blocks.of(MAX_BLOCK_BYTES) for _ in range(20)]
    for block in given_back:
        blocks.give_back(block)
    again = [blocks.of(MAX_BLOCK_BYTES) for _ in range(20)]
    used_again = {id(block.obj) for block in again} & {id(block.obj) for block in given_back}
    assert len(used_again) == MAX_SPARE_BYTES // MAX_BLOCK_BYTES
    assert len({id(block.obj) for block in again}) == 20, "nobody shares one"


def test_blocks_grow_as_far_as_all_together_may() -> None:
    blocks = Blocks()
    taken = [memoryview(bytearray(FIRST_BLOCK_BYTES)) for _ in range(64)]
    for _ in range(8):
        taken = [blocks.larger(block) for block in taken]
    sizes = [len(block) for block in taken]
    assert sum(sizes) <= 64 * FIRST_BLOCK_BYTES + MAX_GROWN_BYTES
    for block in taken:
        blocks.give_back(block)
    alone = memoryview(bytearray(FIRST_BLOCK_BYTES))
    for _ in range(8):
        alone = blocks.larger(alone)
    assert len(alone) == MAX_BLOCK_BYTES


async def test_an_earlier_answer_in_its_buffer_does_not_disturb_the_connection(
    registry: FakeRegistry,
) -> None:
    """It came whole, so that its connection is another answer's by now, which has enough."""
    small = registry.add_blob(APP, b"small")
    data = some_bytes(40 * FIRST_BLOCK_BYTES)
    large = registry.add_blob(APP, data)
    url = f"{registry.url}/v2/{APP}/blobs"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        first = await session.get(f"{url}/{small}")
        async with session.get(f"{url}/{large}") as second:
            body = read_body(second, 5, Blocks(), Pace(), lambda: True)
            got = bytes(await anext(body))
            await asyncio.sleep(0.1)  # both blocks are full
            assert await first.content.readany() == b"small"
            await asyncio.sleep(0.1)
            async for piece in body:
                got += piece
    assert got == data
    assert registry.connections_accepted == 1


@pytest.mark.parametrize("last_bytes", [1, 24_000, 25_000, 60_000, 3_000_000])
async def test_a_body_that_lies_there_when_its_reader_comes(
    registry: FakeRegistry, last_bytes: int
) -> None:
    """A busy host reads late. aiohttp holds the end back, once so much has come."""
    gate = Gate(500_000)
    data = some_bytes(gate.at_bytes + last_bytes)
    url = f"{registry.url}/v2/{APP}/blobs/{registry.add_blob(APP, data)}"
    registry.fail(gate, kind="blob", times=1)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        async with session.get(url) as response:
            await gate.reached.wait()
            await asyncio.sleep(0.1)
            gate.open()
            await asyncio.sleep(0.1)
            body = read_body(response, 5, Blocks(), Pace(), lambda: True)
            assert b"".join([bytes(piece) async for piece in body]) == data
        async with session.get(url) as response:
            assert await response.read() == data
    assert registry.connections_accepted == 1
