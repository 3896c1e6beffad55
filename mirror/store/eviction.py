"""Room for what is on its way in: leftovers of downloads go first, then the blobs of least worth.

What is pinned stays, and what is being read; see removal.py for how a blob goes.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from mirror.errors import StorageFailed
from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.ghosts import Ghosts
from mirror.store.index import Index
from mirror.store.ranks import Ranked, Uses
from mirror.store.removal import finish_removals, remove_blobs
from mirror.store.room import HIGH_WATER, LOW_WATER, Limits, Room
from mirror.store.usage import Usage

BATCH_BLOBS = 64
# A download waits no longer than this until room was made; then it goes past the disk.
WAIT_SECONDS = 5.0
# In the background, others get a turn after so long.
TURN_SECONDS = 0.5
# At most this long is forgotten of what was used by a kill.
WRITE_USES_EVERY_SECONDS = 30.0

_log = structlog.get_logger()


class Eviction:
    """Owns one task, from `open` to `aclose`."""

    def __init__(
        self, store: BlobStore, index: Index, usage: Usage, metrics: Metrics, limits: Limits
    ) -> None:
        self._store = store
        self._index = index
        self._usage = usage
        self._metrics = metrics
        self.room = Room(store.folder, usage, metrics, limits)
        self._ghosts = Ghosts(metrics)
        self._uses: defaultdict[Digest, Uses] = defaultdict(Uses)
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
        """Blobs that were committed, or removed, as an earlier process was killed. Raises
        StorageFailed, or OSError.
        """
        for digest in list(self._store.leftovers.committed):
            handle = await self._store.find(digest)
            if handle is not None:
                await self._index.add_blob(digest, handle.size_bytes, time.time())
                handle.close()
            await asyncio.to_thread(self._store.leftovers.settle, digest)
        if self._index.memory is None:  # else the disk takes no writes
            await finish_removals(self._store, self._index)

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
        return self.room.max_bytes

    def note_use(self, digest: Digest) -> None:
        self._uses[digest].add(1, time.time())

    def note_stored(self, digest: Digest, size_bytes: int) -> None:
        """After `Usage` was told of it."""
        self._ghosts.came_again(digest, size_bytes, self._usage.size_bytes)
        if self.room.is_above_high_water():
            self._due.set()

    @asynccontextmanager
    async def place_for(self, size_bytes: int) -> AsyncIterator[None]:
        """For a small content, which counts as arriving meanwhile. Raises StorageFailed where there
        is too little.
        """
        with self.room.writing(size_bytes):
            await self.make_room(0)
            yield

    async def make_room(self, coming_bytes: int) -> None:
        """For so many bytes that are still to be written. Raises StorageFailed where there is too
        little.
        """
        if not await self.room.lacking_bytes(coming_bytes):
            return  # nobody waits for a round where there is enough for all
        async with self._round:
            lacking_bytes = await self.room.lacking_bytes(coming_bytes)
            # Nothing goes where all is not enough.
            if lacking_bytes > 0 and lacking_bytes <= await self._most_bytes():
                lacking_bytes -= await self._evict(lacking_bytes, WAIT_SECONDS)
            if lacking_bytes > 0 and await self.room.lacking_bytes(coming_bytes) > 0:
                raise self.room.refusal(coming_bytes)
        self._due.set()  # so close to the brim, the next one should not have to wait

    async def check_room(self, coming_bytes: int, more_bytes: int) -> None:
        """That there is as much without anything going; `more_bytes` of it do not count as arriving
        yet. Raises StorageFailed.
        """
        if await self.room.lacking_bytes(coming_bytes, more_bytes) > 0:
            raise self.room.refusal(coming_bytes)

    async def _most_bytes(self) -> int:
        """What could go at most. Raises StorageFailed."""
        _, pinned_bytes = await self.note_pinned()
        return self.room.held_bytes - self._usage.damaged_bytes - pinned_bytes

    async def _run(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(WRITE_USES_EVERY_SECONDS):
                    await self._due.wait()
            self._due.clear()
            try:
                await self._store.leftovers.drop_abandoned()
                await self.note_pinned()
                await self.write_uses()
                if await self.room.above_bytes(HIGH_WATER) > 0:
                    await self._go_down()
            except StorageFailed:
                pass  # the index and the folder have said so
            except Exception:
                _log.exception("eviction failed; it goes on")

    async def _go_down(self) -> None:
        """To the low water, turn by turn. Raises StorageFailed."""
        while not self._closing.is_set():
            async with self._round:
                wanted_bytes = await self.room.above_bytes(LOW_WATER)
                if await self._evict(wanted_bytes, TURN_SECONDS) == 0:
                    return

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
