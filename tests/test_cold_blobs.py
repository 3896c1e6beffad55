"""Blobs that are not here yet: one download for everybody, whatever clients and upstreams do."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from mirror.downloads import crowd, tries
from mirror.store.staging import StagedBlob
from mirror.web import registry as registry_api
from tests.fakes.client import raw_get, raw_open, slow_get
from tests.fakes.faults import (
    Cut,
    Fault,
    Gate,
    Header,
    IgnoreRange,
    NoLength,
    OtherBody,
    Reset,
    Stall,
    Status,
    WrongByte,
    WrongLength,
)
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.crowd import ask, read_all
from tests.support.house import House, mirroring
from tests.support.layers import (
    APP,
    UPSTREAM,
    add_layer,
    eventually,
    get_behind_gate,
    open_descriptors,
    path_of,
    read_some,
    read_through,
    some_bytes,
    until_idle,
    until_stored,
)

BIG = some_bytes(20_000_000)
DATA = some_bytes(3_000_000, seed=1)


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow one another at once."""
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)


async def test_fifty_clients_cost_the_upstream_one_download(
    house: House, registry: FakeRegistry
) -> None:
    url = house.url + add_layer(registry, BIG)
    readers = await asyncio.to_thread(lambda: [ask(url, BIG) for _ in range(50)])
    await asyncio.to_thread(read_all, readers, [])
    assert {(reader.status, reader.position, reader.is_right) for reader in readers} == {
        (200, len(BIG), True)
    }
    assert [seen.method for seen in registry.requests] == ["GET"]
    assert registry.body_bytes() == len(BIG)
    assert await house.metric("mirror_upstream_bytes_total", kind="blob") == len(BIG)
    await until_idle(house)


async def test_who_joins_halfway_has_the_first_half_at_once(
    house: House, registry: FakeRegistry
) -> None:
    gate, half = Gate(len(DATA) // 2), len(DATA) // 2
    url = house.url + add_layer(registry, DATA)
    registry.fail(gate, kind="blob")
    async with asyncio.TaskGroup() as clients:
        first = clients.create_task(house.get(add_layer(registry, DATA)))
        await gate.reached.wait()
        assert await read_some(url, half) == DATA[:half]
        assert not gate.opened.is_set()
        late = clients.create_task(house.get(add_layer(registry, DATA)))
        gate.open()
    assert first.result().body == late.result().body == DATA
    assert registry.count() == 1


async def test_the_first_byte_comes_while_the_upstream_is_still_sending(
    house: House, registry: FakeRegistry
) -> None:
    gate = Gate(10_000)
    url = house.url + add_layer(registry, DATA)
    registry.fail(gate, kind="blob")
    async with raw_open(url) as stream:
        assert (stream.status, stream.headers["Content-Length"]) == (200, str(len(DATA)))
        assert await stream.read(1) == DATA[:1]
        assert not gate.opened.is_set()
        gate.open()


async def test_a_client_that_reads_slowly_delays_nobody(
    house: House, registry: FakeRegistry
) -> None:
    url = house.url + add_layer(registry, BIG)
    async with asyncio.TaskGroup() as clients:
        slow = clients.create_task(slow_get(url, 10_000))
        await registry.until_count(1)
        read = await read_through(url)
        assert (read.digest, read.ended) == (digest_of(BIG), "complete")
        await until_stored(house, BIG)
        assert not slow.done()
        slow.cancel()
    assert registry.count() == 1


async def test_a_download_goes_on_when_all_its_clients_have_gone(
    house: House, registry: FakeRegistry
) -> None:
    gate, part = Gate(len(DATA) // 2), len(DATA) // 10
    url = house.url + add_layer(registry, DATA)
    registry.fail(gate, kind="blob")
    bodies = await asyncio.gather(*(read_some(url, part) for _ in range(10)))
    assert set(bodies) == {DATA[:part]}

    async def is_left_alone() -> bool:
        return await house.metric("mirror_download_followers") == 0

    await eventually(is_left_alone)
    assert await house.metric("mirror_downloads_active") == 1
    gate.open()
    await until_stored(house, DATA)
    await until_idle(house)
    registry.forget()
    assert (await house.get(path_of(digest_of(DATA)))).body == DATA
    assert registry.count() == 0


async def test_a_storm_of_hang_ups_leaks_nothing(house: House, registry: FakeRegistry) -> None:
    open_after = [await storm(house, registry, 200_000 + n) for n in range(3)]
    # The first one opens connections to the upstream and to the index, which are kept.
    assert max(open_after[1:]) <= open_after[0] + 10


async def storm(house: House, registry: FakeRegistry, size: int) -> int:
    """Sixty clients of five blobs leave early; returns how many files are open afterwards."""
    paths = [add_layer(registry, some_bytes(size, seed)) for seed in range(5)]
    gate = Gate(100_000)
    registry.heal()
    registry.fail(gate, kind="blob")

    async def leave(number: int) -> None:
        headers = {"Range": "bytes=50000-"} if number % 3 == 0 else None
        async with raw_open(house.url + paths[number % 5], headers) as stream:
            if number % 2:
                await stream.read(1000)
            stream.hang_up(reset=number % 4 == 0)

    await asyncio.gather(*(leave(number) for number in range(60)))
    gate.open()
    await until_idle(house)
    return open_descriptors()


@pytest.mark.parametrize(
    "faults",
    [
        [NoLength()],
        [NoLength(chunked=False)],
        [NoLength(), IgnoreRange()],
        [Header("Accept-Ranges", None)],
        [IgnoreRange()],
    ],
    ids=repr,
)
@pytest.mark.parametrize("wanted", [None, "bytes=2500000-", "bytes=-100"])
async def test_upstreams_that_say_little(
    house: House, registry: FakeRegistry, faults: list[Fault], wanted: str | None
) -> None:
    path = add_layer(registry, DATA)
    registry.fail(*faults, kind="blob")
    for _ in ("miss", "hit"):
        answer = await house.get(path, {"Range": wanted} if wanted else None)
        expected = {
            None: DATA,
            "bytes=2500000-": DATA[2_500_000:],
            "bytes=-100": DATA[-100:],
        }[wanted]
        assert (answer.status, answer.ended) == (206 if wanted else 200, "complete")
        assert answer.body == expected
        await until_stored(house, DATA)


async def test_an_old_client_gets_a_length_in_any_case(
    house: House, registry: FakeRegistry
) -> None:
    """HTTP/1.0, as nginx speaks to what it stands before, has no chunks."""
    path = add_layer(registry, DATA)
    registry.fail(NoLength(), kind="blob")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    writer.write(f"GET {path} HTTP/1.0\r\nHost: mirror\r\n\r\n".encode())
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert f"content-length: {len(DATA)}" in head.decode().lower()
    assert body == DATA


@pytest.mark.parametrize(
    "end", [Cut(1_234_567), Reset(1_234_567), Cut(0), Cut(2_999_999)], ids=repr
)
@pytest.mark.parametrize("more", [[], [NoLength()], [IgnoreRange()]], ids=repr)
@pytest.mark.usefixtures("hurry")
async def test_a_broken_download_goes_on_where_it_broke(
    house: House, registry: FakeRegistry, end: Cut | Reset, more: list[Fault]
) -> None:
    path = add_layer(registry, DATA)
    registry.fail(end, *more, kind="blob", times=1)
    if IgnoreRange() in more:
        registry.fail(*more, kind="blob")
    answer = await house.get(path)
    assert (answer.body, answer.ended) == (DATA, "complete")
    assert registry.count() == 2
    await until_stored(house, DATA)


async def test_what_came_before_a_break_is_not_fetched_again(
    house: House, registry: FakeRegistry
) -> None:
    path = add_layer(registry, DATA)
    gate = Gate(2_000_000)
    registry.fail(gate, Cut(2_000_001), kind="blob", times=1)
    async with raw_open(house.url + path) as stream:
        body = b""
        while len(body) < len(DATA) and (data := await stream.read()):
            body += data
            if len(body) == 2_000_000:
                gate.open()
    assert body == DATA
    assert registry.requests[1].headers["Range"] in ("bytes=2000000-", "bytes=2000001-")


@pytest.mark.parametrize(
    "faults",
    [
        [Cut(1_500_000), IgnoreRange()],
        [Reset(1_500_000), IgnoreRange()],
        [Cut(1_500_000), NoLength(), IgnoreRange()],
        [Cut(1_500_000), NoLength(chunked=False), IgnoreRange()],
        [WrongLength(7)],
        [WrongLength(-7)],
    ],
    ids=repr,
)
@pytest.mark.usefixtures("hurry")
async def test_what_stays_broken_is_cut_short_until_it_heals(
    house: House, registry: FakeRegistry, faults: list[Fault]
) -> None:
    path = add_layer(registry, DATA)
    registry.fail(*faults, kind="blob")
    answer = await house.get(path)
    assert (answer.status, answer.ended) == (200, "short")
    assert DATA.startswith(answer.body)
    assert len(answer.body) < len(DATA)
    await until_idle(house)
    assert house.stored_blobs() == set()
    registry.heal()
    answer = await house.get(path)
    assert (answer.status, answer.body) == (200, DATA)


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_range_waits_for_the_digest_where_no_size_is_told(
    house: House, registry: FakeRegistry, chunked: bool
) -> None:
    """An early end is not taken for the blob's size: neither 416 nor a wrong Content-Range."""
    path = add_layer(registry, DATA)
    registry.fail(Cut(1_500_000), NoLength(chunked), IgnoreRange(), kind="blob")
    for wanted in ("bytes=2000000-", "bytes=-100"):
        assert (await house.get(path, {"Range": wanted})).status == 502
    registry.heal()
    assert (await house.get(path, {"Range": "bytes=-100"})).body == DATA[-100:]


async def test_a_range_does_not_wait_for_a_size_for_ever(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_api, "ANSWER_SECONDS", 0.1)
    path = add_layer(registry, DATA)
    gate = Gate(1_000_000)
    registry.fail(NoLength(), gate, kind="blob")
    assert (await house.get(path, {"Range": "bytes=7-"})).status == 504
    gate.open()
    await until_stored(house, DATA)
    assert registry.count() == 1


@pytest.mark.usefixtures("hurry")
async def test_a_size_that_shrinks_on_the_way_is_an_error_and_no_hang(
    house: House, registry: FakeRegistry
) -> None:
    path = add_layer(registry, DATA)
    shorter = Status(200, {}, DATA[:1000])
    registry.fail(NoLength(), Cut(100_000), kind="blob", times=1)
    registry.fail(shorter, kind="blob", times=2)
    registry.fail(shorter, NoLength(), kind="blob")
    answer = await house.get(path)
    assert (answer.status, answer.ended) == (200, "short")
    await until_idle(house)
    registry.heal()
    assert (await house.get(path)).body == DATA


async def test_who_asks_again_at_once_gets_an_untouched_second_download(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the failed one leaves in staging is gone before the next one writes there."""
    discard, discarded = StagedBlob.discard, list[StagedBlob]()

    def discard_late(self: StagedBlob) -> None:
        time.sleep(0.2)
        discard(self)
        discarded.append(self)

    async def is_discarded() -> bool:
        return bool(discarded)

    monkeypatch.setattr(StagedBlob, "discard", discard_late)
    path, gate, halfway = add_layer(registry, DATA), Gate(0), Gate(len(DATA) // 2)
    registry.fail(gate, WrongByte(7), kind="blob", times=1)
    registry.fail(halfway, kind="blob")
    assert (await get_behind_gate(house.url + path, gate)).ended == "short"
    async with asyncio.TaskGroup() as clients:
        second = clients.create_task(house.get(path))
        await halfway.reached.wait()
        await eventually(is_discarded)
        halfway.open()
    assert (second.result().body, second.result().ended) == (DATA, "complete")
    await until_stored(house, DATA)


@pytest.mark.usefixtures("hurry")
async def test_what_was_hashed_is_not_written_again(house: House, registry: FakeRegistry) -> None:
    """An upstream that ignores ranges sends the start a second time, and it may be another."""
    path, gate = add_layer(registry, DATA), Gate(1_000_000)
    registry.fail(gate, Cut(1_000_001), kind="blob", times=1)
    registry.fail(IgnoreRange(), WrongByte(5), kind="blob")
    async with raw_open(house.url + path) as stream:
        body = b""
        while len(body) < len(DATA) and (data := await stream.read()):
            body += data
            if len(body) == 1_000_000:
                gate.open()
    assert body == DATA
    await until_idle(house)
    assert (await house.get(path)).body == DATA
    assert registry.count() == 2


async def test_head_on_a_miss_downloads_nothing(house: House, registry: FakeRegistry) -> None:
    path = add_layer(registry, DATA)
    answer = await house.head(path)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(DATA)))
    assert answer.headers["Docker-Content-Digest"] == digest_of(DATA)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert [seen.method for seen in registry.requests] == ["HEAD"]
    assert registry.body_bytes() == 0
    assert house.stored_blobs() == set()


async def test_head_after_the_manifest_asks_nobody(house: House, registry: FakeRegistry) -> None:
    image = registry.add_image(APP, layers=[DATA])
    await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/{image.digest}")
    registry.forget()
    answer = await house.head(path_of(image.layers[0]))
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(DATA)))
    assert registry.count() == 0


async def test_head_where_the_upstream_tells_no_length(
    house: House, registry: FakeRegistry
) -> None:
    path = add_layer(registry, DATA)
    registry.fail(NoLength(), kind="blob")
    answer = await house.head(path)
    assert (answer.status, answer.headers.get("Content-Length")) == (200, None)


async def test_head_where_the_upstream_refuses_head(house: House, registry: FakeRegistry) -> None:
    path = add_layer(registry, DATA)
    registry.fail(Status(403), kind="blob", method="HEAD")
    answer = await house.head(path)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(DATA)))
    assert registry.body_bytes() == 1


async def test_an_empty_blob(house: House, registry: FakeRegistry) -> None:
    path = add_layer(registry, b"")
    for headers in (None, None, {"Range": "bytes=0-"}):
        answer = await house.get(path, headers)
        assert (answer.status, answer.body, answer.ended) == (200, b"", "complete")
    assert registry.count() == 1


async def test_clients_of_two_repositories_share_one_download(
    house: House, registry: FakeRegistry
) -> None:
    gate = Gate(1_000_000)
    registry.fail(gate, kind="blob", method="GET")
    async with asyncio.TaskGroup() as clients:
        first = clients.create_task(house.get(add_layer(registry, DATA)))
        await gate.reached.wait()
        other = clients.create_task(house.get(add_layer(registry, DATA, "org/other")))
        await registry.until_count(2)
        gate.open()
    assert first.result().body == other.result().body == DATA
    assert [(seen.method, seen.repository) for seen in registry.requests] == [
        ("GET", APP),
        ("HEAD", "org/other"),
    ]


async def test_a_stalled_upstream_holds_up_no_other_blob(
    house: House, registry: FakeRegistry
) -> None:
    stuck = [some_bytes(100_000, seed) for seed in range(10, 20)]
    for data in stuck:
        registry.fail(Stall(50_000), kind="blob", reference=digest_of(data))
    async with asyncio.TaskGroup() as clients:
        waiting = [clients.create_task(house.get(add_layer(registry, data))) for data in stuck]
        await registry.until(lambda: sum(seen.held for seen in registry.requests) == len(stuck))
        assert (await house.get(add_layer(registry, DATA))).body == DATA
        registry.release()
    assert [task.result().body for task in waiting] == stuck
    assert (await raw_get(house.url + "/healthz")).status == 200


async def cached_manifest(house: House, registry: FakeRegistry) -> str:
    """The path of an image's layer; the mirror knows its size by the manifest alone."""
    registry.add_image(APP, layers=[DATA])
    assert (await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/latest")).status == 200
    return path_of(digest_of(DATA))


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=2000-2099"}])
async def test_what_cannot_be_the_blob_by_its_size_is_an_error_and_no_part_of_an_answer(
    house: House, registry: FakeRegistry, headers: dict[str, str]
) -> None:
    path = await cached_manifest(house, registry)
    rule = registry.fail(OtherBody(b"not the layer"), kind="blob", times=1)
    answer = await house.get(path, headers)
    assert answer.status == 502
    assert b"sent bytes that are not" in answer.body
    assert rule.used == 1
    assert (await house.get(path)).body == DATA


async def test_a_range_of_a_blob_whose_size_only_the_manifest_tells_comes_as_its_bytes_do(
    house: House, registry: FakeRegistry
) -> None:
    path = await cached_manifest(house, registry)
    gate = Gate(1_000_000)
    registry.fail(NoLength(), gate, kind="blob")
    answer = await get_behind_gate(house.url + path, gate, {"Range": "bytes=100-199"})
    assert (answer.status, answer.body) == (206, DATA[100:200])
    assert answer.headers["Content-Range"] == f"bytes 100-199/{len(DATA)}"


async def test_one_upstream_does_not_take_the_room_of_all(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what nobody follows any more makes room there."""
    monkeypatch.setattr(crowd, "MAX_ARRIVALS_OF_ONE", 3)
    slow = [add_layer(registry, some_bytes(100_000, seed)) for seed in range(4)]
    registry.fail(Stall(1000), kind="blob")
    async with FakeRegistry() as other:
        quick = add_layer(other, DATA).replace(UPSTREAM, "other.test")
        upstreams: dict[str, FakeRegistry | dict[str, Any]] = {
            UPSTREAM: registry,
            "other.test": other,
        }
        async with mirroring(tmp_path, upstreams, shutdown_grace="0s") as house:
            async with AsyncExitStack() as followers:
                for path in slow[:3]:
                    stream = await followers.enter_async_context(raw_open(house.url + path))
                    await stream.read(1)
                assert (await house.get(slow[3])).status == 503
                assert (await house.get(quick)).body == DATA
            registry.heal()
            answer = await house.get_until(slow[3], lambda answer: answer.status == 200)
            assert answer.body == some_bytes(100_000, 3)
