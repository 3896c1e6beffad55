"""The cache keeps to its size, and what is worth least makes room."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from mirror.downloads import tries
from mirror.errors import StorageFailed
from mirror.names import Digest
from mirror.retention import worth
from mirror.store import eviction, leftovers
from mirror.store.blobs import BlobStore
from mirror.store.index import Index
from mirror.store.readers import HANDOVER_SECONDS
from tests.fakes.client import raw_open
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import Cut, Gate, HangUp, NoLength, Stall
from tests.fakes.images import digest_of
from tests.fakes.ratelimit import RateLimit
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import (
    APP,
    UPSTREAM,
    add_layer,
    eventually,
    on_disk_bytes,
    path_of,
    some_bytes,
    until_idle,
    until_stored,
)
from tests.support.storeroom import Storeroom, storeroom

MIB = 1024 * 1024


# --- Through the front door -----------------------------------------------------------------------


def bounded(
    folder: Path, registry: FakeRegistry, size: str = "10MiB"
) -> AbstractAsyncContextManager[House]:
    storage = {"path": str(folder / "data"), "max_size": size}
    return mirroring(folder, {UPSTREAM: registry}, storage=storage)


async def pull(house: House, path: str, data: bytes) -> None:
    assert (await house.get(path)).body == data
    await until_idle(house)


async def test_it_never_takes_more_than_it_may(registry: FakeRegistry, tmp_path: Path) -> None:
    layers = [some_bytes(2_500_000, seed) for seed in range(12)]
    paths = [add_layer(registry, data) for data in layers]
    most = 0
    async with bounded(tmp_path, registry) as house, asyncio.TaskGroup() as tasks:

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, await asyncio.to_thread(on_disk_bytes, house.storage))
                await asyncio.sleep(0.002)

        watching = tasks.create_task(watch())
        for first in range(0, 12, 3):
            three = slice(first, first + 3)
            answers = await asyncio.gather(*(house.get(path) for path in paths[three]))
            assert [answer.body for answer in answers] == layers[three]
            await until_idle(house)
        watching.cancel()
        assert 7_500_000 <= most <= 10 * MIB
        assert await house.metric("mirror_cache_bytes") <= 10 * MIB
        assert await house.metric("mirror_evicted_blobs_total") >= 8
        assert digest_of(layers[-1]) in house.stored_blobs()
        stored = len(house.stored_blobs())
        assert await house.metric("mirror_cache_blobs") == stored


async def test_manifests_that_come_all_at_once_take_no_more_either(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = [{"note": f"{n}" + "x" * 500_000} for n in range(12)]
    images = [registry.add_image(APP, f"t{n}", annotations=note) for n, note in enumerate(notes)]
    path = f"/v2/{UPSTREAM}/{APP}/manifests/t"
    most = 0
    write = BlobStore.write

    async with bounded(tmp_path, registry, "2MiB") as house:

        async def writing(store: BlobStore, digest: Digest, content: bytes) -> None:
            nonlocal most
            await write(store, digest, content)
            most = max(most, await asyncio.to_thread(on_disk_bytes, house.storage))

        monkeypatch.setattr(BlobStore, "write", writing)
        answers = await asyncio.gather(*(house.get(f"{path}{n}") for n in range(12)))
        assert [answer.body for answer in answers] == [image.manifest for image in images]
        assert 1_500_000 <= most <= 2 * MIB
        assert (await house.get(f"{path}11")).body == images[11].manifest


async def test_what_is_used_stays(registry: FakeRegistry, tmp_path: Path) -> None:
    layers = [some_bytes(2_500_000, seed) for seed in range(8)]
    paths = [add_layer(registry, data) for data in layers]
    async with bounded(tmp_path, registry) as house:
        for path, data in zip(paths, layers, strict=True):
            await pull(house, path, data)
            await pull(house, paths[0], layers[0])
    assert registry.count("GET", "blob") == 8, "the first one was here each time"


async def test_the_order_outlives_the_process(registry: FakeRegistry, tmp_path: Path) -> None:
    layers = [some_bytes(2_500_000, seed) for seed in range(5)]
    paths = [add_layer(registry, data) for data in layers]
    async with bounded(tmp_path, registry) as house:
        for n in (0, 1, 2, 0):
            await pull(house, paths[n], layers[n])
    async with bounded(tmp_path, registry) as house:
        for n in (3, 4):
            await pull(house, paths[n], layers[n])
        assert digest_of(layers[0]) in house.stored_blobs()
        assert digest_of(layers[1]) not in house.stored_blobs()


async def test_a_reader_reads_on(registry: FakeRegistry, tmp_path: Path) -> None:
    """What is being read is not chosen; and if its name goes all the same, its bytes do not."""
    layers = [some_bytes(4_000_000, seed) for seed in range(6)]
    paths = [add_layer(registry, data) for data in layers]
    async with bounded(tmp_path, registry) as house:
        await pull(house, paths[0], layers[0])
        async with raw_open(house.url + paths[0]) as stream:
            body = await stream.read(1000)
            for path, data in zip(paths[1:], layers[1:], strict=True):
                await pull(house, path, data)
            while piece := await stream.read():
                body += piece
            assert (body, stream.ended) == (layers[0], "complete")


@pytest.mark.parametrize("joined", [False, True], ids=["stored", "joined"])
@pytest.mark.parametrize("fronts", [0, 2])
async def test_what_a_client_takes_slowly_stays(
    registry: FakeRegistry, tmp_path: Path, fronts: int, joined: bool
) -> None:
    """Also where it is sent by a process that evicts nothing, and where it has joined an arrival;
    until the client has all of it, or hangs up.
    """
    data, gate = some_bytes(12_000_000), Gate(1_000_000)
    path = add_layer(registry, data)
    others = [some_bytes(8_000_000, seed) for seed in range(1, 5)]
    other_paths = [add_layer(registry, each) for each in others]
    storage = {"path": str(tmp_path / "data"), "max_size": "24MiB"}
    upstreams: dict[str, Any] = {UPSTREAM: registry}
    async with mirroring(tmp_path, upstreams, fronts=fronts, storage=storage) as house:
        if joined:
            registry.fail(gate, kind="blob", times=1)
        else:
            await pull(house, path, data)
        async with raw_open(house.url + path, receive_buffer_bytes=65_536) as stream:
            body = await stream.read(1000)
            gate.open()
            await until_stored(house, data)
            for each, other in zip(other_paths, others, strict=True):
                assert (await house.get(each)).body == other
                await asyncio.sleep(1.5 * HANDOVER_SECONDS if fronts else 0)
                assert await asyncio.to_thread(on_disk_bytes, house.storage) <= 24 * MIB
            assert digest_of(data) in house.stored_blobs()
            assert await house.metric("mirror_evicted_blobs_total") >= 1
            while not joined and (piece := await stream.read()):
                body += piece
            assert joined or (body, stream.ended) == (data, "complete")

        async def has_gone() -> bool:
            for each, other in zip(other_paths, others, strict=True):
                await pull(house, each, other)
                await asyncio.sleep(1.5 * HANDOVER_SECONDS if fronts else 0)
            return digest_of(data) not in house.stored_blobs()

        await eventually(has_gone)


async def test_a_blob_that_is_larger_than_the_cache_passes(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    data = some_bytes(12_000_000)
    path = add_layer(registry, data)
    small = add_layer(registry, b"small" * 50_000)
    async with bounded(tmp_path, registry) as house:
        await pull(house, small, b"small" * 50_000)
        for _ in range(2):
            await pull(house, path, data)
        assert await house.metric("mirror_requests_total", cache="unstored") == 2
        assert digest_of(data) not in house.stored_blobs()


async def test_a_blob_of_which_nobody_tells_the_size(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.downloads.fill.ROOM_STEP_BYTES", MIB)
    fits, does_not = some_bytes(6_000_000), some_bytes(14_000_000, 1)
    paths = [add_layer(registry, data) for data in (fits, does_not)]
    registry.fail(NoLength(), kind="blob")
    async with bounded(tmp_path, registry) as house:
        await pull(house, paths[0], fits)
        assert digest_of(fits) in house.stored_blobs()
        await pull(house, paths[1], does_not)
        assert digest_of(does_not) not in house.stored_blobs()
        assert on_disk_bytes(house.storage) <= 10 * MIB


async def test_what_broke_off_goes_before_what_is_whole(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    broken, whole, more = (some_bytes(4_000_000, seed) for seed in range(3))
    paths = [add_layer(registry, data) for data in (broken, whole, more)]
    registry.fail(Stall(3_000_000), kind="blob", times=1)
    async with bounded(tmp_path, registry) as house, raw_open(house.url + paths[0]) as stream:
        got = 0
        while got < 2_900_000:
            got += len(await stream.read())
    async with bounded(tmp_path, registry) as house:
        assert house.staged()
        await pull(house, paths[1], whole)
        assert house.staged(), "there is room for both"
        await pull(house, paths[2], more)
        assert not house.staged()
        assert {digest_of(whole), digest_of(more)} <= house.stored_blobs()
        await pull(house, paths[0], broken)


async def test_what_nobody_goes_on_with_goes_while_the_mirror_serves(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only where room is wanted, or at a start."""
    monkeypatch.setattr(eviction, "WRITE_USES_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    path = add_layer(registry, some_bytes(1_000_000))
    registry.fail(Cut(500_000), kind="blob", times=1)
    registry.fail(HangUp(), kind="blob")

    async def is_gone() -> bool:
        return not house.staged()

    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert (await house.get(path)).ended == "short"
        await until_idle(house)
        await asyncio.sleep(0.2)
        assert house.staged(), "somebody may"
        monkeypatch.setattr(leftovers, "ABANDONED_SECONDS", -1)
        await eventually(is_gone)
        assert await house.metric("mirror_cache_bytes", state="staged") == 0


async def test_a_cache_that_is_made_smaller_shrinks(registry: FakeRegistry, tmp_path: Path) -> None:
    layers = [some_bytes(2_000_000, seed) for seed in range(4)]
    async with bounded(tmp_path, registry) as house:
        for data in layers:
            await pull(house, add_layer(registry, data), data)
    async with bounded(tmp_path, registry, "5MiB") as house:

        async def has_shrunk() -> bool:
            cache_bytes = await house.metric("mirror_cache_bytes")
            return cache_bytes <= 5 * MIB and on_disk_bytes(house.storage) <= 5 * MIB

        await eventually(has_shrunk)
        assert digest_of(layers[-1]) in house.stored_blobs()


async def test_room_is_kept_on_the_disk(registry: FakeRegistry, tmp_path: Path) -> None:
    """More than it has, here: then nothing is stored, and everything is pulled."""
    data = some_bytes(300_000)
    path = add_layer(registry, data)
    storage = {"path": str(tmp_path / "data"), "min_free": "4000TiB"}
    async with mirroring(tmp_path, {UPSTREAM: registry}, storage=storage) as house:
        await pull(house, path, data)
        assert house.stored_blobs() == set()
        assert await house.metric("mirror_requests_total", cache="unstored") == 1


async def test_what_a_larger_disk_would_have_saved(registry: FakeRegistry, tmp_path: Path) -> None:
    layers = [some_bytes(3_000_000, seed) for seed in range(4)]
    paths = [add_layer(registry, data) for data in layers]
    async with bounded(tmp_path, registry) as house:
        for n in (0, 1, 2, 3, 0):
            await pull(house, paths[n], layers[n])
        early = "mirror_evicted_too_early_bytes_total"
        assert await house.metric(early, larger_by="10%") == 0
        assert await house.metric(early, larger_by="100%") == 3_000_000


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_manifest_that_is_only_looked_at_empties_nothing(
    registry: FakeRegistry, tmp_path: Path, is_there: bool
) -> None:
    """Whatever sizes it claims of its layers, and whether they exist or not."""
    kept, wanted = some_bytes(4_000_000), some_bytes(100_000, 1)
    image = registry.add_image(APP, layers=[wanted])
    claim = json.loads(image.manifest)
    claim["layers"][0]["size"] = 10_000_000_000
    if not is_there:
        claim["layers"][0]["digest"] = "sha256:" + "0" * 64
    registry.add_manifest(APP, json.dumps(claim).encode(), image.media_type, "claim")
    described = {"endpoints": [registry.url], "prefetch": True}
    storage = {"path": str(tmp_path / "data"), "max_size": "10MiB"}
    async with mirroring(tmp_path, {UPSTREAM: described}, storage=storage) as house:
        await pull(house, add_layer(registry, kept), kept)
        assert (await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/claim")).status == 200
        await asyncio.sleep(0.2)
        await until_idle(house)
        assert digest_of(kept) in house.stored_blobs()
        if is_there:
            await pull(house, path_of(digest_of(wanted)), wanted)
            assert {digest_of(kept), digest_of(wanted)} <= house.stored_blobs()


async def test_for_what_could_never_fit_nothing_goes(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    kept, large = some_bytes(4_000_000), some_bytes(12_000_000, 1)
    async with bounded(tmp_path, registry) as house:
        await pull(house, add_layer(registry, kept), kept)
        await pull(house, add_layer(registry, large), large)
        assert house.stored_blobs() == {digest_of(kept)}


async def test_what_was_committed_as_the_mirror_was_killed_is_known_after_the_next_start(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    data = some_bytes(2_000_000)
    path = add_layer(registry, data)
    async with bounded(tmp_path, registry) as house:
        await pull(house, path, data)
    (blob,) = (house.storage / "blobs").glob("*/*/*")
    (house.storage / "staging" / "sha256" / blob.name).mkdir(parents=True)
    index = await Index.open(house.storage / "index.db")
    await index.forget_blob(Digest.of(data))
    await index.aclose()
    async with bounded(tmp_path, registry) as house:
        assert await house.metric("mirror_cache_bytes") == len(data)
        assert not house.staged()
        assert (await house.get(path)).body == data
    assert registry.count("GET", "blob") == 1


@pytest.mark.parametrize("is_limited", [True, False])
async def test_a_manifest_that_costs_a_pull_is_worth_more(
    registry: FakeRegistry, tmp_path: Path, is_limited: bool
) -> None:
    """If its upstream tells of a limit; a config is free in any case."""
    registry.ratelimit = RateLimit() if is_limited else None
    image = registry.add_image(APP)
    async with bounded(tmp_path, registry) as house:
        for path in (f"/v2/{UPSTREAM}/{APP}/manifests/latest", path_of(image.config)):
            assert (await house.get(path)).status == 200
            await until_idle(house)
    index = tmp_path / "data" / "index.db"
    with closing(sqlite3.connect(index)) as connection:
        rows = connection.execute("SELECT digest, size_bytes, uses, rank FROM blobs").fetchall()
    assert {digest for digest, *_ in rows} == {image.digest, image.config}
    for digest, size_bytes, uses, rank in rows:
        costs_pull = is_limited and digest == image.digest
        assert rank == pytest.approx(worth(size_bytes, uses, costs_pull=costs_pull))


# --- In the room ----------------------------------------------------------------------------------


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Storeroom]:
    async with storeroom(tmp_path / "data") as room:
        yield room


async def test_the_lowest_rank_goes_first(room: Storeroom) -> None:
    digests = [await room.add(b"%d" % n * 100, rank) for n, rank in enumerate((3.0, 1.0, 2.0))]
    evicting = room.eviction(300)
    evicting.room.arriving_bytes = lambda: 100
    await evicting.make_room(100)
    assert not await room.store.has(digests[1])
    assert evicting.floor == 1.0
    evicting.note_use(digests[2])
    evicting.room.arriving_bytes = lambda: 200
    await evicting.make_room(200)
    assert [await room.store.has(digest) for digest in digests] == [False, False, True]
    assert evicting.floor == 3.0


async def test_nothing_goes_that_would_not_be_enough_to_be_read_on(room: Storeroom) -> None:
    digest = await room.add(b"x" * 100, 1.0)
    handle = await room.store.find(digest)
    assert handle is not None
    stored = room.store.keep(digest, handle)
    assert stored is not None
    evicting = room.eviction(150)
    evicting.room.arriving_bytes = lambda: 100
    with pytest.raises(StorageFailed, match="no room for the 100 bytes"):
        await evicting.make_room(100)
    assert await room.store.has(digest)
    stored.close()
    await evicting.make_room(100)
    assert not await room.store.has(digest)


async def test_a_manifest_has_no_place_among_what_may_not_go(room: Storeroom) -> None:
    await room.add(b"x" * 100, 1.0)
    evicting = room.eviction(150)
    async with evicting.place_for(50):
        with pytest.raises(StorageFailed, match="no room for the 151 bytes"):
            async with evicting.place_for(101):
                pass
    assert room.usage.size_bytes == 100
    async with evicting.place_for(51):
        assert room.usage.size_bytes == 0


async def test_what_is_read_stays_though_many_others_were_opened_since(
    room: Storeroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.store.handles.MAX_OPEN_BLOBS", 2)
    digests = [await room.add(b"%d" % n * 100, n) for n in range(4)]
    read = []
    for digest in digests:
        handle = await room.store.find(digest)
        assert handle is not None
        stored = room.store.keep(digest, handle)
        assert stored is not None
        read.append(stored)
    for stored in read[1:]:
        stored.close()
    evicting = room.eviction(300)
    await evicting.make_room(0)
    assert [await room.store.has(each) for each in digests] == [True, False, True, True]
    read[0].close()
    evicting.room.arriving_bytes = lambda: 100
    await evicting.make_room(100)
    assert [await room.store.has(each) for each in digests] == [False, False, True, True]


async def test_what_has_come_again_meanwhile_stays(
    room: Storeroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the index and the file, somebody stores the same blob again."""
    digest = await room.add(b"x" * 100, 1.0)
    delete = BlobStore.delete

    async def deleting(store: BlobStore, inodes: Any) -> None:
        await store.write(digest, b"x" * 100)
        await room.index.add_blob(digest, 100, 2.0)
        await delete(store, inodes)

    monkeypatch.setattr(BlobStore, "delete", deleting)
    evicting = room.eviction(150)
    evicting.room.arriving_bytes = lambda: 100
    await evicting.make_room(100)
    assert await room.store.has(digest)
    assert await room.index.blob_size(digest) == 100


async def test_what_a_kill_left_between_the_index_and_the_disk_goes_at_the_next_start(
    room: Storeroom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = await room.add(b"kept", 2.0), await room.add(b"x" * 100, 1.0)
    delete = BlobStore.delete

    async def killed(store: BlobStore, inodes: Any) -> None:
        assert room.usage.size_bytes == 104, "it takes room until it has gone"
        await asyncio.to_thread(shutil.copytree, store.paths.root, tmp_path / "killed")
        await delete(store, inodes)

    monkeypatch.setattr(BlobStore, "delete", killed)
    evicting = room.eviction(150)
    evicting.room.arriving_bytes = lambda: 100
    await evicting.make_room(100)
    assert not list(room.store.paths.going.glob("*")), "all is done here"
    monkeypatch.undo()
    async with storeroom(tmp_path / "killed") as left:
        assert await left.store.has(gone)
        assert await left.index.usage() == (1, 4), "which counts it no more"
        (noted,) = left.store.paths.going.glob("*")
        noted.write_text(noted.read_text() + f"{kept}\nno digest\nsha256:12")
        await left.eviction(150).take_stock()
        assert not await left.store.has(gone)
        assert await left.store.has(kept), "the index knows it"
        assert not noted.exists()


async def test_a_disk_that_takes_no_list_of_what_goes_lets_it_go_all_the_same(
    room: Storeroom,
) -> None:
    digest = await room.add(b"x" * 100, 1.0)
    room.store.paths.going.touch()  # no folder can be made there
    evicting = room.eviction(150)
    evicting.room.arriving_bytes = lambda: 100
    await evicting.make_room(100)
    assert not await room.store.has(digest)


async def test_an_index_that_forgets_nothing_leaves_no_list(
    room: Storeroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await room.add(b"x" * 100, 1.0)

    async def failing(*_: object) -> None:
        raise StorageFailed("no index")

    monkeypatch.setattr(room.index, "forget_blobs", failing)
    evicting = room.eviction(150)
    evicting.room.arriving_bytes = lambda: 100
    with pytest.raises(StorageFailed, match="no index"):
        await evicting.make_room(100)
    assert await room.store.has(digest)
    assert not list(room.store.paths.going.glob("*"))


async def test_who_needs_room_does_not_wait_for_a_long_clearance(
    room: Storeroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is made much smaller is cleared turn by turn."""
    monkeypatch.setattr(eviction, "BATCH_BLOBS", 1)
    monkeypatch.setattr(eviction, "TURN_SECONDS", 0.0001)
    for n in range(30):
        await room.add(b"%02d" % n * 50, float(n))
    room.usage.add(-30, -3000)  # `open` takes stock
    evicting = room.eviction(1000)
    await evicting.take_stock()
    evicting.open()
    await evicting.make_room(0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while room.usage.size_bytes > 1000:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await evicting.aclose()
    assert room.usage.blobs in (9, 10)


async def test_uses_are_written_down_at_the_end(room: Storeroom) -> None:
    one, two = await room.add(b"one", 1.0), await room.add(b"two", 1.5)
    evicting = room.eviction(1000)
    await evicting.take_stock()
    evicting.open()
    for _ in range(3):
        evicting.note_use(one)
    await evicting.aclose()
    assert [each.digest for each in await room.index.least_worth(2)] == [two, one]


async def test_an_index_that_fails_evicts_nothing(
    room: Storeroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await room.add(b"x" * 100, 1.0)

    async def failing(*_: object) -> None:
        raise StorageFailed("no index")

    evicting = room.eviction(50)
    monkeypatch.setattr(room.index, "least_worth", failing)
    monkeypatch.setattr(eviction, "WRITE_USES_EVERY_SECONDS", 0.01)
    await evicting.take_stock()
    evicting.open()
    with pytest.raises(StorageFailed):
        await evicting.make_room(100)
    await asyncio.sleep(0.05)
    await evicting.aclose()
    assert await room.store.has(digest)
