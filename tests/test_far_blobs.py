"""A blob of a far upstream comes over several connections; one of a near upstream over one."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.downloads import further, shares, stretches, widening
from mirror.downloads.further import FAR_SECONDS
from mirror.downloads.pieces import FAR_AHEAD_BYTES
from tests.fakes.client import raw_open
from tests.fakes.faults import (
    Cut,
    Delay,
    Fault,
    HangUp,
    IgnoreRange,
    Reset,
    Stall,
    Status,
    Trickle,
    WrongByte,
)
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import (
    UPSTREAM,
    add_layer,
    read_some,
    read_through,
    some_bytes,
    until_idle,
)
from tests.support.stopwatch import Stopwatch

# At this rate for each connection a single one takes four seconds.
RATE = 5_000_000
BIG = some_bytes(20_000_000, seed=5)
FAR = (Delay(0.05), Trickle(RATE, chunk_bytes=32 * 1024))
SEAMS = 1.06


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it is measured who is."""
    monkeypatch.setattr(further, "FAR_SECONDS", FAR_SECONDS)


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a blob that is ten times as large."""
    monkeypatch.setattr(stretches, "LEAST_BYTES", 1_000_000)
    monkeypatch.setattr(stretches, "LEAST_REST_BYTES", 100_000)


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house


@dataclass
class Pulled:
    seconds: float
    digest: str
    ended: str


async def pull(house: House, path: str) -> Pulled:
    with Stopwatch() as watch:
        read = await read_through(house.url + path)
    return Pulled(watch.seconds, read.digest, read.ended)


async def test_a_far_blob_comes_over_several_connections(
    house: House, registry: FakeRegistry
) -> None:
    registry.fail(*FAR, kind="blob")
    pulled = await pull(house, add_layer(registry, BIG))
    assert (pulled.digest, pulled.ended) == (digest_of(BIG), "complete")
    assert registry.requests[0].bytes_sent < 0.75 * len(BIG)
    assert 3 <= registry.most_at_once <= 2 * widening.MAX_CONNECTIONS
    await until_idle(house)
    assert registry.body_bytes("blob") <= SEAMS * len(BIG)
    assert registry.requests[0].headers.get("Range") is None


async def test_a_near_blob_comes_over_one(house: House, registry: FakeRegistry) -> None:
    pulled = await pull(house, add_layer(registry, some_bytes(60_000_000)))
    assert pulled.ended == "complete"
    assert registry.count() == 1


async def test_what_would_be_there_soon_comes_over_one(
    house: House, registry: FakeRegistry
) -> None:
    registry.fail(Trickle(40_000_000, chunk_bytes=64 * 1024), kind="blob")
    assert (await pull(house, add_layer(registry, BIG))).ended == "complete"
    assert registry.count() == 1


async def test_an_upstream_that_ignores_ranges_is_asked_for_one_once_in_a_while(
    house: House, registry: FakeRegistry
) -> None:
    faults = Delay(0.05), Trickle(2 * RATE, chunk_bytes=64 * 1024)
    registry.fail(*faults, IgnoreRange(), kind="blob")
    assert (await pull(house, add_layer(registry, BIG))).digest == digest_of(BIG)
    assert registry.count() == 2
    assert registry.body_bytes("blob") <= 1.1 * len(BIG)
    registry.forget()
    other = some_bytes(len(BIG), seed=6)
    assert (await pull(house, add_layer(registry, other))).digest == digest_of(other)
    assert registry.count() == 1


@pytest.mark.parametrize(
    "faults",
    [
        [Status(429)],
        [Status(429, {"Retry-After": "60"})],
        [Status(503)],
        [Reset(0)],
        [Reset(100_000)],
        [Cut(50_000)],
        [HangUp()],
    ],
    ids=repr,
)
@pytest.mark.parametrize("skip", [1, 3])
async def test_where_further_connections_are_refused_the_first_one_goes_on(
    house: House, registry: FakeRegistry, faults: list[Fault], skip: int
) -> None:
    """From the second request on, or from the fourth, as a registry that counts them does."""
    path = add_layer(registry, BIG)
    registry.fail(*FAR, kind="blob", times=skip)
    registry.fail(*faults, kind="blob", times=6)
    registry.fail(*FAR, kind="blob")
    pulled = await pull(house, path)
    assert (pulled.digest, pulled.ended) == (digest_of(BIG), "complete")
    await until_idle(house)
    assert registry.body_bytes("blob") <= 1.1 * len(BIG)


async def test_an_upstream_that_never_takes_a_second_one_is_left_in_peace(
    house: House, registry: FakeRegistry
) -> None:
    path = add_layer(registry, BIG)
    registry.fail(*FAR, kind="blob", times=1)
    registry.fail(Status(429, {"Retry-After": "60"}), kind="blob")
    pulled = await pull(house, path)
    assert (pulled.digest, pulled.ended) == (digest_of(BIG), "complete")
    assert registry.count() <= 2


async def test_a_wrong_byte_in_one_of_them_is_found(house: House, registry: FakeRegistry) -> None:
    path = add_layer(registry, BIG)
    registry.fail(*FAR, kind="blob", times=2)
    registry.fail(*FAR, WrongByte(1000), kind="blob", times=1)
    registry.fail(*FAR, kind="blob")
    pulled = await pull(house, path)
    assert pulled.ended == "short"
    await until_idle(house)
    assert house.stored_blobs() == set()
    registry.heal()
    assert (await pull(house, path)).digest == digest_of(BIG)


@pytest.mark.parametrize("number", [0, 1, 2, 4])
async def test_one_that_stops_does_not_hold_the_blob_up(
    house: House, registry: FakeRegistry, number: int
) -> None:
    path = add_layer(registry, BIG)
    if number:
        registry.fail(*FAR, kind="blob", times=number)
    registry.fail(*FAR, Stall(400 * 1024 - 32 * 1024), kind="blob", times=1)
    registry.fail(*FAR, kind="blob")
    pulled = await pull(house, path)
    assert (pulled.digest, pulled.ended) == (digest_of(BIG), "complete")
    assert pulled.seconds < 8, "and not the 30 s after which it would be given up"


async def test_a_slow_one_is_shared_out(house: House, registry: FakeRegistry) -> None:
    path = add_layer(registry, BIG)
    registry.fail(*FAR, kind="blob", times=2)
    registry.fail(Delay(0.05), Trickle(200_000), kind="blob", times=1)
    registry.fail(*FAR, kind="blob")
    pulled = await pull(house, path)
    assert (pulled.digest, pulled.ended) == (digest_of(BIG), "complete")
    assert registry.requests[2].bytes_sent < 0.9 * stretches.LEAST_BYTES


async def test_what_a_reader_waits_for_comes_first(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody fetches it already, but will not be there for long."""
    monkeypatch.setattr(stretches, "LEAST_BYTES", 8_000_000)
    url = house.url + add_layer(registry, BIG)
    registry.fail(Delay(0.05), Trickle(1_000_000), kind="blob")
    async with raw_open(url) as stream:
        await stream.read(1)
        await registry.until_count(3, kind="blob")
        await asyncio.sleep(0.2)
        wanted = registry.requests[1].headers["Range"].removeprefix("bytes=").split("-")
        start = int(wanted[0]) + 5_000_000
        body = await read_some(url, 1000, {"Range": f"bytes={start}-{start + 999}"})
        assert body == BIG[start : start + 1000]
        asked = [seen.headers.get("Range", "") for seen in registry.requests]
        begun = [int(each.removeprefix("bytes=").split("-")[0]) for each in asked if each]
        assert any(start - FAR_AHEAD_BYTES <= each <= start for each in begun), (start, begun)
        registry.heal()


async def test_all_blobs_together_are_bounded(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "MAX_FURTHER", 4)
    datas = [some_bytes(len(BIG), seed) for seed in range(10, 14)]
    registry.fail(*FAR, kind="blob")
    pulls = [pull(house, add_layer(registry, data)) for data in datas]
    pulled = await asyncio.gather(*pulls)
    assert [each.digest for each in pulled] == [digest_of(data) for data in datas]
    assert registry.most_at_once <= 2 * (len(datas) + 4), "each may end while its next begins"


async def test_each_connection_is_redirected_for_itself(
    house: House, registry: FakeRegistry
) -> None:
    async with FakeRegistry() as cdn:
        registry.serve_blobs_from(cdn)
        registry.fail(Delay(0.05), kind="blob")
        cdn.fail(Trickle(RATE, chunk_bytes=32 * 1024), kind="blob")
        pulled = await pull(house, add_layer(registry, BIG))
        assert (pulled.digest, pulled.ended) == (digest_of(BIG), "complete")
        await until_idle(house)
        assert cdn.requests[0].bytes_sent < 0.75 * len(BIG)
        assert cdn.most_at_once >= 3
        assert cdn.count(status=206) >= 2
        assert cdn.body_bytes() <= SEAMS * len(BIG)


async def test_what_several_brought_outlives_the_mirror(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = add_layer(registry, BIG)
    registry.fail(*FAR, kind="blob")
    async with (
        mirroring(tmp_path, {UPSTREAM: registry}, shutdown_grace="0s") as house,
        raw_open(house.url + path) as stream,
    ):
        await stream.read(1)
        await registry.until(lambda: registry.body_bytes("blob") > len(BIG) / 2)
        stream.hang_up()
    registry.heal()
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        pulled = await pull(house, path)
        assert (pulled.digest, pulled.ended) == (digest_of(BIG), "complete")
        await until_idle(house)
    assert registry.body_bytes("blob") <= 1.25 * len(BIG)
