"""Where the bytes of one arrival land, whichever connection brings them: each is written once."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from mirror.downloads.arrival import Arrival
from mirror.downloads.coverage import Coverage
from mirror.downloads.shares import Shares
from mirror.downloads.stretches import Stretch
from mirror.downloads.writeback import Writeback
from mirror.errors import UpstreamBroken, WrongBytes
from mirror.metrics import Metrics
from mirror.upstream.body import fills_its_block
from mirror.upstream.client import UpstreamClient


class Landing:
    """What the connections of one transfer share."""

    def __init__(
        self,
        arrival: Arrival,
        client: UpstreamClient,
        writeback: Writeback,
        metrics: Metrics,
        shares: Shares,
    ) -> None:
        self.arrival = arrival
        self.client = client
        self.shares = shares
        self._writeback = writeback
        self._metrics = metrics
        self.coverage = Coverage(arrival.present)
        # By connections beside fill.
        self.running: set[Stretch] = set()
        # Fill has had company: what it asks for since is more requests than one blob needs.
        self.is_shared_out = False
        # What fill asks for at once, where it has company.
        self.share_bytes: int | None = None
        self.takes_ranges: bool | None = None
        # Parts are said to be of a blob of another size: only the whole is asked for from now on.
        self.are_parts_wrong = False
        # No further task may begin.
        self.is_ending = False
        # A manifest and the upstream tell different sizes: nobody hears of one before the end.
        self.is_contested = False
        self.received_bytes = 0
        # Of these, what came faster than it was taken, or may be.
        self.ahead_bytes = 0
        # From asking for the first bytes to the head of the answer.
        self.answer_seconds = 0.0
        # From asking for a stretch to its first bytes, the last time.
        self.asking_seconds = 0.0

    @property
    def is_complete(self) -> bool:
        return self.arrival.present.reach(0) == self.arrival.size_bytes

    def is_urgent(self) -> bool:
        """Whether a client waits for it."""
        return self.arrival.is_asked

    def note_ranges(self, are_taken: bool) -> None:
        self.takes_ranges = are_taken and not self.are_parts_wrong
        self.shares.note_ranges(self.takes_ranges)

    async def write(self, begin: int, chunk: bytes | memoryview) -> int:
        """Of a chunk, what is neither there nor being written; returns the chunk's end.

        What is there already is dropped when it comes again, since it may have been hashed.
        """
        end = begin + len(chunk)
        self._count(chunk)
        view = memoryview(chunk)
        position = begin
        while (gap := self.coverage.gap(position, end)) is not None:
            start, position = gap
            data = view[start - begin : position - begin]
            self.coverage.writing.add(start, position)
            try:
                await self._writeback.write(self.arrival.staged, start, data)
            finally:
                self.coverage.writing.remove(start, position)
            self.arrival.wrote(start, position)
        return end

    async def fetch(
        self, stretch: Stretch, *, is_further: bool, must_end: Callable[[], bool]
    ) -> None:
        """One stretch by a Range of its own, as far as nobody takes over. Raises UpstreamError."""
        arrival, start, stop = self.arrival, stretch.start, stretch.stop
        async with self.client.get_blob(
            arrival.source.name,
            arrival.digest,
            start,
            stop,
            attempt=arrival.first_attempt,
            is_further=is_further,
        ) as answer:
            self.note_ranges(answer.is_partial)
            arrival.pulse.beat()
            if not answer.is_partial:
                return
            self.check_size(answer.size_bytes)
            answer.check_begins_at(start, may_be_whole=False)
            async with aclosing(answer.chunks(self.is_urgent)) as chunks:
                async for chunk in chunks:
                    if stretch.position == start:
                        self.asking_seconds = _now() - stretch.asked_at
                    wanted = chunk[: max(0, stretch.stop - stretch.position)]
                    stretch.note(await self.write(stretch.position, wanted), _now())
                    if stretch.is_over or must_end():
                        return
        raise UpstreamBroken(self.client.name, "ended a part of a blob before its end")

    def check_size(self, told: int | None) -> None:
        """Against what was told before, and what is there. What a manifest tells is no more than a
        claim, which anybody may make who may push one: the digest decides. Raises WrongBytes.
        """
        arrival = self.arrival
        known = arrival.expected_bytes if arrival.size_bytes is None else arrival.size_bytes
        size_bytes = known if told is None else told
        if arrival.size_bytes is not None and size_bytes != arrival.size_bytes:
            raise WrongBytes(self.client.name, f"has another size for {arrival.digest}")
        if known is not None and size_bytes != known:
            self.is_contested = True
        if size_bytes is not None and arrival.present.end() > size_bytes:
            raise WrongBytes(self.client.name, f"has less of {arrival.digest} than is here")
        arrival.expected_bytes = size_bytes

    def _count(self, chunk: bytes | memoryview) -> None:
        self.received_bytes += len(chunk)
        if fills_its_block(chunk) or self.client.pace.holds_back:
            self.ahead_bytes += len(chunk)
        if not self.arrival.is_asked:
            self._metrics.prefetched(self.client.name, len(chunk))


def _now() -> float:
    return asyncio.get_running_loop().time()
