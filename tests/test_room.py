"""How much the cache and its disk hold: all that is counted, and when a round begins and ends."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from mirror.errors import StorageFailed
from mirror.manifest import OCI_MANIFEST, Manifest
from mirror.names import Digest
from mirror.proxy.contents import Contents
from mirror.store.eviction import Eviction
from mirror.store.quarantine import Damage, Quarantine
from mirror.store.room import HIGH_WATER, LOW_WATER, Water
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.support.layers import on_disk_bytes, some_bytes
from tests.support.storeroom import Storeroom, storeroom


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Storeroom]:
    async with storeroom(tmp_path / "data") as room:
        yield room


# --- What counts ----------------------------------------------------------------------------------


async def keep(room: Storeroom, evicting: Eviction, data: bytes) -> None:
    """As a manifest that an upstream sent."""
    quarantine = Quarantine(room.store, room.index, room.usage, room.metrics)
    contents = Contents(room.store, room.index, quarantine, room.usage, evicting, hot_bytes=0)
    await contents.keep(Manifest(Digest.of(data), OCI_MANIFEST, data))
    await contents.aclose()
    await quarantine.aclose()


async def test_a_manifest_that_comes_has_room_made_for_it(room: Storeroom) -> None:
    for n in range(10):
        await room.add(some_bytes(100, n), float(n))
    await keep(room, room.eviction(1000), some_bytes(350, 99))
    assert room.usage.size_bytes == on_disk_bytes(room.store.paths.root) == 950


async def test_a_manifest_for_which_there_is_no_room_is_not_kept(room: Storeroom) -> None:
    kept = await room.add(some_bytes(800), 1.0)
    await keep(room, room.eviction(1000), some_bytes(1001, 1))
    assert on_disk_bytes(room.store.paths.root) == 800
    assert await room.store.has(kept)


async def test_what_was_set_aside_takes_room_and_never_goes(room: Storeroom) -> None:
    bad, good = await room.add(b"x" * 400, 1.0), await room.add(b"y" * 400, 2.0)
    quarantine = Quarantine(room.store, room.index, room.usage, room.metrics)
    await quarantine.take(bad, Damage.BYTES)
    await quarantine.aclose()
    evicting = room.eviction(1000)
    evicting.room.arriving_bytes = lambda: 601
    with pytest.raises(StorageFailed):
        await evicting.make_room(601)
    assert await room.store.has(good), "nothing goes where all is not enough"
    evicting.room.arriving_bytes = lambda: 600
    await evicting.make_room(600)
    assert not await room.store.has(good)
    assert room.store.paths.damaged_blob(bad, 0).exists()


# --- The disk -------------------------------------------------------------------------------------


@dataclass
class Disk:
    """A disk of so many bytes, of which others take some and the store what its blobs have."""

    root: Path
    size_bytes: int
    others_bytes: int = 0

    def statvfs(self, _path: object) -> SimpleNamespace:
        free_bytes = self.size_bytes - self.others_bytes - on_disk_bytes(self.root)
        return SimpleNamespace(f_frsize=1, f_blocks=self.size_bytes, f_bavail=free_bytes)


@pytest.fixture
def disk(room: Storeroom, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(room.store.paths.root, 1_000_000)
    monkeypatch.setattr(os, "statvfs", disk.statvfs)
    return disk


async def test_what_must_stay_free_on_the_disk_costs_the_blobs_of_least_worth(
    room: Storeroom, disk: Disk
) -> None:
    digests = [await room.add(some_bytes(100_000, n), float(n)) for n in range(5)]
    evicting = room.eviction(None, min_free_bytes=400_000)
    await evicting.make_room(100_000)
    assert room.usage.blobs == 5, "400 000 stay free"
    await evicting.make_room(150_000)
    assert [await room.store.has(each) for each in digests] == [False, True, True, True, True]
    assert room.metric("mirror_evicted_blobs_total") == 1
    disk.others_bytes = 450_000
    evicting.open()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while room.usage.blobs > 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await evicting.aclose()
    assert await room.store.has(digests[4]), "others have filled the disk; the best stays"
    assert room.metric("mirror_evicted_blobs_total") == 4


async def test_a_disk_that_others_fill_leaves_what_would_not_be_enough(
    room: Storeroom, disk: Disk
) -> None:
    await room.add(some_bytes(100_000), 1.0)
    disk.others_bytes = 850_000
    evicting = room.eviction(None, min_free_bytes=0)
    with pytest.raises(StorageFailed, match=r"no room for the 200000 bytes.*max_size.*min_free"):
        await evicting.make_room(200_000)
    assert room.usage.blobs == 1


# --- High and low water ---------------------------------------------------------------------------


@pytest.mark.parametrize("capacity_bytes", [-5, 0, 1, 1000, 10**9, 10**12, 10**15])
def test_the_low_water_is_below_the_high_one(capacity_bytes: int) -> None:
    high, low = (each.free_bytes(capacity_bytes) for each in (HIGH_WATER, LOW_WATER))
    assert 0 <= high <= low <= max(0, capacity_bytes) / 10
    assert Water(0.5, 100).free_bytes(1000) == 100


async def removals(
    room: Storeroom, evicting: Eviction, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """(rounds in the background, blobs removed) while 60 blobs come one after the other, with time
    for a round in between, as far as this machine has any.
    """
    go_down, rounds = Eviction._go_down, 0

    async def counted(down: Eviction) -> None:
        nonlocal rounds
        rounds += 1
        await go_down(down)

    monkeypatch.setattr(Eviction, "_go_down", counted)
    evicting.open()
    for n in range(60):
        await evicting.make_room(1000)
        digest = await room.add(some_bytes(1000, 1000 + n), 1000.0 + n)
        evicting.note_stored(digest, 1000)
        await asyncio.sleep(0.02)
    await evicting.aclose()
    return rounds, int(room.metric("mirror_evicted_blobs_total"))


async def test_a_full_cache_has_a_round_for_several_blobs(
    room: Storeroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(94):
        await room.add(some_bytes(1000, n), float(n))
    rounds, gone = await removals(room, room.eviction(100_000), monkeypatch)
    assert 54 <= gone <= 65
    assert rounds <= 25, "from 95 000 down to 92 000 each time"
    assert room.usage.size_bytes <= 100_000


async def test_a_full_disk_has_a_round_for_several_blobs(
    room: Storeroom, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.size_bytes = 150_000
    for n in range(94):
        await room.add(some_bytes(1000, n), float(n))
    rounds, gone = await removals(room, room.eviction(None, min_free_bytes=50_000), monkeypatch)
    assert 54 <= gone <= 65
    assert rounds <= 25
    assert room.usage.size_bytes <= 100_000


# --- What is told ---------------------------------------------------------------------------------


async def test_how_long_what_went_had_not_been_used(room: Storeroom) -> None:
    await room.add(b"x" * 600, 1.0, used_at=time.time() - 3700)
    evicting = room.eviction(1000)
    evicting.room.arriving_bytes = lambda: 600
    await evicting.make_room(600)
    unused = "mirror_evicted_unused_seconds"
    assert room.metric(f"{unused}_count") == 1
    assert 3700 <= room.metric(f"{unused}_sum") < 3700 + DEADLINE_SECONDS
    assert room.metric(f"{unused}_bucket", le="3600.0") == 0
    assert room.metric(f"{unused}_bucket", le="21600.0") == 1
    assert room.metric("mirror_evicted_bytes_total") == 600


async def test_what_comes_again_after_it_went_counts_with_its_size(room: Storeroom) -> None:
    """Where a cache would have held it that is larger by as much as went since."""
    early = "mirror_evicted_too_early_bytes_total"
    for n, size_bytes in enumerate((300, 200, 400)):
        await room.add(bytes([n]) * size_bytes, float(n))
    evicting = room.eviction(900)
    evicting.room.arriving_bytes = lambda: 500
    await evicting.make_room(500)
    assert room.metric("mirror_evicted_blobs_total") == 2
    room.usage.add(1, 600)  # stored now: 1000
    for n, size_bytes, expected in (
        (9, 700, (0, 0, 0)),  # was never here
        (1, 200, (0, 200, 200)),  # itself and nothing since: a fifth of 1000
        (0, 300, (0, 200, 500)),  # 300, and 200 after it: half
        (0, 300, (0, 200, 500)),  # once only
    ):
        evicting.note_stored(Digest.of(bytes([n]) * size_bytes), size_bytes)
        told = tuple(room.metric(early, larger_by=each) for each in ("10%", "25%", "50%"))
        assert told == expected
    assert room.metric(early, larger_by="100%") == 500
