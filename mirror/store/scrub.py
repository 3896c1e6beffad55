"""The scrub: stored blobs are read again in the background, slowly, the longest unchecked first.

Disks change bytes without a word; what they did to a large blob is noticed here, what they did to a
small one also whenever it is read into memory (see contents.py).
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from mirror.errors import StorageFailed
from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.handles import Handle
from mirror.store.index import Index
from mirror.store.quarantine import Damage, Quarantine
from mirror.threads import in_thread

STEP_BYTES = 1024 * 1024
CHECK_EVERY_SECONDS = 7 * 86400
# What could not be read, or set aside, is tried again after so long, behind others that are due.
RETRY_SECONDS = 3600
# What is being served comes first: nothing happens in the first minute.
FIRST_AFTER_SECONDS = 60.0
# Between two looks for blobs that are due, and after a failure of the index.
IDLE_SECONDS = 300.0
BATCH_BLOBS = 64
MAX_URGENT_BLOBS = 1000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast, and how often. `now` is wall-clock time, as the index keeps it."""

    bytes_per_second: int
    first_after_seconds: float = FIRST_AFTER_SECONDS
    idle_seconds: float = IDLE_SECONDS
    now: Callable[[], float] = field(default=time.time)


class Scrub:
    """Owns one task, from `open` to `aclose`; with a rate of 0 there is none."""

    def __init__(
        self,
        store: BlobStore,
        index: Index,
        quarantine: Quarantine,
        metrics: Metrics,
        pace: Pace,
    ) -> None:
        self._store = store
        self._index = index
        self._quarantine = quarantine
        self._metrics = metrics
        self._pace = pace
        self._task: asyncio.Task[None] | None = None
        self._urgent: dict[Digest, None] = {}
        self._is_wanted = asyncio.Event()

    def open(self) -> None:
        if self._pace.bytes_per_second:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="scrub")

    def check_soon(self, digest: Digest) -> bool:
        """Before all that is due, at the same pace; whether it will be."""
        if self._task is None or len(self._urgent) >= MAX_URGENT_BLOBS:
            return False
        self._urgent[digest] = None
        self._is_wanted.set()
        return True

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        await asyncio.sleep(self._pace.first_after_seconds)
        while True:
            try:
                found_any = await self.check_batch()
            except StorageFailed:
                found_any = False
            except Exception:
                _log.exception("the scrub failed; it goes on")
                found_any = False
            if not found_any:
                await self._rest()

    async def _rest(self) -> None:
        """Until something may be due, or is wanted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pace.idle_seconds):
                await self._is_wanted.wait()

    async def check_batch(self) -> bool:
        """Checks some of the blobs that are due; whether there were any. Raises StorageFailed."""
        while self._urgent:
            await self._check_and_note(next(iter(self._urgent)))
        self._is_wanted.clear()
        checked_before = self._pace.now() - CHECK_EVERY_SECONDS
        due = await self._index.blobs_to_check(checked_before, BATCH_BLOBS)
        for digest in due:
            if self._urgent:
                break
            await self._check_and_note(digest)
        return bool(due)

    async def _check_and_note(self, digest: Digest) -> None:
        """Raises StorageFailed."""
        self._urgent.pop(digest, None)
        is_settled = await self._check(digest)
        until_due_seconds = CHECK_EVERY_SECONDS if is_settled else RETRY_SECONDS
        checked_at = self._pace.now() + until_due_seconds - CHECK_EVERY_SECONDS
        await self._index.note_checked([digest], checked_at)

    async def _check(self, digest: Digest) -> bool:
        """Whether it is right, or out of use. A disk that does not give the bytes just now is no
        proof that they are wrong. Raises StorageFailed.
        """
        try:
            handle = await self._store.find(digest)
            if handle is None:
                return await self._quarantine.take(digest, Damage.MISSING)
            try:
                damage, inode = await self._damage_of(digest, handle), handle.inode
            finally:
                handle.close()
        except OSError as error:
            self._metrics.scrub_errors.inc()
            _log.warning("a blob could not be checked", digest=str(digest), error=error.strerror)
            return False
        return damage is None or await self._quarantine.take(digest, damage, inode)

    async def _damage_of(self, digest: Digest, handle: Handle) -> Damage | None:
        """Raises OSError, StorageFailed."""
        size_bytes = await self._index.blob_size(digest)
        if size_bytes is None:
            return None  # somebody else has just found it damaged
        if handle.size_bytes != size_bytes:
            return Damage.SIZE
        hashing = hashlib.new(digest.algorithm)
        for offset in range(0, handle.size_bytes, STEP_BYTES):
            started_at = time.monotonic()
            read_bytes = await in_thread(None, _hash_step, hashing, handle, offset)
            if not read_bytes:
                return Damage.SIZE
            self._metrics.scrubbed_bytes.inc(read_bytes)
            due_at = started_at + read_bytes / self._pace.bytes_per_second
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
