"""Stored blobs as files.

    <path>/lock                        held (flock) by the one process that serves from this folder
    <path>/index.db                    what is known about the blobs (see index.py)
    <path>/blobs/sha256/ab/abcdef…     whole, verified, immutable
    <path>/staging/sha256/<hex>/data   on the way in (see staging.py)
    <path>/staging/<random>            a small content that is being written

All paths are made here. A blob gets its final name by rename, after its bytes were hashed and
synced: nothing half-done ever has one.
"""

import asyncio
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, TypeVar

from mirror.errors import StorageFailed
from mirror.names import Digest
from mirror.store.handles import Handle, Handles, StoredBlob

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
    """Blobs by digest below one folder. Every method that touches the disk does so in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BinaryIO | None = None
        self._handles = Handles()

    @property
    def index_path(self) -> Path:
        return self.path / "index.db"

    def blob_path(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex

    def staging_path(self, digest: Digest) -> Path:
        return self.path / "staging" / digest.algorithm / digest.hex

    async def open(self) -> None:
        """Makes the folders, takes the lock, drops what an earlier process left in staging.

        Raises FolderInUse, OSError.
        """
        await asyncio.to_thread(self._open)

    async def aclose(self) -> None:
        self._handles.close()
        if self._lock is not None:
            await asyncio.to_thread(self._lock.close)
            self._lock = None

    async def find(self, digest: Digest) -> StoredBlob | None:
        """Opens the blob. Raises StorageFailed when the disk does not let us look."""
        if (stored := self._handles.take(digest)) is not None:
            return stored
        handle = await opened(lambda: self._find(digest))
        return self._handles.keep(digest, handle) if handle is not None else None

    async def has(self, digest: Digest) -> bool:
        return await asyncio.to_thread(self._has, digest)

    async def read(self, digest: Digest) -> bytes | None:
        """The whole of a blob that is known to be small."""
        return await asyncio.to_thread(self._read, digest)

    async def write(self, digest: Digest, content: bytes) -> None:
        """Stores a small content whose digest was checked. Raises StorageFailed."""
        await asyncio.to_thread(self._write, digest, content)

    async def check_writable(self) -> None:
        """Raises StorageFailed."""
        await asyncio.to_thread(self._check_writable)

    def commit(self, data: Path, digest: Digest) -> None:
        """Gives a synced file its final name. Blocking: call it from a thread. Raises OSError."""
        target = self.blob_path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        data.replace(target)
        _sync_folder(target.parent)

    def _open(self) -> None:
        staging = self.path / "staging"
        for folder in (self.path / "blobs", staging):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(staging)
            staging.mkdir()
        except OSError as error:
            lock.close()
            if isinstance(error, BlockingIOError):
                raise FolderInUse(str(self.path)) from None
            raise
        self._lock = lock

    def _has(self, digest: Digest) -> bool:
        try:
            return self.blob_path(digest).is_file()
        except OSError as error:
            raise storage_failed(error) from error

    def _find(self, digest: Digest) -> Handle | None:
        try:
            file = self.blob_path(digest).open("rb", buffering=0)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_failed(error) from error
        return Handle(file, os.fstat(file.fileno()).st_size)

    def _read(self, digest: Digest) -> bytes | None:
        try:
            return self.blob_path(digest).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_failed(error) from error

    def _check_writable(self) -> None:
        try:
            with TemporaryFile(dir=self.path / "staging") as file:
                file.write(b"ready?")
        except OSError as error:
            raise storage_failed(error) from error

    def _write(self, digest: Digest, content: bytes) -> None:
        """Writers of one content do not share a file: one may be there when the other commits."""
        beside = self.path / "staging" / secrets.token_hex(16)
        try:
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self.commit(beside, digest)
        except OSError as error:
            raise storage_failed(error) from error
        finally:
            beside.unlink(missing_ok=True)


def storage_failed(error: OSError) -> StorageFailed:
    """What a client is told of a disk that fails."""
    return StorageFailed(f"this mirror's disk fails: {error.strerror}; its operator should look")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
