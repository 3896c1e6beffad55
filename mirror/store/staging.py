"""A blob on its way in: a sparse file, written at any offset, hashed in order, then committed."""

import hashlib
import os
import shutil
import threading
from typing import BinaryIO

from mirror.names import Digest
from mirror.store.filesystem import BlobStore

# What is hashed in one go: large, so that the hash seldom has to wait for the interpreter.
HASH_STEP_BYTES = 4 * 1024 * 1024

_thread = threading.local()


class StagedBlob:
    """One file in staging. All methods block: call them from a thread. They raise OSError."""

    def __init__(self, store: BlobStore, digest: Digest) -> None:
        self._store = store
        self._folder = store.staging_path(digest)
        self._digest = digest
        self._hash = hashlib.new(digest.algorithm)
        self._descriptor = -1

    def create(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(self._folder / "data", flags, 0o644)

    def open_reader(self) -> BinaryIO:
        """A file of its own for each reader: duplicates would share their offset."""
        try:
            return (self._folder / "data").open("rb", buffering=0)
        except FileNotFoundError:  # committed a moment ago
            return self._store.blob_path(self._digest).open("rb", buffering=0)

    def write(self, offset: int, data: memoryview) -> None:
        """All of it; on a full disk a write that was cut short is told by the next one."""
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written

    def hash(self, start: int, end: int) -> None:
        """Feeds [start, end) to the hash; calls must follow one another without a gap."""
        view = memoryview(_hash_buffer())
        while start < end:
            count = os.preadv(self._descriptor, [view[: end - start]], start)
            if not count:
                raise OSError(f"staged file ends at {start}, expected {end}")
            self._hash.update(view[:count])
            start += count

    def is_right(self) -> bool:
        """Whether all that was hashed has the digest asked for."""
        return self._hash.hexdigest() == self._digest.hex

    def commit(self) -> None:
        os.fsync(self._descriptor)
        self._store.commit(self._folder / "data", self._digest)
        self.discard()

    def discard(self) -> None:
        """Closes and removes what is left in staging; may be called always, also twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        shutil.rmtree(self._folder, ignore_errors=True)


def _hash_buffer() -> bytearray:
    """One for each thread that hashes, not one for each blob that waits."""
    buffer: bytearray | None = getattr(_thread, "buffer", None)
    if buffer is None:
        buffer = _thread.buffer = bytearray(HASH_STEP_BYTES)
    return buffer
