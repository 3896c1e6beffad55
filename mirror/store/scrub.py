"""The scrub: stored blobs are read again in the background, slowly, the longest unchecked first.

Disks change bytes without a word; what they did to a large blob is noticed here, what they did to a
small one also whenever it is read into memory (see contents.py).
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from mirror.errors import StorageFailed
from mirror.names import Digest
from mirror.store.index import Index
from mirror.store.inspection import Finding, Inspection

CHECK_EVERY_SECONDS = 7 * 86400
# What could not be read, or set aside, is tried again after so long, behind others that are due.
RETRY_SECONDS = 3600
# What is being served comes first: nothing happens in the first minute.
FIRST_AFTER_SECONDS = 60.0
# Between two looks for blobs that are due, and after a failure of the index.
IDLE_SECONDS = 300.0
BATCH_BLOBS = 64
MAX_URGENT_BLOBS = 1000
_UNSETTLED = (Finding.UNREADABLE, Finding.STUCK)

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

    def __init__(self, index: Index, inspection: Inspection, pace: Pace) -> None:
        self._index = index
        self._inspection = inspection
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
        finding = await self._inspection.inspect(digest, self._pace.bytes_per_second)
        until_due_seconds = RETRY_SECONDS if finding in _UNSETTLED else CHECK_EVERY_SECONDS
        checked_at = self._pace.now() + until_due_seconds - CHECK_EVERY_SECONDS
        await self._index.note_checked([digest], checked_at)
