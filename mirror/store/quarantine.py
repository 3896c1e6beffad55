"""Blobs that were found damaged: set aside, forgotten, counted, logged; once each.

Whoever finds one goes on as if it had never been here, so that the upstream brings it again.
"""

import asyncio
from contextlib import suppress
from enum import StrEnum

import structlog

from mirror.errors import StorageFailed
from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.singleflight import Flights
from mirror.store.blobs import BlobStore
from mirror.store.index import Index
from mirror.store.usage import Usage

_log = structlog.get_logger()


class Damage(StrEnum):
    SIZE = "size"  # shorter or longer than it was when it was stored
    BYTES = "bytes"  # they do not have the digest
    UNREADABLE = "unreadable"  # the disk does not give them
    MISSING = "missing"  # the index knows it, and there is no file


class Quarantine:
    def __init__(self, store: BlobStore, index: Index, usage: Usage, metrics: Metrics) -> None:
        self._store = store
        self._index = index
        self._usage = usage
        self._metrics = metrics
        self._flights: Flights[Digest, bool] = Flights()

    async def open(self) -> None:
        """Takes stock of what earlier processes set aside. A disk that does not tell has none."""
        with suppress(OSError):
            self._usage.add_damaged(*await asyncio.to_thread(self._store.damaged_usage))

    async def take(self, digest: Digest, damage: Damage, inode: int | None = None) -> bool:
        """Whether the blob is out of use; not so where the disk fails. `inode` is the file that was
        found damaged, where that is known: what has taken its place meanwhile is left alone.
        """
        flight, _ = self._flights.start(digest, lambda: self._take(digest, damage, inode))
        return await flight.wait()

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def _take(self, digest: Digest, damage: Damage, inode: int | None) -> bool:
        try:
            if damage is Damage.MISSING:
                is_gone = not await self._store.has(digest)
            else:
                aside_bytes = await self._store.set_aside(digest, inode)
                is_gone = aside_bytes is not None
                self._usage.add_damaged(int(is_gone), aside_bytes or 0)
        except (OSError, StorageFailed) as error:
            # The next one who finds it tries again.
            _log.error("a damaged blob cannot be set aside", digest=str(digest), error=str(error))
            return False
        if is_gone and await self._is_forgotten(digest, damage):
            self._metrics.damaged(damage)
            _log.error("a stored blob is damaged", digest=str(digest), damage=damage.value)
        return True

    async def _is_forgotten(self, digest: Digest, damage: Damage) -> bool:
        """Whether there was something to forget: only the index knows of a file that is missing."""
        try:
            size_bytes = await self._index.forget_blob(digest)
        except StorageFailed:
            return True
        if size_bytes is not None:
            self._usage.add(-1, -size_bytes)
        return size_bytes is not None or damage is not Damage.MISSING
