"""Room for what is on its way in: leftovers of downloads go first, then the blobs of least worth.

What is pinned stays, and what is being read; see removal.py for how a blob goes.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog

from mirror.errors import StorageFailed
from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.ghosts import Ghosts
from mirror.store.index import Index
from mirror.store.ranks import Ranked, Uses
from mirror.store.removal import remove_blobs
from mirror.store.usage import Usage

BATCH_BLOBS = 64
# A download waits no longer than this until room was made; then it goes past the disk.
WAIT_SECONDS = 5.0
# In the background, others get a turn after so long.
TURN_SECONDS = 0.5
# At most this long is forgotten of what was used by a kill.
WRITE_USES_EVERY_SECONDS = 30.0
# Kept free by the rounds in the background: for manifests, so that their clients seldom wait until
# something went, and for what nobody has asked for yet, for which nothing goes.
MARGIN_BYTES = 4 * 1024**3
MARGIN_SHARE = 0.05

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the folder, and of the disk that it lies on; None: what the folder keeps free by itself.

    `max_bytes` None: bounded by the disk alone.
    """

    max_bytes: int | None = None
    min_free_bytes: int | None = None


class Eviction:
    """Owns one task, from `open` to `aclose`."""

    def __init__(
        self, store: BlobStore, index: Index, usage: Usage, metrics: Metrics, limits: Limits
    ) -> None:
        self._store = store
        self._index = index
        self._usage = usage
        self._metrics = metrics
        self._limits = limits
        self._ghosts = Ghosts(metrics)
        self._uses: defaultdict[Digest, Uses] = defaultdict(Uses)
        # What is on its way in takes, and will take.
        self.arriving_bytes: Callable[[], int] = lambda: 0
        # Of manifests that have room here and are no blobs yet.
        self._promised_bytes = 0
        self._floor = 0.0
        self._round = asyncio.Lock()
        self._closing = asyncio.Event()
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def floor(self) -> float:
        """The rank of what went last."""
        return self._floor

    async def take_stock(self) -> None:
        """Before all else. An index that fails knows no order: nothing goes until it does."""
        with suppress(StorageFailed, OSError):
            await self._settle()
        with suppress(StorageFailed):
            self._usage.add(*await self._index.usage())
            await self.note_pinned()
            self._floor = await self._index.lowest_rank()

    def open(self) -> None:
        """Once stock was taken."""
        self._due.set()  # there may be less room than there was
        self._task = asyncio.get_running_loop().create_task(self._run(), name="eviction")

    async def note_pinned(self) -> tuple[int, int]:
        """How many blobs, and bytes, may not go as it is now. Raises StorageFailed."""
        pinned = await self._index.pinned_usage()
        self._usage.set_pinned(*pinned)
        return pinned

    async def _settle(self) -> None:
        """Blobs that were committed as an earlier process was killed. Raises StorageFailed, or
        OSError.
        """
        for digest in list(self._store.leftovers.committed):
            handle = await self._store.find(digest)
            if handle is not None:
                await self._index.add_blob(digest, handle.size_bytes, time.time())
                handle.close()
            await asyncio.to_thread(self._store.leftovers.settle, digest)

    async def aclose(self) -> None:
        """Writes down what was used."""
        self._closing.set()
        self._due.set()
        if self._task is not None:
            await self._task
        with suppress(StorageFailed):
            await self._write_uses()

    async def write_uses(self) -> None:
        """Before somebody looks at them. Raises StorageFailed."""
        async with self._round:
            await self._write_uses()

    @property
    def max_bytes(self) -> int | None:
        """Of all blobs and downloads; None: bounded by the disk alone."""
        return self._limits.max_bytes

    def note_use(self, digest: Digest) -> None:
        self._uses[digest].add(1, time.time())

    def note_stored(self, digest: Digest, size_bytes: int) -> None:
        """After `Usage` was told of it."""
        self._ghosts.came_again(digest, size_bytes, self._usage.size_bytes)
        if self._surplus_bytes(self._margin_bytes()) > 0:
            self._due.set()

    async def make_room(self, coming_bytes: int) -> None:
        """For so many bytes that are still to be written. Raises StorageFailed where there is too
        little.
        """
        async with self._round:
            lacking_bytes = await self._lacking_bytes(coming_bytes)
            # Nothing goes where all is not enough.
            if lacking_bytes > 0 and lacking_bytes <= await self._most_bytes():
                lacking_bytes -= await self._evict(lacking_bytes, WAIT_SECONDS)
            if lacking_bytes > 0 and await self._lacking_bytes(coming_bytes) > 0:
                raise StorageFailed(
                    f"this mirror's disk has no room for the {coming_bytes} bytes that are on "
                    "their way"
                )

    @asynccontextmanager
    async def place_for(self, size_bytes: int) -> AsyncIterator[None]:
        """For a manifest, within `max_size`, while its file is written; the disk keeps room for it
        by itself. Raises StorageFailed where there is none.
        """
        self._promised_bytes += size_bytes
        try:
            if self._surplus_bytes(0) > 0:
                await self._make_place()
            yield
        finally:
            self._promised_bytes -= size_bytes

    async def _make_place(self) -> None:
        async with self._round:
            surplus_bytes = self._surplus_bytes(0)
            if 0 < surplus_bytes <= await self._most_bytes():
                await self._evict(surplus_bytes, WAIT_SECONDS)
            if self._surplus_bytes(0) > 0:
                raise StorageFailed("the cache is full, and nothing in it may go")

    async def check_room(self, coming_bytes: int, more_bytes: int) -> None:
        """That there is as much without anything going; `more_bytes` of it do not count as arriving
        yet. Raises StorageFailed.
        """
        if await self._lacking_bytes(coming_bytes) > 0 or self._surplus_bytes(more_bytes) > 0:
            raise StorageFailed(f"this mirror's disk has no {coming_bytes} bytes to spare")

    async def _most_bytes(self) -> int:
        """What could go at most. Raises StorageFailed."""
        held_bytes = self._usage.size_bytes + self._store.leftovers.size_bytes
        _, pinned_bytes = await self.note_pinned()
        return held_bytes - pinned_bytes

    async def _lacking_bytes(self, coming_bytes: int) -> int:
        """Raises StorageFailed."""
        min_free_bytes = self._limits.min_free_bytes
        room_bytes = await asyncio.to_thread(self._store.folder.room_bytes, min_free_bytes)
        self._metrics.storage_room_bytes.set(room_bytes)
        return max(coming_bytes - room_bytes, self._surplus_bytes(0))

    def _surplus_bytes(self, margin_bytes: int) -> int:
        """Above `max_bytes`, all that is on its way in included."""
        if self._limits.max_bytes is None:
            return 0
        held_bytes = self._usage.size_bytes + self._store.leftovers.size_bytes
        coming_bytes = self.arriving_bytes() + self._promised_bytes
        return held_bytes + coming_bytes + margin_bytes - self._limits.max_bytes

    def _margin_bytes(self) -> int:
        return min(MARGIN_BYTES, int((self._limits.max_bytes or 0) * MARGIN_SHARE))

    async def _run(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(WRITE_USES_EVERY_SECONDS):
                    await self._due.wait()
            self._due.clear()
            try:
                await self._store.leftovers.drop_abandoned()
                await self.note_pinned()
                while await self._take_a_turn() and not self._closing.is_set():
                    pass
            except StorageFailed:
                pass  # the index and the folder have said so
            except Exception:
                _log.exception("eviction failed; it goes on")

    async def _take_a_turn(self) -> bool:
        """Whether something went; there may be more to do then. Raises StorageFailed."""
        async with self._round:
            await self._write_uses()
            surplus_bytes = self._surplus_bytes(self._margin_bytes())
            wanted_bytes = max(surplus_bytes, await self._lacking_bytes(0))
            return await self._evict(wanted_bytes, TURN_SECONDS) > 0

    async def _write_uses(self) -> None:
        uses, self._uses = self._uses, defaultdict(Uses)
        try:
            await self._index.note_uses(uses, self._floor)
        except StorageFailed:
            for digest, use in uses.items():
                self._uses[digest].add(use.count, use.last_at)
            raise

    async def _evict(self, wanted_bytes: int, within_seconds: float) -> int:
        """How many bytes were freed. Raises StorageFailed."""
        ends_at = time.monotonic() + within_seconds
        freed_bytes = 0
        if self._index.memory is not None:
            return 0  # the disk takes no writes: neither would it let a file go, nor would we know
        if wanted_bytes > 0:
            freed_bytes = await self._store.leftovers.drop(wanted_bytes)
            await self._write_uses()
        last: Ranked | None = None
        while freed_bytes < wanted_bytes and time.monotonic() < ends_at:
            found = await self._index.least_worth(BATCH_BLOBS, last)
            if not found:
                break
            last = found[-1]
            going, going_bytes = [], 0
            for each in found:
                if freed_bytes + going_bytes >= wanted_bytes:
                    break
                if not self.is_in_use(each.digest):
                    going.append(each)
                    going_bytes += each.size_bytes
            freed_bytes += await self._drop(going)
        return freed_bytes

    def is_in_use(self, digest: Digest) -> bool:
        """Read just now, or used since uses were last written down."""
        return digest in self._uses or self._store.is_read(digest)

    async def _drop(self, going: Sequence[Ranked]) -> int:
        sizes = {each.digest: each.size_bytes for each in going}
        removed = set(await remove_blobs(self._store, self._index, self._usage, sizes))
        gone = [each for each in going if each.digest in removed]
        now = time.time()
        for each in gone:
            self._floor = max(self._floor, each.rank)
            self._ghosts.evicted(each.digest, each.size_bytes)
            self._metrics.evicted(each.size_bytes, now - each.used_at)
        return sum(each.size_bytes for each in gone)
