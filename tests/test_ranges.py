"""Ranges of blobs that are not here yet: as their bytes arrive, or fetched out of turn."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mirror.downloads import pieces, tries
from tests.fakes.client import raw_open
from tests.fakes.faults import Cut, Fault, Gate, Header, IgnoreRange, NoLength, Status, Trickle
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import (
    UPSTREAM,
    add_layer,
    read_some,
    some_bytes,
    until_idle,
    until_stored,
)

BIG = some_bytes(20_000_000)
HELD_BACK = 1024


@pytest.fixture(params=[0, 1], ids=["one process", "fronted"])
async def house(
    registry: FakeRegistry, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}, fronts=request.param) as house:
        yield house


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow one another at once."""
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def gate(registry: FakeRegistry) -> Gate:
    """The first answer brings the blob's start, then nothing."""
    gate = Gate(100_000)
    registry.fail(gate, kind="blob", times=1)
    return gate


@pytest.mark.parametrize(
    ("wanted", "upstream_range", "start", "readable"),
    [
        ("bytes=10000000-10000999", "bytes=10000000-10000999", 10_000_000, 1000),
        ("bytes=-1000", "bytes=19999000-19999999", 19_999_000, 1000),
        ("bytes=19000000-", "bytes=19000000-19999999", 19_000_000, 1_000_000 - HELD_BACK),
    ],
    ids=["closed", "suffix", "open-ended"],
)
async def test_a_far_range_does_not_wait_for_what_lies_before_it(
    house: House,
    registry: FakeRegistry,
    gate: Gate,
    wanted: str,
    upstream_range: str,
    start: int,
    readable: int,
) -> None:
    url = house.url + add_layer(registry, BIG)
    body = await read_some(url, readable, {"Range": wanted})
    assert body == BIG[start : start + readable]
    assert not gate.opened.is_set()
    assert [seen.headers.get("Range") for seen in registry.requests] == [None, upstream_range]
    gate.open()
    await until_stored(house, BIG)


async def test_an_open_ended_range_gets_its_last_bytes_after_the_digest(
    house: House, registry: FakeRegistry, gate: Gate
) -> None:
    url = house.url + add_layer(registry, BIG)
    async with raw_open(url, {"Range": "bytes=19000000-"}) as stream:
        assert stream.headers["Content-Range"] == "bytes 19000000-19999999/20000000"
        body = b""
        while len(body) < 1_000_000 and (data := await stream.read()):
            body += data
            if len(body) == 1_000_000 - HELD_BACK:
                gate.open()
        assert gate.opened.is_set()
    assert body == BIG[19_000_000:]


async def test_several_far_ranges_come_in_the_order_asked(
    house: House, registry: FakeRegistry, gate: Gate
) -> None:
    path = add_layer(registry, BIG)
    answer = await house.get(path, {"Range": "bytes=15000000-15000099,10-19,-5"})
    assert (answer.status, answer.ended) == (206, "complete")
    parts = answer.body.split(b"\r\n\r\n")
    assert parts[1].startswith(BIG[15_000_000:15_000_100])
    assert parts[2].startswith(BIG[10:20])
    assert parts[3].startswith(BIG[-5:])
    assert not gate.opened.is_set()
    gate.open()
    await until_stored(house, BIG)


@pytest.mark.parametrize(("chunk", "parallel"), [(2_000_000, 3), (1_000_000, 8), (8_000_000, 3)])
async def test_parallel_open_ended_ranges_cost_little_more_than_one_download(
    house: House, registry: FakeRegistry, chunk: int, parallel: int
) -> None:
    """As containerd 2.x sends them, each given up once its chunk is there."""
    url = house.url + add_layer(registry, BIG)
    registry.fail(Trickle(40_000_000, chunk_bytes=64 * 1024), kind="blob")
    offsets = iter(range(0, len(BIG), chunk))
    got = {}

    async def work(offsets: Iterator[int]) -> None:
        for offset in offsets:
            count = min(chunk, len(BIG) - offset)
            got[offset] = await read_some(url, count, {"Range": f"bytes={offset}-"})

    async with asyncio.TaskGroup() as workers:
        for _ in range(parallel):
            workers.create_task(work(offsets))
    assert b"".join(got[offset] for offset in sorted(got)) == BIG
    await until_stored(house, BIG)
    await registry.until(lambda: registry.in_flight() == 0)
    assert registry.body_bytes() <= 1.3 * len(BIG)
    assert registry.count() <= 1 + pieces.MAX_PIECES + 3


async def test_once_206_always_206(house: House, registry: FakeRegistry) -> None:
    path = add_layer(registry, BIG)
    gate = Gate(5_000_000)
    registry.fail(gate, kind="blob", times=1)
    for wanted, expected in (
        ("bytes=0-99", "bytes 0-99/20000000"),
        ("bytes=4000000-4000099", "bytes 4000000-4000099/20000000"),
        ("bytes=7000000-7000099", "bytes 7000000-7000099/20000000"),
        ("bytes=-10", "bytes 19999990-19999999/20000000"),
        ("bytes=19999990-30000000", "bytes 19999990-19999999/20000000"),
    ):
        for moment in ("arriving", "stored"):
            if moment == "stored" or wanted.endswith("30000000"):
                gate.open()
                await until_stored(house, BIG)
            answer = await house.get(path, {"Range": wanted})
            assert (answer.status, answer.headers["Content-Range"]) == (206, expected)
            assert answer.headers["Accept-Ranges"] == "bytes"
            first, last = (int(each) for each in expected[6:].split("/")[0].split("-"))
            assert answer.body == BIG[first : last + 1]


async def test_a_range_behind_the_end_of_an_arriving_blob_is_refused_at_once(
    house: House, registry: FakeRegistry, gate: Gate
) -> None:
    answer = await house.get(add_layer(registry, BIG), {"Range": "bytes=20000000-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */20000000")
    gate.open()
    await until_stored(house, BIG)


async def test_an_upstream_that_ignores_ranges_is_asked_for_one_only_once(
    house: House, registry: FakeRegistry
) -> None:
    path = add_layer(registry, BIG)
    registry.fail(IgnoreRange(), Trickle(60_000_000, chunk_bytes=64 * 1024), kind="blob")
    wanted = [
        {"Range": f"bytes={start}-{start + 99}"}
        for start in range(2_000_000, 20_000_000, 3_000_000)
    ]
    answers = await asyncio.gather(*(house.get(path, headers) for headers in wanted))
    assert {answer.status for answer in answers} == {206}
    assert b"".join(answer.body for answer in answers) == b"".join(
        BIG[start : start + 100] for start in range(2_000_000, 20_000_000, 3_000_000)
    )
    await until_stored(house, BIG)
    assert registry.count() == 2


@pytest.mark.parametrize(
    "faults",
    [
        [Status(503)],
        [Status(404)],
        [Cut(0)],
        [Header("Content-Range", None)],
        [Header("Content-Range", "bytes 0-99/20000000")],
        [Header("Content-Range", "bytes 10000000-10000099/30000000")],
        [Header("Content-Range", "bytes 10000000-10000099/9")],
    ],
    ids=repr,
)
@pytest.mark.usefixtures("hurry")
async def test_ranges_that_fail_upstream_are_given_up_and_waited_for(
    house: House, registry: FakeRegistry, gate: Gate, faults: list[Fault]
) -> None:
    path = add_layer(registry, BIG)
    registry.fail(*faults, kind="blob")
    async with asyncio.TaskGroup() as clients:
        client = clients.create_task(house.get(path, {"Range": "bytes=10000000-10000099"}))
        await registry.until_count(1 + pieces.MAX_FAILED_PIECES)
        gate.open()
    assert (client.result().status, client.result().body) == (206, BIG[10_000_000:10_000_100])
    await until_stored(house, BIG)
    assert registry.count() == 1 + pieces.MAX_FAILED_PIECES


@pytest.mark.parametrize("faults", [[Cut(300_000)], [Cut(300_000), NoLength()]], ids=repr)
@pytest.mark.usefixtures("hurry")
async def test_a_far_range_that_breaks_is_taken_up_again(
    house: House, registry: FakeRegistry, gate: Gate, faults: list[Fault]
) -> None:
    path = add_layer(registry, BIG)
    registry.fail(*faults, kind="blob", times=1)
    answer = await house.get(path, {"Range": "bytes=10000000-10999999"})
    assert (answer.status, answer.ended) == (206, "complete")
    assert answer.body == BIG[10_000_000:11_000_000]
    assert not gate.opened.is_set()
    gate.open()
    await until_stored(house, BIG)


async def test_what_was_fetched_out_of_turn_is_not_fetched_again(
    house: House, registry: FakeRegistry, gate: Gate
) -> None:
    path = add_layer(registry, BIG)
    piece = pieces.PIECE_BYTES
    start = 10_000_000
    await house.get(path, {"Range": f"bytes={start}-{start + piece - 1}"})
    assert not gate.opened.is_set()
    registry.fail(Trickle(100_000_000, chunk_bytes=64 * 1024), kind="blob")
    gate.open()
    await until_stored(house, BIG)
    await until_idle(house)
    assert [seen.headers.get("Range") for seen in registry.requests] == [
        None,
        f"bytes={start}-{start + piece - 1}",
        f"bytes={start + piece}-",
    ]
