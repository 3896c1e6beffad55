"""The blobs' files, as a front process opens them: the stored ones stay open for a while."""

import asyncio
import os
import stat

from mirror.names import Digest
from mirror.store.handles import Handle, Handles, StoredBlob
from mirror.store.paths import Paths, data_in
from mirror.store.readers import Readers
from mirror.threads import opened
from mirror.web.told import ToldFile

# The owner makes room, and tells nobody.
LOOK_SECONDS = 1.0


class Files:
    """From `watch` to `aclose` what the owner deletes does not stay open here."""

    def __init__(self, paths: Paths) -> None:
        self.readers = Readers()
        self._paths = paths
        self._handles = Handles(self.readers)
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        self._task = asyncio.create_task(self._drop_deleted())  # noqa: TID251 - see aclose

    def find_open(self, digest: Digest) -> StoredBlob | None:
        """One that is open already, and still what it was."""
        return self._handles.take(digest)

    async def open(self, told: ToldFile) -> StoredBlob | None:
        """The caller closes it. None: it is not, or no longer, where it was said to be, or did not
        give what it should just now; then the owner, who reads it in our place, finds that out.

        Raises OSError.
        """
        digest = Digest.parse(told.digest)
        if told.is_stored:
            if self._handles.is_doubted(digest):
                self._handles.drop(digest)
                return None
            stored = self._handles.take(digest)
            if stored is not None and stored.inode == told.inode:
                return stored
            if stored is not None:
                stored.close()
                self._handles.drop(digest)
        handle = await opened(lambda: self._find(digest, told.inode))
        if handle is None:
            return None
        if told.is_stored:
            return self._handles.keep(digest, handle)
        handle.count = self.readers.of(digest)
        blob = handle.take()
        handle.close()  # with its only reader
        return blob

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._handles.close)

    async def _drop_deleted(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._handles.drop_deleted()

    def _find(self, digest: Digest, inode: int) -> Handle | None:
        """Staged files become stored ones while we look."""
        for path in (data_in(self._paths.staged(digest)), self._paths.blob(digest)):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            found = os.fstat(descriptor)
            if found.st_ino == inode and stat.S_ISREG(found.st_mode):
                return Handle(open(descriptor, "rb", buffering=0), found.st_size)
            os.close(descriptor)
        return None
