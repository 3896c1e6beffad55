"""Reading a blob, stored or on its way in: the same questions, the same file operations."""

import asyncio
from typing import BinaryIO, Protocol, Self

from mirror.downloads.arrival import Arrival
from mirror.metrics import Metrics
from mirror.store.disk import storage_failed
from mirror.store.handles import StoredBlob
from mirror.store.readers import ReadCount, Readers
from mirror.threads import opened


class BlobReader(Protocol):
    """An open blob. `file` may be read up to where `readable` says; `aclose` belongs to the
    owner.
    """

    @property
    def file(self) -> BinaryIO: ...

    def size(self) -> int | None:
        """None where only the end will tell."""

    async def wait_size(self) -> int:
        """The size, waited for if need be. Raises MirrorError."""

    async def readable(self, start: int, end: int | None, *, completes: bool) -> int:
        """See `Arrival.readable`."""

    def doubt(self) -> None:
        """The file did not give what `readable` promised."""

    def hand_over(self) -> None:
        """Another process reads it from here on, and is about to say so."""

    async def aclose(self) -> None: ...


class StoredReader:
    """A blob from the store: everything is there."""

    def __init__(self, stored: StoredBlob) -> None:
        self.file = stored.file
        self._stored = stored
        self._size_bytes = stored.size_bytes

    def size(self) -> int | None:
        return self._size_bytes

    async def wait_size(self) -> int:
        return self._size_bytes

    async def readable(self, start: int, end: int | None, *, completes: bool) -> int:
        return self._size_bytes if end is None else end

    def doubt(self) -> None:
        self._stored.doubt()

    def hand_over(self) -> None:
        self._stored.hand_over()

    async def aclose(self) -> None:
        self._stored.close()


class ArrivalReader:
    """One follower of an arrival, with a file of its own; it reads the blob that this becomes."""

    def __init__(
        self, arrival: Arrival, file: BinaryIO, metrics: Metrics, count: ReadCount
    ) -> None:
        self.file = file
        self._arrival = arrival
        self._metrics = metrics
        self._metrics.download_followers.inc()
        arrival.interested += 1
        self._count = count
        count.begin()

    @classmethod
    async def open(cls, arrival: Arrival, metrics: Metrics, readers: Readers) -> Self | None:
        """None when the arrival has just failed."""
        try:
            file = await opened(arrival.open_reader)
        except OSError as error:
            raise storage_failed(error) from error
        if file is None:
            return None
        if arrival.error is not None:  # what was opened may be its successor's
            await _close(file)
            return None
        return cls(arrival, file, metrics, readers.of(arrival.digest))

    def size(self) -> int | None:
        return self._arrival.size_bytes

    async def wait_size(self) -> int:
        return await self._arrival.wait_size()

    async def readable(self, start: int, end: int | None, *, completes: bool) -> int:
        return await self._arrival.readable(start, end, completes=completes)

    def doubt(self) -> None:
        """What is on its way in is looked at anyway before it is kept."""

    def hand_over(self) -> None:
        self._count.hand_over()

    async def aclose(self) -> None:
        self._metrics.download_followers.dec()
        self._arrival.interested -= 1
        self._count.end()
        await _close(self.file)


async def _close(file: BinaryIO) -> None:
    """Also when the request is cancelled; closing the last name of a large file takes time."""
    await asyncio.shield(asyncio.to_thread(file.close))
