"""What is written and not on the disk yet stays within bounds, and none of it is lost unheard."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.downloads import writeback
from mirror.downloads.writeback import Writeback
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.staging import StagedBlob
from mirror.upstream import body
from tests.fakes.client import raw_get
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.layers import UPSTREAM, add_layer, eventually, some_bytes, until_idle

KIB = 1024
BLOCK = memoryview(bytes(64 * KIB))
BEGIN_BYTES, MAX_UNSYNCED_BYTES = 4 * len(BLOCK), 8 * len(BLOCK)
# Fill writes one block at a time, and the pieces of a blob a few more. What aiohttp has read before
# the first of them is one, too: up to twice its buffer.
BEYOND_BYTES = 3 * 1024 * KIB
DATA = some_bytes(8 * 1024 * KIB)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "BEGIN_BYTES", BEGIN_BYTES)
    monkeypatch.setattr(writeback, "MAX_UNSYNCED_BYTES", MAX_UNSYNCED_BYTES)
    # They grow where the disk is slower than the upstream.
    monkeypatch.setattr(body, "MAX_BLOCK_BYTES", body.FIRST_BLOCK_BYTES)


class SlowDisk:
    """Takes nothing before `go_on`; `asked` counts how often it was told to take what there is."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = threading.Event()
        self.error: OSError | None = None

    def fdatasync(self, _descriptor: int) -> None:
        self.asked += 1
        self.go_on.wait(DEADLINE_SECONDS)
        if self.error is not None:
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow = SlowDisk()
    monkeypatch.setattr(os, "fdatasync", slow.fdatasync)
    yield slow
    slow.go_on.set()


@pytest.fixture
async def threads() -> AsyncIterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(2)
    yield pool
    await asyncio.to_thread(pool.shutdown)


async def staged_at(folder: Path, number: int = 0) -> StagedBlob:
    staged = StagedBlob(BlobStore(folder), Digest.parse(f"sha256:{number:064x}"))
    await asyncio.to_thread(staged.open)
    return staged


async def staged_bytes(folder: Path) -> int:
    """Of all that is on its way in."""

    def count() -> int:
        return sum(path.stat().st_blocks * 512 for path in folder.rglob("data"))

    return await asyncio.to_thread(count)


async def until_asked(disk: SlowDisk) -> None:
    async def was_asked() -> bool:
        return disk.asked > 0

    await eventually(was_asked)


async def test_writers_wait_for_a_disk_that_is_behind(
    tmp_path: Path, disk: SlowDisk, threads: ThreadPoolExecutor
) -> None:
    behind, staged = Writeback(threads, threads), await staged_at(tmp_path)

    async def write_all() -> None:
        for number in range(12):
            await behind.write(staged, number * len(BLOCK), BLOCK)

    async def is_at_the_bound() -> bool:
        return await staged_bytes(tmp_path) >= MAX_UNSYNCED_BYTES

    writing = asyncio.ensure_future(write_all())
    await eventually(is_at_the_bound)
    await asyncio.sleep(0.05)
    assert (writing.done(), await staged_bytes(tmp_path)) == (False, MAX_UNSYNCED_BYTES)
    disk.go_on.set()
    await writing
    assert await staged_bytes(tmp_path) == 12 * len(BLOCK)
    await behind.let_go(staged)
    await behind.aclose()
    await asyncio.to_thread(staged.discard)


async def test_the_one_with_most_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    synced: list[StagedBlob] = []
    monkeypatch.setattr(StagedBlob, "sync", lambda staged: synced.append(staged))
    behind = Writeback(threads, threads)
    little, much = await staged_at(tmp_path, 1), await staged_at(tmp_path, 2)
    await behind.write(little, 0, BLOCK)
    for number in range(3):
        assert synced == []
        await behind.write(much, number * len(BLOCK), BLOCK)
    await behind.aclose()
    assert synced == [much]
    await asyncio.to_thread(little.discard)
    await asyncio.to_thread(much.discard)


async def test_files_are_not_closed_under_the_disks_hands(
    tmp_path: Path, disk: SlowDisk, threads: ThreadPoolExecutor
) -> None:
    behind = Writeback(threads, threads)
    staged, other = await staged_at(tmp_path, 1), await staged_at(tmp_path, 2)
    for number in range(4):
        await behind.write(staged, number * len(BLOCK), BLOCK)
    await until_asked(disk)
    await behind.let_go(other)
    leaving = asyncio.ensure_future(behind.let_go(staged))
    await asyncio.sleep(0.05)
    assert not leaving.done()
    disk.go_on.set()
    await leaving
    await behind.aclose()
    await asyncio.to_thread(staged.discard)
    await asyncio.to_thread(other.discard)


def test_what_the_disk_lost_is_told_by_the_next_write_and_by_the_commit(
    tmp_path: Path, disk: SlowDisk
) -> None:
    disk.go_on.set()
    disk.error = OSError(errno.EIO, "Input/output error")
    staged = asyncio.run(staged_at(tmp_path))
    staged.write(0, BLOCK)
    staged.sync()
    with pytest.raises(OSError, match="Input/output"):
        staged.write(len(BLOCK), BLOCK)
    with pytest.raises(OSError, match="Input/output"):
        staged.commit(len(BLOCK))
    staged.discard()


async def test_an_upstream_is_read_no_faster_than_the_disk_takes_it(
    registry: FakeRegistry, tmp_path: Path, disk: SlowDisk
) -> None:
    path = add_layer(registry, DATA)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        client = asyncio.ensure_future(raw_get(house.url + path))
        await until_asked(disk)
        await asyncio.sleep(0.5)
        assert await staged_bytes(house.storage) <= MAX_UNSYNCED_BYTES + BEYOND_BYTES
        assert not client.done()
        disk.go_on.set()
        assert (await client).body == DATA
        await until_idle(house)
        assert len(house.stored_blobs()) == 1


async def test_what_the_disk_lost_is_not_stored(
    registry: FakeRegistry, tmp_path: Path, disk: SlowDisk
) -> None:
    disk.go_on.set()
    disk.error = OSError(errno.EIO, "Input/output error")
    path = add_layer(registry, DATA)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        await raw_get(house.url + path)
        await until_idle(house)
        assert (disk.asked > 0, house.stored_blobs(), house.staged()) == (True, set(), [])
        disk.error = None
        assert (await raw_get(house.url + path)).body == DATA
