"""An upstream is asked for no more than it may give: connections, and bytes in a second."""

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.upstream.body import Blocks, Receiver
from mirror.upstream.pace import BURST_SECONDS, LEAST_SLICE_BYTES, Pace, Portion
from tests.fakes.auth import BearerAuth
from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.faults import Delay, Fault, Gate, NoLength, Trickle
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.layers import (
    APP,
    UPSTREAM,
    add_layer,
    path_of,
    read_through,
    some_bytes,
    until_idle,
)

RATE = 1_000_000


def anyone() -> bool:
    return True


def nobody() -> bool:
    return False


async def take_all(pace: Pace, size_bytes: int, is_urgent: Any = anyone) -> float:
    """The time when all was taken."""
    while size_bytes > 0:
        size_bytes -= await pace.take(size_bytes, is_urgent)
    return time.monotonic()


async def emptied(rate: int) -> Pace:
    pace = Pace(rate)
    while pace.take_now(LEAST_SLICE_BYTES, anyone):
        pass
    return pace


# --- The bucket -----------------------------------------------------------------------------------


async def test_without_a_rate_all_may_be_taken_at_once() -> None:
    pace = Pace()
    assert pace.take_now(1 << 40, nobody) == 1 << 40
    pace.charge(1 << 40)
    assert await pace.take(1 << 40, nobody) == 1 << 40
    assert not pace.holds_back


async def test_at_first_there_is_a_burst_and_then_the_rate() -> None:
    pace = Pace(RATE)
    started = time.monotonic()
    await take_all(pace, int(BURST_SECONDS * RATE) - LEAST_SLICE_BYTES)
    assert not pace.holds_back
    ended = await take_all(pace, RATE // 2)
    assert pace.holds_back
    assert ended - started > 0.4


async def test_those_who_wait_share_it() -> None:
    pace = await emptied(RATE)
    started = time.monotonic()
    ended = await asyncio.gather(*(take_all(pace, RATE // 4) for _ in range(4)))
    assert min(ended) - started > 0.6 * (max(ended) - started), "in turns"
    assert max(ended) - started > 0.9


async def test_what_nobody_waits_for_comes_last() -> None:
    pace = await emptied(RATE)
    started = time.monotonic()
    ended = await asyncio.gather(
        take_all(pace, RATE // 10, nobody),
        take_all(pace, RATE // 2),
        take_all(pace, RATE // 2),
    )
    assert ended[0] - started > 0.8 * (max(ended) - started), "sharing, at a third of it"


async def test_what_is_waited_for_meanwhile_comes_earlier() -> None:
    pace = await emptied(RATE)
    asked: list[bool] = []
    async with asyncio.TaskGroup() as group:
        ahead = group.create_task(take_all(pace, RATE // 10, lambda: bool(asked)))
        urgent = group.create_task(take_all(pace, RATE // 2))
        await asyncio.sleep(0.1)
        asked.append(True)
    assert ahead.result() < urgent.result()


async def test_who_goes_away_takes_nothing_along() -> None:
    pace = await emptied(2 * LEAST_SLICE_BYTES)
    waiting = [asyncio.ensure_future(pace.take(LEAST_SLICE_BYTES, anyone)) for _ in range(200)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(SOON_SECONDS):  # and not the 100 s of all
        await pace.take(LEAST_SLICE_BYTES, anyone)


async def test_what_came_uncalled_is_made_up_for() -> None:
    pace = await emptied(RATE)
    started = time.monotonic()
    pace.charge(RATE // 2)
    assert await take_all(pace, 1) - started > 0.4


class Socket(asyncio.Transport):
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def test_a_connection_that_ends_while_it_waits_is_not_waited_for() -> None:
    pace = await emptied(RATE)
    portion = Portion(pace, anyone)
    pace.charge(RATE // 10)
    receiver = Receiver(Socket(), 1000, lambda _: None, Blocks(), portion)
    reading = asyncio.ensure_future(receiver.next_block(30))
    await asyncio.sleep(0)
    receiver.connection_lost(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(SOON_SECONDS):
            await reading


# --- Through the front door -----------------------------------------------------------------------


def described(registry: FakeRegistry, **more: Any) -> dict[str, FakeRegistry | dict[str, Any]]:
    return {UPSTREAM: {"endpoints": [registry.url], **more}}


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("fault", [None, NoLength()])
async def test_two_downloads_share_the_rate_and_a_manifest_does_not_wait(
    tmp_path: Path, is_tls: bool, fault: Fault | None
) -> None:
    tls, more = None, {}
    if is_tls:
        authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        more = {"tls": {"ca_file": str(tmp_path / "ca.pem")}}
    async with FakeRegistry(tls=tls) as registry:
        registry.auth = BearerAuth()
        image = registry.add_image(APP)
        layers = [some_bytes(RATE, seed) for seed in (1, 2)]
        paths = [add_layer(registry, data) for data in layers]
        if fault is not None:
            registry.fail(fault, kind="blob", method="GET")
        upstreams = described(registry, max_rate=f"{RATE}B", **more)
        async with mirroring(tmp_path, upstreams) as house, asyncio.TaskGroup() as group:
            started = time.monotonic()
            tasks = [group.create_task(read_through(house.url + path)) for path in paths]
            await registry.until(lambda: registry.count("GET", "blob", status=200) == 2)
            answer = await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/latest")
            assert answer.body == image.manifest
            assert not any(task.done() for task in tasks)
            reads = await asyncio.gather(*tasks)
            seconds = time.monotonic() - started
            assert [read.digest for read in reads] == [digest_of(data) for data in layers]
            assert seconds > 2 - BURST_SECONDS - 0.5


async def test_what_came_is_given_on_at_once(registry: FakeRegistry, tmp_path: Path) -> None:
    """The first bytes of a download that will take forty seconds."""
    data = some_bytes(40 * RATE)
    path = add_layer(registry, data)
    async with mirroring(tmp_path, described(registry, max_rate=f"{RATE}B")) as house:
        async with asyncio.timeout(SOON_SECONDS):
            reader = await asyncio.open_connection(*house.url.removeprefix("http://").split(":"))
            reader[1].write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = await reader[0].readexactly(RATE // 5)
            reader[1].close()
        assert got


async def test_what_is_fetched_ahead_waits_for_what_is_asked_for(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    layers = [some_bytes(RATE, seed) for seed in range(6)]
    registry.add_image(APP, layers=layers)
    upstreams = described(registry, max_rate=f"{RATE}B", prefetch=True)
    async with mirroring(tmp_path, upstreams) as house:
        await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/latest")
        await registry.until_count(len(layers), kind="blob")
        read = await read_through(house.url + path_of(digest_of(layers[-1])))
        assert read.digest == digest_of(layers[-1])
        fetched = await house.metric("mirror_upstream_bytes_total", kind="blob")
        assert fetched < 4 * RATE, "not all six, of which this is the last"


async def test_an_upstream_that_is_held_back_gets_no_further_connections(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.fail(Delay(0.05), kind="blob")
    data = some_bytes(12_000_000)
    path = add_layer(registry, data)
    async with mirroring(tmp_path, described(registry, max_rate="5MiB")) as house:
        assert (await read_through(house.url + path)).digest == digest_of(data)
    assert registry.count("GET", "blob") == 1


@pytest.mark.parametrize(("max_connections", "of_blobs"), [(2, 1), (6, 4), (12, 8)])
async def test_many_downloads_at_once_stay_under_max_connections(
    registry: FakeRegistry, tmp_path: Path, max_connections: int, of_blobs: int
) -> None:
    layers = [some_bytes(200_000, seed) for seed in range(20)]
    registry.add_image(APP)
    paths = [add_layer(registry, data) for data in layers]
    gate = Gate(1000)
    registry.fail(gate, kind="blob", method="GET")
    upstreams = described(registry, max_connections=max_connections, prefetch=True)
    async with mirroring(tmp_path, upstreams) as house, asyncio.TaskGroup() as group:
        tasks = [group.create_task(house.get(path)) for path in paths]
        await registry.until(lambda: registry.in_flight("blob") == of_blobs)
        assert (await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/latest")).status == 200
        assert registry.in_flight("blob") == of_blobs
        gate.open()
        answers = await asyncio.gather(*tasks)
        assert [answer.body for answer in answers] == layers
        await until_idle(house)
    assert registry.connections_accepted <= max_connections


async def test_of_few_connections_ranges_and_wide_downloads_make_do(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """A far upstream, and clients that ask for the ends of layers first."""
    registry.fail(Delay(0.05), Trickle(4_000_000, chunk_bytes=32 * 1024), kind="blob")
    layers = [some_bytes(9_000_000, seed) for seed in range(3)]
    paths = [add_layer(registry, data) for data in layers]
    async with mirroring(tmp_path, described(registry, max_connections=6)) as house:
        async with asyncio.TaskGroup() as group:
            wholes = [group.create_task(read_through(house.url + path)) for path in paths]
            ends = [
                group.create_task(house.get(path, {"Range": "bytes=8000000-8000999"}))
                for path in paths
            ]
        assert [whole.result().digest for whole in wholes] == [digest_of(each) for each in layers]
        found = [end.result().body for end in ends]
        assert found == [data[8_000_000:8_001_000] for data in layers]
    assert registry.most_at_once <= 4
    assert registry.connections_accepted <= 6
