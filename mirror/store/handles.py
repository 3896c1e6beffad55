"""Stored blobs that stay open for a while: a warm one goes out without a hop to a thread.

A file may be shared, since sendfile takes its offset from each call; it is closed when it has
fallen out of use and its last reader is done.
"""

import os
from collections import OrderedDict
from typing import BinaryIO

from mirror.names import Digest
from mirror.store.readers import ReadCount, Readers
from mirror.threads import close_elsewhere

MAX_OPEN_BLOBS = 256


class Handle:
    """One open file and its readers."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self.file = file
        self.size_bytes = size_bytes
        self.is_doubted = False
        # Of the blob, shared with its other files (see `Handles.keep`).
        self.count = ReadCount()
        self._readers = 0
        self._closing = False

    @property
    def inode(self) -> int:
        return os.fstat(self.file.fileno()).st_ino

    def is_as_it_was(self) -> bool:
        """Of the size it was opened with, and not deleted behind our back."""
        found = os.fstat(self.file.fileno())
        return found.st_size == self.size_bytes and found.st_nlink > 0

    def take(self) -> "StoredBlob":
        self._readers += 1
        self.count.number += 1
        return StoredBlob(self)

    def give_back(self) -> None:
        self._readers -= 1
        self.count.number -= 1
        self._close_if_unused()

    def close(self) -> None:
        """Now, or once nobody reads it any more."""
        self._closing = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closing and not self._readers:
            close_elsewhere(self.file)


class StoredBlob:
    """A blob, open for one reader, who closes it; readable whatever becomes of its name."""

    def __init__(self, handle: Handle) -> None:
        self._handle: Handle | None = handle
        self._shared = handle
        self.file = handle.file
        self.size_bytes = handle.size_bytes

    @property
    def inode(self) -> int:
        """Of a blob that is not closed yet."""
        return self._shared.inode

    def doubt(self) -> None:
        """It did not give what it should; nobody else shall be served from it."""
        self._shared.is_doubted = True

    def hand_over(self) -> None:
        """It goes on in another process."""
        self._shared.count.hand_over()

    def close(self) -> None:
        """May be called twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.give_back()


class Handles:
    """The most recently used ones; `readers` counts who reads them, also when they are dropped."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._handles: OrderedDict[Digest, Handle] = OrderedDict()

    def take(self, digest: Digest) -> StoredBlob | None:
        """None: not open, doubted, or no longer what it was; then look at the disk again."""
        handle = self._handles.get(digest)
        if handle is None or handle.is_doubted:
            return None
        if not handle.is_as_it_was():
            self.drop(digest)
            return None
        self._handles.move_to_end(digest)
        return handle.take()

    def is_doubted(self, digest: Digest) -> bool:
        handle = self._handles.get(digest)
        return handle is not None and handle.is_doubted

    def keep(self, digest: Digest, handle: Handle) -> StoredBlob | None:
        """Keeps a file that was just opened, unless another one was first. None: that one is
        doubted, and this one closed, since it may be the same; then look at the disk again.
        """
        kept = self._handles.setdefault(digest, handle)
        if kept is handle:
            handle.count = self._readers.of(digest)
        else:
            handle.close()
        if kept.is_doubted:
            return None
        if len(self._handles) > MAX_OPEN_BLOBS:
            self._handles.popitem(last=False)[1].close()
        return kept.take()

    def drop(self, digest: Digest) -> None:
        if (handle := self._handles.pop(digest, None)) is not None:
            handle.close()

    def drop_deleted(self) -> None:
        """Those whose files are gone, and take their room until nobody has them open."""
        for digest, handle in list(self._handles.items()):
            if not handle.is_as_it_was():
                self.drop(digest)

    def close(self) -> None:
        while self._handles:
            self._handles.popitem()[1].close()
