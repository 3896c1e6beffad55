"""How much room there is for what is on its way in, and how much has to go for it.

`max_size` bounds blobs, downloads and what was set aside; `min_free` the disk. The index, its
backup and what they are made from are not counted: some 1.3 KB for each blob, all together.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mirror.errors import StorageFailed
from mirror.metrics import Metrics
from mirror.store.folder import Folder
from mirror.store.usage import Usage


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the folder, and of the disk that it lies on; None: what the folder keeps free by itself.

    `max_bytes` None: bounded by the disk alone.
    """

    max_bytes: int | None = None
    min_free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Water:
    """How much stays free of what the cache may fill: a share of it, of a large one not as much."""

    share: float
    most_bytes: int

    def free_bytes(self, capacity_bytes: int) -> int:
        return min(self.most_bytes, int(max(0, capacity_bytes) * self.share))


# Above the high water a round begins, in the background, and ends at the low one: what has come
# meanwhile has room at once, and so has what nobody has asked for yet, for which nothing goes. A
# round for every blob that is stored would look at the index for each.
HIGH_WATER = Water(0.05, 4 * 1024**3)
LOW_WATER = Water(0.08, 6 * 1024**3)


class Room:
    """Coroutines look at the disk, in a thread; they raise StorageFailed."""

    def __init__(self, folder: Folder, usage: Usage, metrics: Metrics, limits: Limits) -> None:
        self._folder = folder
        self._usage = usage
        self._metrics = metrics
        self._limits = limits
        # What downloads that are on their way in take, and will take.
        self.arriving_bytes: Callable[[], int] = lambda: 0
        # Small contents that are being written.
        self._writing_bytes = 0

    @property
    def max_bytes(self) -> int | None:
        return self._limits.max_bytes

    @contextmanager
    def writing(self, size_bytes: int) -> Iterator[None]:
        """A small content counts as arriving, until it counts as stored."""
        self._writing_bytes += size_bytes
        try:
            yield
        finally:
            self._writing_bytes -= size_bytes

    @property
    def held_bytes(self) -> int:
        """On the disk, but for what is on its way in."""
        return (
            self._usage.size_bytes + self._usage.damaged_bytes + self._folder.leftovers.size_bytes
        )

    def surplus_bytes(self, more_bytes: int = 0) -> int:
        """Above `max_bytes`, all that is on its way in included, and so much more."""
        if self._limits.max_bytes is None:
            return 0
        coming_bytes = self.arriving_bytes() + self._writing_bytes + more_bytes
        return self.held_bytes + coming_bytes - self._limits.max_bytes

    def is_above_high_water(self) -> bool:
        """Of `max_bytes`; what the disk has is not looked at."""
        return self.surplus_bytes(HIGH_WATER.free_bytes(self._limits.max_bytes or 0)) > 0

    async def lacking_bytes(self, coming_bytes: int, more_bytes: int = 0) -> int:
        """That have to go for `coming_bytes` still to be written, of which `more_bytes` do not
        count as arriving yet.
        """
        coming_bytes += self._writing_bytes
        lacking_bytes = coming_bytes - await self._free_bytes()
        return max(lacking_bytes, self.surplus_bytes(more_bytes), 0)

    async def above_bytes(self, water: Water) -> int:
        """That have to go until so much is free, in the cache and on its disk."""
        free_bytes = await self._free_bytes()
        wanted_bytes = water.free_bytes(self.held_bytes + free_bytes)
        surplus_bytes = self.surplus_bytes(water.free_bytes(self._limits.max_bytes or 0))
        return max(wanted_bytes - free_bytes, surplus_bytes, 0)

    def refusal(self, coming_bytes: int) -> StorageFailed:
        """What is told where there is too little."""
        coming_bytes += self._writing_bytes
        return StorageFailed(
            f"this mirror's cache has no room for the {coming_bytes} bytes that are on their "
            "way; its operator should look at `max_size` and `min_free` under `storage`"
        )

    async def _free_bytes(self) -> int:
        """On the disk, but for what stays free; may be less than 0."""
        free_bytes = await asyncio.to_thread(self._folder.room_bytes, self._limits.min_free_bytes)
        self._metrics.storage_room_bytes.set(free_bytes)
        return free_bytes
