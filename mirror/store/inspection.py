"""One stored blob, read again: is it what its digest says?

Who finds that it is not sets it aside by quarantine.py. What could not be read just now is no proof
that the bytes are wrong.
"""

import asyncio
import hashlib
import os
import time
from contextlib import suppress
from enum import StrEnum

import structlog

from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.handles import Handle
from mirror.store.index import Index
from mirror.store.quarantine import Damage, Quarantine
from mirror.threads import in_thread

STEP_BYTES = 1024 * 1024

_log = structlog.get_logger()


class Finding(StrEnum):
    """`damaged` is out of use by now; `stuck` could not be set aside."""

    RIGHT = "right"
    GONE = "gone"
    DAMAGED = "damaged"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    STUCK = "stuck"


class Inspection:
    def __init__(
        self, store: BlobStore, index: Index, quarantine: Quarantine, metrics: Metrics
    ) -> None:
        self._store = store
        self._index = index
        self._quarantine = quarantine
        self._metrics = metrics

    async def inspect(self, digest: Digest, bytes_per_second: float) -> Finding:
        """Raises StorageFailed."""
        size_bytes = await self._index.blob_size(digest)
        try:
            handle = await self._store.find(digest)
            if handle is None:
                return await self._missing(digest, is_known=size_bytes is not None)
            try:
                damage = await self._damage_of(digest, handle, size_bytes, bytes_per_second)
                inode = handle.inode
            finally:
                handle.close()
        except OSError as error:
            self._metrics.scrub_errors.inc()
            _log.warning("a blob could not be checked", digest=str(digest), error=error.strerror)
            return Finding.UNREADABLE
        if damage is None:
            return Finding.RIGHT
        is_out_of_use = await self._quarantine.take(digest, damage, inode)
        return Finding.DAMAGED if is_out_of_use else Finding.STUCK

    async def _missing(self, digest: Digest, *, is_known: bool) -> Finding:
        """It may have gone in good order since the index was asked. Raises StorageFailed."""
        if not is_known or await self._index.blob_size(digest) is None:
            return Finding.GONE
        is_out_of_use = await self._quarantine.take(digest, Damage.MISSING)
        return Finding.MISSING if is_out_of_use else Finding.STUCK

    async def _damage_of(
        self, digest: Digest, handle: Handle, size_bytes: int | None, bytes_per_second: float
    ) -> Damage | None:
        """`size_bytes` as the index has it, if it has. Raises OSError."""
        if size_bytes not in (None, handle.size_bytes):
            return Damage.SIZE
        hashing = hashlib.new(digest.algorithm)
        for offset in range(0, handle.size_bytes, STEP_BYTES):
            started_at = time.monotonic()
            read_bytes = await in_thread(None, _hash_step, hashing, handle, offset)
            if not read_bytes:
                return Damage.SIZE
            self._metrics.scrubbed_bytes.inc(read_bytes)
            due_at = started_at + read_bytes / bytes_per_second
            await asyncio.sleep(due_at - time.monotonic())
        return None if hashing.hexdigest() == digest.hex else Damage.BYTES


def _hash_step(hashing: "hashlib._Hash", handle: Handle, offset: int) -> int:
    """Feeds the next bytes to the hash; returns their number. Asks the system not to hold them in
    memory in the place of what is being served.
    """
    descriptor = handle.file.fileno()
    with suppress(OSError):  # not on every file system
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NOREUSE)
    data = os.pread(descriptor, STEP_BYTES, offset)
    hashing.update(data)
    return len(data)
