"""The work behind one arrival: fetching what is missing, hashing what is there.

Three kinds of task, all owned by `Transfer.run`:

- *fill* reads from the first byte that nobody has or fetches to the next that somebody does, over
  one plain GET in the usual case, and over a Range after a break;
- *pieces* fetch a bounded Range each, where a reader waits far ahead of fill;
- *hash* follows like any reader, in order.

Each byte is written once: what is there already, or is being written, is dropped when it comes
again, since it may have been hashed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any

from mirror.downloads.arrival import Arrival
from mirror.downloads.coverage import Coverage
from mirror.downloads.tries import Tries
from mirror.errors import UpstreamBroken, UpstreamError, UpstreamFailing, WrongBytes
from mirror.intervals import Intervals
from mirror.metrics import Metrics
from mirror.store.staging import HASH_STEP_BYTES
from mirror.threads import in_thread
from mirror.upstream.client import ENDED_EARLY, MAX_UNTOLD_BYTES, BlobAnswer, UpstreamClient

# A reader this far ahead of every connection gets one of its own.
FAR_AHEAD_BYTES = 1024 * 1024
PIECE_BYTES = 4 * 1024 * 1024
MAX_PIECES = 6
# Fill reads through a shorter stretch that is there already rather than ask anew behind it.
SKIP_BYTES = 1024 * 1024
# For so much of a blob whose size nobody told room is made at a time.
ROOM_STEP_BYTES = 32 * 1024 * 1024
# Pieces in a row that failed: from then on everybody waits for fill.
MAX_FAILED_PIECES = 4
_FAR_BEHIND_ANY_END = 1 << 62


class Transfer:
    def __init__(
        self,
        arrival: Arrival,
        client: UpstreamClient,
        threads: Executor,
        metrics: Metrics,
        check_room: Callable[[], Awaitable[None]],
    ) -> None:
        """`check_room` is asked before the blob is announced, and while one grows whose size nobody
        told; it raises StorageFailed.
        """
        self._arrival = arrival
        self._client = client
        self._threads = threads
        self._metrics = metrics
        self._check_room = check_room
        self._coverage = Coverage(arrival.present)
        self._fill_position = 0
        self._takes_ranges: bool | None = None
        self._pieces = 0
        self._piece_tries = Tries()
        self._tasks = asyncio.TaskGroup()
        self._takes_wishes = True
        arrival.wanted = self._wanted

    async def run(self) -> None:
        """Until the blob is verified; it lies in staging. Raises MirrorError, OSError."""
        self._resume(await in_thread(self._threads, self._arrival.staged.open))
        try:
            async with self._tasks as tasks:
                tasks.create_task(self._until_failure(self._fill()))
                tasks.create_task(self._until_failure(self._hash()))
        except BaseExceptionGroup as failed:
            raise _first(failed) from None

    def _resume(self, there: Intervals) -> None:
        """All of what an earlier download left but its last byte: there is always something to ask
        the upstream for, which tells the size, and that it gives this blob to who wants it.
        """
        last = 0
        for start, last in there:
            self._arrival.present.add(start, last)
        self._arrival.present.remove(last - 1, last)

    async def _until_failure(self, work: Coroutine[Any, Any, None]) -> None:
        """After a failure no piece may begin: the group is about to close."""
        try:
            await work
        except BaseException:
            self._takes_wishes = False
            raise

    # --- fill -----------------------------------------------------------------------------------

    async def _fill(self) -> None:
        arrival, coverage = self._arrival, self._coverage
        tries = Tries()
        while (start := coverage.first_missing(arrival.size_bytes)) is not None:
            before = coverage.present_bytes()
            try:
                await self._fetch_from(start, tries.idle)
            except UpstreamFailing as error:
                if error.answered == 416 and start:
                    raise WrongBytes(
                        self._client.name, f"has less of {arrival.digest} than is here"
                    ) from error
                if not arrival.announced:
                    raise
                if not tries.note(progress=coverage.present_bytes() > before):
                    raise
                await tries.pause()
            while coverage.first_missing(arrival.size_bytes) is None and not self._is_complete():
                await arrival.pulse.wait()

    async def _fetch_from(self, start: int, attempt: int) -> None:
        arrival = self._arrival
        self._fill_position = start
        stop = self._gap_end(start)
        async with self._client.get_blob(
            arrival.source.name, arrival.digest, start, stop, attempt=attempt
        ) as answer:
            self._check_answer(answer, start)
            if not arrival.announced:
                await self._check_room()
            arrival.announce(answer.size_bytes)
            position = answer.start
            async with aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    self._check_length(position + len(chunk))
                    await self._keep_room(position + len(chunk))
                    position = await self._write_missing(position, chunk)
                    self._fill_position = position
                    if self._may_skip(position):
                        return
        self._check_end(position, stop)
        if arrival.size_bytes is None:
            arrival.end_at(position)

    def _gap_end(self, start: int) -> int | None:
        """Where fill's next answer may end, since somebody has or fetches what follows."""
        end = self._coverage.next_coming(start, _FAR_BEHIND_ANY_END)
        return end if self._takes_ranges is not False and end < _FAR_BEHIND_ANY_END else None

    def _check_answer(self, answer: BlobAnswer, start: int) -> None:
        """Raises UpstreamBroken for a part that was not asked for, WrongBytes for one of something
        else.
        """
        if start:
            self._takes_ranges = answer.is_partial
        self._check_size(answer.size_bytes)
        answer.check_begins_at(start)

    def _check_length(self, end: int) -> None:
        """Raises UpstreamBroken for a body that goes on behind the blob's end, or for ever."""
        size_bytes = self._arrival.size_bytes
        if end > (MAX_UNTOLD_BYTES if size_bytes is None else size_bytes):
            raise UpstreamBroken(self._client.name, "sent more of a blob than it announced")

    async def _keep_room(self, end: int) -> None:
        """Ahead of what comes without a size. Raises StorageFailed."""
        arrival = self._arrival
        if arrival.size_bytes is None and end > arrival.reserved_bytes:
            arrival.reserved_bytes = end + ROOM_STEP_BYTES
            await self._check_room()

    def _check_end(self, position: int, stop: int | None) -> None:
        """Raises UpstreamBroken where a body that ended well ended too early."""
        size_bytes = self._arrival.size_bytes
        least = self._arrival.present.reach(0) if size_bytes is None else stop or size_bytes
        if position < least:
            raise UpstreamBroken(self._client.name, ENDED_EARLY)

    def _check_size(self, told: int | None) -> None:
        """Against what is known of it, and what is there. Raises WrongBytes."""
        arrival = self._arrival
        known = arrival.expected_bytes if arrival.size_bytes is None else arrival.size_bytes
        size_bytes = known if told is None else told
        if told is not None and known is not None and told != known:
            raise WrongBytes(self._client.name, f"has another size for {arrival.digest}")
        if size_bytes is not None and arrival.present.end() > size_bytes:
            raise WrongBytes(self._client.name, f"has less of {arrival.digest} than is here")
        arrival.expected_bytes = size_bytes

    def _may_skip(self, position: int) -> bool:
        """Whether so much of what follows is there, or being fetched, that asking anew behind it
        is cheaper.
        """
        return bool(self._takes_ranges) and self._coverage.coming(position) - position >= SKIP_BYTES

    def _is_complete(self) -> bool:
        return self._arrival.present.reach(0) == self._arrival.size_bytes

    async def _write_missing(self, begin: int, chunk: bytes | memoryview) -> int:
        """Of a chunk, what is neither there nor being written; returns the chunk's end."""
        end = begin + len(chunk)
        view = memoryview(chunk)
        position = begin
        while (gap := self._coverage.gap(position, end)) is not None:
            start, position = gap
            data = view[start - begin : position - begin]
            self._coverage.writing.add(start, position)
            try:
                await in_thread(self._threads, self._arrival.staged.write, start, data)
            finally:
                self._coverage.writing.remove(start, position)
            self._arrival.wrote(start, position)
        return end

    # --- pieces ---------------------------------------------------------------------------------

    def _wanted(self, start: int, end: int | None) -> None:
        """A reader waits for [start, end): begin a piece there unless somebody is close before
        it.
        """
        size_bytes = self._arrival.size_bytes
        if (
            size_bytes is None
            or not self._may_begin_piece()
            or self._fill_position <= start < self._fill_position + FAR_AHEAD_BYTES
            or self._coverage.coming(start) > start
        ):
            return
        limit = min(end or size_bytes, start + PIECE_BYTES, size_bytes)
        stop = self._coverage.next_coming(start, limit)
        self._coverage.planned.add(start, stop)
        self._pieces += 1
        self._tasks.create_task(self._until_failure(self._fetch_piece(start, stop)))

    def _may_begin_piece(self) -> bool:
        """The first one alone finds out whether the upstream takes ranges."""
        at_most = {None: 1, True: MAX_PIECES, False: 0}[self._takes_ranges]
        may_fail = self._piece_tries.idle < MAX_FAILED_PIECES
        return self._takes_wishes and self._pieces < at_most and may_fail

    async def _fetch_piece(self, start: int, stop: int) -> None:
        """A piece that fails costs nothing: fill comes by, or, after a pause, the next piece."""
        try:
            try:
                await self._fetch_range(start, stop)
                self._piece_tries = Tries()
            finally:
                self._coverage.planned.remove(start, stop)
                self._arrival.pulse.beat()
        except UpstreamError:
            self._piece_tries.note(progress=False)
            await self._piece_tries.pause()
        finally:
            self._pieces -= 1
            self._arrival.pulse.beat()

    async def _fetch_range(self, start: int, stop: int) -> None:
        arrival = self._arrival
        async with self._client.get_blob(
            arrival.source.name, arrival.digest, start, stop
        ) as answer:
            self._takes_ranges = answer.is_partial
            arrival.pulse.beat()
            if not answer.is_partial:
                return
            self._check_size(answer.size_bytes)
            answer.check_begins_at(start, may_be_whole=False)
            position = start
            async with aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    position = await self._write_missing(position, chunk[: stop - position])
                    if position >= stop:
                        return
        raise UpstreamBroken(self._client.name, "ended a part of a blob before its end")

    # --- hash -----------------------------------------------------------------------------------

    async def _hash(self) -> None:
        arrival = self._arrival
        position = 0
        while arrival.size_bytes is None or position < arrival.size_bytes:
            reach = min(arrival.present.reach(position), position + HASH_STEP_BYTES)
            if reach == position:
                await arrival.pulse.wait()
                continue
            await in_thread(self._threads, arrival.staged.hash, position, reach)
            position = reach
        if not arrival.staged.is_right():
            self._metrics.digest_mismatch(self._client.name)
            raise WrongBytes(
                self._client.name, f"sent bytes that are not {arrival.digest}; nothing was stored"
            )
        arrival.verify()


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
