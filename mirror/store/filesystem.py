"""Stored blobs as files.

    <path>/lock                        held (flock) by the one process that serves from this folder
    <path>/index.db                    what is known about the blobs (see index.py)
    <path>/index.backup.db             a copy of it, an hour old at most (see backup.py)
    <path>/index.db.damaged-<time>     one that could not be read (see recovery.py)
    <path>/blobs/sha256/ab/abcdef…     whole, verified, immutable
    <path>/damaged/sha256/<hex>        a blob that was found wrong; kept for the operator to look at
    <path>/staging/sha256/<hex>/       on the way in (see staging.py)
    <path>/staging/<random>            a small content that is being written

All paths are made here. A blob gets its final name by rename, after its bytes were hashed and
synced: nothing half-done ever has one.
"""

import asyncio
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, TypeVar

from mirror.errors import DigestInvalid, StorageFailed
from mirror.names import Digest
from mirror.store.handles import Handle, Handles, StoredBlob
from mirror.store.leftovers import prune

# What a disk says that is mounted read-only, or full.
REFUSALS = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT})
# Of the disk, a hundredth at most.
MAX_RESERVE_BYTES = 64 * 1024 * 1024

F = TypeVar("F", BinaryIO, Handle)


async def opened(work: Callable[[], F | None]) -> F | None:
    """What `work` opens, in a thread; closed again if its asker is cancelled meanwhile."""
    opening = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unclaimed)
        raise


def _close_unclaimed(opening: "asyncio.Future[F | None]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        unclaimed = opening.result()
        if unclaimed is not None:
            unclaimed.close()


class FolderInUse(Exception):
    """Another process serves from this folder."""


class BlobStore:
    """Blobs by digest below one folder. Every method that touches the disk does so in a thread.

    `noted` is told after each write whether the disk took it, from any thread.
    """

    def __init__(self, path: Path, noted: Callable[[bool], None] = lambda _: None) -> None:
        self.path = path
        self.is_writable = True
        # Why the disk took nothing when the store was opened.
        self.refusal: str | None = None
        # How many blobs were set aside so far: what was opened before may be one of them.
        self.set_aside_count = 0
        self._noted = noted
        self._locks: list[int] = []
        self._is_furnished = False
        self._handles = Handles()

    @property
    def index_path(self) -> Path:
        return self.path / "index.db"

    @property
    def backup_path(self) -> Path:
        return self.path / "index.backup.db"

    def note_written(self, is_taken: bool) -> None:
        self.is_writable = is_taken
        self._noted(is_taken)

    def blob_path(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex

    def staging_path(self, digest: Digest) -> Path:
        return self.path / "staging" / digest.algorithm / digest.hex

    async def open(self) -> None:
        """Makes the folders, takes the lock, drops what is of no use in staging. A disk that takes
        no writes may be read all the same: `refusal` says why.

        Raises FolderInUse, OSError.
        """
        await asyncio.to_thread(self._open)

    async def aclose(self) -> None:
        self._handles.close()
        locks, self._locks = self._locks, []
        await asyncio.to_thread(_close_all, locks)

    def find_open(self, digest: Digest) -> StoredBlob | None:
        """One that is open already, and still what it was."""
        return self._handles.take(digest)

    async def find(self, digest: Digest) -> Handle | None:
        """Opens the blob; `keep` or close it. Raises OSError, with the disk's own reason."""
        return await opened(lambda: self._find(digest))

    def keep(self, digest: Digest, handle: Handle) -> StoredBlob:
        """Leaves it open for others, who will not look closer."""
        return self._handles.keep(digest, handle)

    def is_doubted(self, digest: Digest) -> bool:
        """Whether a reader of the open blob did not get what it should."""
        return self._handles.is_doubted(digest)

    async def set_aside(self, digest: Digest, inode: int | None) -> bool:
        """Takes the blob out of use unless its name has another file by now; None: whatever is
        there. Whether it was there. Raises OSError.
        """
        self._handles.drop(digest)
        is_gone = await asyncio.to_thread(self._set_aside, digest, inode)
        self._handles.drop(digest)
        self.set_aside_count += 1
        return is_gone

    async def has(self, digest: Digest) -> bool:
        return await asyncio.to_thread(self._has, digest)

    async def write(self, digest: Digest, content: bytes) -> None:
        """Stores a small content whose digest was checked. Raises StorageFailed."""
        await asyncio.to_thread(self._write, digest, content)

    async def check_writable(self) -> None:
        """Raises StorageFailed."""
        await asyncio.to_thread(self._check_writable)

    def holds_any(self) -> bool:
        """Whether there are blobs. Blocking. Raises OSError."""
        return next(self.walk(), None) is not None

    def walk(self) -> Iterator[tuple[Digest, int, float]]:
        """All blobs: their size, and when they were stored. Blocking. Raises OSError."""
        for path in (self.path / "blobs").glob("*/*/*"):
            try:
                digest = Digest.parse(f"{path.parent.parent.name}:{path.name}")
            except DigestInvalid:
                continue
            if self.blob_path(digest) == path and path.is_file():
                found = path.stat()
                yield digest, found.st_size, found.st_mtime

    def room_bytes(self) -> int:
        """What downloads may fill: all that is free but a reserve for the index. Blocking.

        Raises StorageFailed.
        """
        try:
            disk = os.statvfs(self.path)
        except OSError as error:
            raise storage_failed(error) from error
        reserve_bytes = min(MAX_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 100)
        return max(0, disk.f_bavail * disk.f_frsize - reserve_bytes)

    def commit(self, data: Path, digest: Digest) -> None:
        """Gives a synced file its final name. Blocking: call it from a thread. Raises OSError."""
        target = self.blob_path(digest)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            data.replace(target)
            _sync_folder(target.parent)
        except OSError:
            self.note_written(False)
            raise
        self.note_written(True)

    def _open(self) -> None:
        try:
            self._furnish()
        except OSError as error:
            if not is_refusal(error) or not self.path.is_dir():
                raise
        self._locks = _locked(self.path)
        try:
            self._tidy()
        except OSError:
            _close_all(self._locks)
            self._locks = []
            raise

    def _tidy(self) -> None:
        """As far as the disk takes it. Raises OSError."""
        try:
            prune(self.path / "staging")
        except OSError as error:
            if not is_refusal(error) and (self.path / "staging").exists():
                raise
        try:
            self._check_writable()
        except StorageFailed as error:
            self.refusal = error.message

    def _furnish(self) -> None:
        """Makes the folders, once: as soon as the disk takes them. Raises OSError."""
        if not self._is_furnished:
            for name in ("blobs", "staging"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            self._is_furnished = True

    def _has(self, digest: Digest) -> bool:
        try:
            return self.blob_path(digest).is_file()
        except OSError as error:
            raise storage_failed(error) from error

    def _find(self, digest: Digest) -> Handle | None:
        try:
            # What is no file but a pipe, say, must not be waited for.
            descriptor = os.open(self.blob_path(digest), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, "a blob's place is taken by something else")
        return Handle(open(descriptor, "rb", buffering=0), found.st_size)

    def _set_aside(self, digest: Digest, inode: int | None) -> bool:
        path = self.blob_path(digest)
        try:
            if inode is not None and path.stat().st_ino != inode:
                return False
            folder = self.path / "damaged" / digest.algorithm
            folder.mkdir(parents=True, exist_ok=True)
            aside, number = folder / digest.hex, 1
            while aside.exists():
                aside, number = folder / f"{digest.hex}.{number}", number + 1
            path.rename(aside)
        except FileNotFoundError:
            return False
        return True

    def _check_writable(self) -> None:
        try:
            self._furnish()
            with TemporaryFile(dir=self.path / "staging") as file:
                file.write(b"ready?")
        except OSError as error:
            self.note_written(False)
            raise storage_failed(error) from error
        self.note_written(True)

    def _write(self, digest: Digest, content: bytes) -> None:
        """Writers of one content do not share a file: one may be there when the other commits."""
        beside = self.path / "staging" / secrets.token_hex(16)
        try:
            self._furnish()
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self.commit(beside, digest)
        except OSError as error:
            self.note_written(False)
            raise storage_failed(error) from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def is_refusal(error: BaseException | None) -> bool:
    """Whether the disk takes no writes, rather than fails."""
    return isinstance(error, OSError) and error.errno in REFUSALS


def _locked(folder: Path) -> list[int]:
    """What is held while the folder is in use: the folder, where its file system has locks for
    folders, and a file in it, unless there is none and the disk takes none.

    Raises FolderInUse, OSError.
    """
    held = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        _lock(held[0], is_needed=False)
        held += _lock_file(folder / "lock")
        for descriptor in held[1:]:
            _lock(descriptor, is_needed=True)
    except BaseException as error:
        _close_all(held)
        if isinstance(error, BlockingIOError):
            raise FolderInUse(str(folder)) from None
        raise
    return held


def _lock(descriptor: int, *, is_needed: bool) -> None:
    """Raises BlockingIOError; OSError where it `is_needed`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if is_needed or isinstance(error, BlockingIOError):
            raise


def _lock_file(path: Path) -> list[int]:
    """Opened for reading where the disk takes no writes; none, if it is not there either.

    Raises OSError.
    """
    try:
        return [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)]
    except OSError as error:
        if not is_refusal(error):
            raise
    try:
        return [os.open(path, os.O_RDONLY)]
    except FileNotFoundError:
        return []


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def storage_failed(error: OSError) -> StorageFailed:
    """What a client is told of a disk that fails."""
    return StorageFailed(f"this mirror's disk fails: {error.strerror}; its operator should look")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
