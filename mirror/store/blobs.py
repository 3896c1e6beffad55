"""Stored blobs as files, by digest.

A blob gets its final name by rename, after its bytes were hashed and synced: nothing half-done ever
has one.
"""

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from mirror.errors import DigestInvalid
from mirror.names import Digest
from mirror.store.disk import put_synced, storage_failed
from mirror.store.folder import Folder
from mirror.store.going import Going
from mirror.store.handles import Handle, Handles, StoredBlob
from mirror.store.readers import Readers
from mirror.threads import opened

_log = structlog.get_logger()


class BlobStore:
    """Blobs below one folder, which is its own, from `open` to `aclose`.

    Coroutines do their work in a thread; of the rest, what looks at the disk says so.
    """

    def __init__(self, path: Path, noted: Callable[[bool], None] = lambda _: None) -> None:
        """For `noted` see Folder."""
        self.folder = Folder(path, noted)
        self.paths = self.folder.paths
        self.leftovers = self.folder.leftovers
        self.going = Going(self.paths)
        # How many blobs were set aside so far: what was opened before may be one of them.
        self.set_aside_count = 0
        self.readers = Readers()
        self._handles = Handles(self.readers)
        # A name is given and taken away by one thread at a time.
        self._naming = threading.Lock()

    async def open(self, *, tidies: bool = True) -> None:
        """`tidies`: of what nobody will go on with. Raises FolderInUse, OSError."""
        await self.folder.open(tidies=tidies)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._handles.close)
        await self.folder.aclose()

    def find_open(self, digest: Digest) -> StoredBlob | None:
        """One that is open already, and still what it was, as fstat tells."""
        return self._handles.take(digest)

    async def find(self, digest: Digest) -> Handle | None:
        """Opens the blob; `keep` or close it. Raises OSError, with the disk's own reason."""
        return await opened(lambda: self._find(digest))

    def keep(self, digest: Digest, handle: Handle) -> StoredBlob | None:
        """Leaves it open for others, who will not look closer. None: it is doubted meanwhile."""
        return self._handles.keep(digest, handle)

    def is_doubted(self, digest: Digest) -> bool:
        """Whether a reader of the open blob did not get what it should."""
        return self._handles.is_doubted(digest)

    async def set_aside(self, digest: Digest, inode: int | None) -> int | None:
        """Takes the blob out of use unless its name has another file by now; None: whatever is
        there. Its size, in bytes, where it was there. Raises OSError.
        """
        self._handles.drop(digest)
        aside_bytes = await asyncio.to_thread(self._set_aside, digest, inode)
        self._handles.drop(digest)
        self.set_aside_count += 1
        return aside_bytes

    def damaged_usage(self) -> tuple[int, int]:
        """(blobs, bytes) that were set aside so far, and are still there. Blocking. Raises
        OSError.
        """
        sizes = [path.stat().st_size for path in self.paths.damaged.glob("*/*")]
        return len(sizes), sum(sizes)

    def is_read(self, digest: Digest) -> bool:
        """Whether somebody reads it, here or in a front process."""
        return self.readers.is_read(digest)

    def inodes(self, digests: Iterable[Digest]) -> dict[Digest, int]:
        """Of those that are there. Blocking. Raises OSError."""
        found = {}
        for digest in digests:
            with suppress(FileNotFoundError):
                found[digest] = self.paths.blob(digest).stat().st_ino
        return found

    async def delete(self, inodes: Mapping[Digest, int]) -> None:
        """These files, and no others that have their names by now. What the disk does not let go is
        logged.
        """
        for digest in inodes:
            self._handles.drop(digest)
        await asyncio.to_thread(self._delete, inodes)
        for digest in inodes:  # opened by somebody meanwhile
            self._handles.drop(digest)

    async def has(self, digest: Digest) -> bool:
        """Raises StorageFailed."""
        return await asyncio.to_thread(self._has, digest)

    async def write(self, digest: Digest, content: bytes) -> None:
        """Stores a small content whose digest was checked. Raises StorageFailed."""
        await asyncio.to_thread(self._write, digest, content)

    def holds_any(self) -> bool:
        """Whether there are blobs. Blocking. Raises OSError."""
        return next(self.walk(), None) is not None

    def walk(self) -> Iterator[tuple[Digest, int, float]]:
        """All blobs: their size, and when they were stored. Blocking. Raises OSError."""
        for path in self.paths.blobs.glob("*/*/*"):
            try:
                digest = Digest.parse(f"{path.parent.parent.name}:{path.name}")
            except DigestInvalid:
                continue
            if self.paths.blob(digest) == path and path.is_file():
                found = path.stat()
                yield digest, found.st_size, found.st_mtime

    def commit(self, data: Path, digest: Digest) -> None:
        """Gives a synced file its final name. Blocking. Raises OSError."""
        target = self.paths.blob(digest)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._naming:
                put_synced(data, target)
        except OSError:
            self.folder.note_written(False)
            raise
        self.folder.note_written(True)

    def _delete(self, inodes: Mapping[Digest, int]) -> None:
        for digest, inode in inodes.items():
            path = self.paths.blob(digest)
            try:
                with self._naming:
                    if path.stat().st_ino == inode:
                        path.unlink()
            except FileNotFoundError:
                pass
            except OSError as error:
                _log.error("a blob is not deleted", digest=str(digest), error=error.strerror)

    def _has(self, digest: Digest) -> bool:
        try:
            return self.paths.blob(digest).is_file()
        except OSError as error:
            raise storage_failed(error) from error

    def _find(self, digest: Digest) -> Handle | None:
        path = self.paths.blob(digest)
        try:
            # What is no file but a pipe, say, must not be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket, or a device behind which there is nothing
                raise _no_file() from error
            raise
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise _no_file()
        return Handle(open(descriptor, "rb", buffering=0), found.st_size)

    def _set_aside(self, digest: Digest, inode: int | None) -> int | None:
        path = self.paths.blob(digest)
        try:
            if inode is not None and path.stat().st_ino != inode:
                return None
            size_bytes = path.lstat().st_size
            number = 0
            while (aside := self.paths.damaged_blob(digest, number)).exists():
                number += 1
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
        except FileNotFoundError:
            return None
        return size_bytes

    def _write(self, digest: Digest, content: bytes) -> None:
        """Writers of one content do not share a file: one may be there when the other commits."""
        beside = self.paths.staged_small()
        try:
            self.folder.furnish()
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self.commit(beside, digest)
        except OSError as error:
            self.folder.note_written(False)
            raise storage_failed(error) from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def _no_file() -> OSError:
    return IsADirectoryError(errno.EISDIR, "a blob's place is taken by something else")
