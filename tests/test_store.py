"""The store: whole contents have names, everything else lies in staging."""

import asyncio
import io
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from mirror.errors import StorageFailed
from mirror.names import Digest
from mirror.store import leftovers
from mirror.store.blobs import BlobStore
from mirror.store.folder import FolderInUse
from mirror.store.leftovers import ABANDONED_SECONDS
from mirror.store.staging import StagedBlob
from mirror.threads import opened
from tests.support.layers import some_bytes

DATA = some_bytes(100_000)
DIGEST = Digest.of(DATA)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[BlobStore]:
    store = BlobStore(tmp_path / "data")
    await store.open()
    yield store
    await store.aclose()


def named(store: BlobStore) -> list[Path]:
    return [path for path in (store.paths.root / "blobs").rglob("*") if path.is_file()]


def staged(store: BlobStore) -> list[Path]:
    return list((store.paths.root / "staging").rglob("*"))


def read(store: BlobStore) -> bytes:
    return store.paths.blob(DIGEST).read_bytes()


async def test_what_was_written_is_found(store: BlobStore) -> None:
    assert not await store.has(DIGEST)
    assert await store.find(DIGEST) is None
    assert named(store) == []
    await store.write(DIGEST, DATA)
    assert await store.has(DIGEST)
    assert read(store) == DATA
    found = await store.find(DIGEST)
    assert found is not None
    assert found.size_bytes == len(DATA)
    found.close()
    assert named(store) == [store.paths.root / "blobs" / "sha256" / DIGEST.hex[:2] / DIGEST.hex]
    assert staged(store) == []


async def test_an_open_blob_outlives_its_name(store: BlobStore) -> None:
    await store.write(DIGEST, DATA)
    found = await store.find(DIGEST)
    assert found is not None
    store.paths.blob(DIGEST).unlink()
    assert await asyncio.to_thread(found.file.read) == DATA
    found.close()


@pytest.mark.parametrize(
    "failing", [(os, "fsync"), (Path, "replace"), (Path, "mkdir")], ids=["fsync", "rename", "mkdir"]
)
async def test_a_write_that_fails_leaves_nothing_half_done(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, failing: tuple[object, str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(*failing, fail)
        with pytest.raises(StorageFailed, match="No space left on device"):
            await store.write(DIGEST, DATA)
    assert named(store) == staged(store) == []
    await store.write(DIGEST, DATA)
    assert read(store) == DATA


async def test_writers_of_one_content_do_not_meet(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, true_fsync, calls = threading.Barrier(2), os.fsync, iter(range(100))

    def fsync(descriptor: int) -> None:
        if next(calls) < both.parties:
            both.wait(10)
        true_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    await asyncio.gather(*(store.write(DIGEST, DATA) for _ in range(both.parties)))
    assert read(store) == DATA
    assert staged(store) == []


async def test_a_disk_that_does_not_let_us_look(store: BlobStore) -> None:
    store.paths.blob(DIGEST).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        await store.find(DIGEST)


async def test_whether_it_can_be_written_to(store: BlobStore) -> None:
    await store.folder.check_writable()
    assert staged(store) == []
    (store.paths.root / "staging").rmdir()
    with pytest.raises(StorageFailed):
        await store.folder.check_writable()
    (store.paths.root / "staging").mkdir()


async def test_a_folder_has_one_process(store: BlobStore) -> None:
    other = BlobStore(store.paths.root)
    with pytest.raises(FolderInUse):
        await other.open()
    await other.aclose()
    await store.aclose()
    await other.open()
    await other.aclose()


async def test_who_finds_the_folder_in_use_touches_nothing(store: BlobStore) -> None:
    (store.paths.root / "staging" / "something").write_bytes(b"on its way in")
    with pytest.raises(FolderInUse):
        await BlobStore(store.paths.root).open()
    assert [path.name for path in staged(store)] == ["something"]


async def test_what_is_of_no_use_in_staging_is_dropped_at_the_start(store: BlobStore) -> None:
    await store.write(DIGEST, DATA)
    await store.aclose()
    begun, without_progress, abandoned = (
        store.paths.staged(Digest.of(text)) for text in (b"begun", b"no progress", b"abandoned")
    )
    for folder in (begun, without_progress, abandoned):
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"half of it")
        (folder / "progress").write_bytes(b"" if folder == without_progress else b"0 10\n")
    os.utime(abandoned / "progress", (0, time.time() - ABANDONED_SECONDS - 10))
    (store.paths.root / "staging" / "stray").write_bytes(b"")
    await store.open()
    kept = [path for path in staged(store) if path.is_file()]
    assert sorted(kept) == [begun / "data", begun / "progress"]
    assert read(store) == DATA


async def test_what_is_opened_for_nobody_is_closed_again() -> None:
    go_on, closed = threading.Event(), threading.Event()
    closed_by: list[int] = []

    class File(io.BytesIO):
        def close(self) -> None:
            closed_by.append(threading.get_ident())
            closed.set()

    def work() -> BinaryIO:
        go_on.wait(10)
        return File()

    asker = asyncio.ensure_future(opened(work))
    await asyncio.sleep(0)
    asker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asker
    assert not closed.is_set()
    go_on.set()
    assert await asyncio.to_thread(closed.wait, 10)
    assert closed_by[0] != threading.get_ident(), "that takes time for the last name of a file"


@pytest.fixture
def staged_blob(tmp_path: Path) -> StagedBlob:
    blob = StagedBlob(BlobStore(tmp_path), DIGEST)
    blob.open()
    return blob


def test_a_blob_may_be_written_in_any_order(staged_blob: StagedBlob, tmp_path: Path) -> None:
    staged_blob.write(60_000, memoryview(DATA[60_000:]))
    staged_blob.write(0, memoryview(DATA[:60_000]))
    staged_blob.hash(0, 10)
    staged_blob.hash(10, len(DATA))
    assert staged_blob.is_right()
    assert not BlobStore(tmp_path).paths.blob(DIGEST).exists()
    staged_blob.commit(len(DATA))
    assert BlobStore(tmp_path).paths.blob(DIGEST).read_bytes() == DATA
    staged_blob.discard()
    assert staged(BlobStore(tmp_path)) == [tmp_path / "staging" / "sha256"]


def test_a_blob_with_a_wrong_byte_is_not_right(staged_blob: StagedBlob) -> None:
    staged_blob.write(0, memoryview(DATA[:-1] + b"?"))
    staged_blob.hash(0, len(DATA))
    assert not staged_blob.is_right()
    staged_blob.discard()


def test_what_is_not_there_is_not_hashed(staged_blob: StagedBlob) -> None:
    staged_blob.write(0, memoryview(DATA[:100]))
    with pytest.raises(OSError, match="ends at 100, expected 101"):
        staged_blob.hash(0, 101)
    staged_blob.discard()


def test_a_disk_that_takes_a_little_at_a_time(
    staged_blob: StagedBlob, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite: Callable[[int, memoryview, int], int] = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:999], at))
    staged_blob.write(0, memoryview(DATA))
    staged_blob.hash(0, len(DATA))
    assert staged_blob.is_right()
    staged_blob.discard()


def test_readers_of_a_blob_stay_through_its_commit(staged_blob: StagedBlob) -> None:
    staged_blob.write(0, memoryview(DATA))
    with staged_blob.open_reader() as before:
        staged_blob.commit(len(DATA))
        with staged_blob.open_reader() as after:
            assert before.read() == after.read() == DATA


def test_discarding_may_be_done_at_any_time(staged_blob: StagedBlob, tmp_path: Path) -> None:
    staged_blob.write(0, memoryview(DATA))
    for _ in range(2):
        staged_blob.discard()
    with pytest.raises(FileNotFoundError):
        staged_blob.open_reader()
    StagedBlob(BlobStore(tmp_path), DIGEST).discard()
    assert named(BlobStore(tmp_path)) == []


async def test_what_nobody_goes_on_with_is_dropped_after_a_week(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Digest.of(b"never")
    begun = StagedBlob(store, digest)

    def leave() -> None:
        begun.open()
        begun.write(0, memoryview(b"begun"))
        begun.close()

    await asyncio.to_thread(leave)
    assert store.leftovers.size_bytes > 0
    await store.leftovers.drop_abandoned()
    assert store.paths.staged(digest).exists()
    monkeypatch.setattr(leftovers, "ABANDONED_SECONDS", -1)
    await store.leftovers.drop_abandoned()
    assert not store.paths.staged(digest).exists()
    assert store.leftovers.size_bytes == 0
