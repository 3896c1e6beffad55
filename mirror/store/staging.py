"""A blob on its way in: a sparse file, written at any offset, hashed in order, then committed.

    data        the bytes
    progress    what is there: a line `<start> <end>` for each write

What a download leaves when it breaks off, or when its process is killed, is where the next one of
the same digest begins. `progress` is written after the bytes, so that it never tells too much; what
a power cut makes of the two, the digest finds out.
"""

import hashlib
import os
import re
import shutil
import threading
from pathlib import Path
from typing import BinaryIO

from mirror.intervals import Intervals
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.paths import data_in, progress_in

# What is hashed in one go: large, so that the hash seldom has to wait for the interpreter.
HASH_STEP_BYTES = 4 * 1024 * 1024

_WRITTEN = re.compile(rb"(\d{1,18}) (\d{1,18})\n")
_thread = threading.local()


class StagedBlob:
    """One folder in staging. All methods block: call them from a thread. They raise OSError."""

    def __init__(self, store: BlobStore, digest: Digest) -> None:
        self._store = store
        self._folder = store.paths.staged(digest)
        self._digest = digest
        self._hash = hashlib.new(digest.algorithm)
        self._data = self._progress = -1
        self._sync_error: OSError | None = None

    def open(self) -> Intervals:
        """Goes on where an earlier download ended; returns what is there."""
        self._store.leftovers.claim(self._digest)
        self._folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._data = os.open(data_in(self._folder), flags, 0o644)
        self._progress = os.open(progress_in(self._folder), flags | os.O_APPEND, 0o644)
        return _read_progress(progress_in(self._folder), os.fstat(self._data).st_size)

    def open_reader(self) -> BinaryIO:
        """A file of its own for each reader: duplicates would share their offset."""
        try:
            return data_in(self._folder).open("rb", buffering=0)
        except FileNotFoundError:  # committed a moment ago
            return self._store.paths.blob(self._digest).open("rb", buffering=0)

    def write(self, offset: int, data: memoryview) -> None:
        """All of it; on a full disk a write that was cut short is told by the next one."""
        self._check_synced()
        start = offset
        while data:
            written = os.pwrite(self._data, data, offset)
            data, offset = data[written:], offset + written
        os.write(self._progress, b"%d %d\n" % (start, offset))

    def sync(self) -> None:
        """Has the disk take what is written. The system tells only once what went wrong with that:
        it is kept for the next write or the commit, and not raised here.
        """
        try:
            os.fdatasync(self._data)
        except OSError as error:
            self._sync_error = error

    def hash(self, start: int, end: int) -> None:
        """Feeds [start, end) to the hash; calls must follow one another without a gap."""
        view = memoryview(_hash_buffer())
        while start < end:
            count = os.preadv(self._data, [view[: end - start]], start)
            if not count:
                raise OSError(f"staged file ends at {start}, expected {end}")
            self._hash.update(view[:count])
            start += count

    def is_right(self) -> bool:
        """Whether all that was hashed has the digest asked for."""
        return self._hash.hexdigest() == self._digest.hex

    def commit(self, size_bytes: int) -> None:
        """Gives the file its final name. The folder stays until `discard`: without its data, it
        says to the next start that the index may not know the blob.
        """
        self._check_synced()
        os.ftruncate(self._data, size_bytes)
        os.fsync(self._data)
        self._store.commit(data_in(self._folder), self._digest)

    def close(self) -> None:
        """Leaves what is there to the next download; may be called always, also twice."""
        if self._progress >= 0 and os.fstat(self._progress).st_size:
            self._close()
            self._store.leftovers.add(self._digest)
        elif self._progress >= 0:
            self.discard()

    def discard(self) -> None:
        """Closes and removes it; may be called always, also twice."""
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check_synced(self) -> None:
        if self._sync_error is not None:
            raise self._sync_error

    def _close(self) -> None:
        for descriptor in (self._data, self._progress):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._progress = -1


def _read_progress(path: Path, size_bytes: int) -> Intervals:
    """Up to the first line that is not whole; nothing behind the file's end counts."""
    there = Intervals()
    position, text = 0, path.read_bytes()
    while (line := _WRITTEN.match(text, position)) is not None:
        there.add(int(line[1]), min(int(line[2]), size_bytes))
        position = line.end()
    return there


def _hash_buffer() -> bytearray:
    """One for each thread that hashes, not one for each blob that waits."""
    buffer: bytearray | None = getattr(_thread, "buffer", None)
    if buffer is None:
        buffer = _thread.buffer = bytearray(HASH_STEP_BYTES)
    return buffer
