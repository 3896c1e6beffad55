"""The first connection of an arrival: from the first byte that nobody has or fetches to the next
that somebody does, over one plain GET in the usual case, and over a Range after a break.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus

from mirror.downloads.lag import Lag
from mirror.downloads.landing import Landing
from mirror.downloads.stretches import Stretch
from mirror.downloads.tries import Tries
from mirror.errors import UpstreamBroken, UpstreamError, WrongBytes
from mirror.upstream.client import ENDED_EARLY, MAX_UNTOLD_BYTES, BlobAnswer

# Fill reads through a shorter stretch that is there already rather than ask anew behind it.
SKIP_BYTES = 1024 * 1024
# For so much of a blob whose size nobody told room is made at a time.
ROOM_STEP_BYTES = 32 * 1024 * 1024
_FAR_BEHIND_ANY_END = 1 << 62

# Asked before a blob is announced, and while one grows whose size nobody told. Raises
# StorageFailed.
CheckRoom = Callable[[], Awaitable[None]]


class Fill:
    """`position` is how far it came; `stretch` what it fetches now, if it does."""

    def __init__(self, landing: Landing, check_room: CheckRoom) -> None:
        self._landing = landing
        self._arrival = landing.arrival
        self._coverage = landing.coverage
        self._upstream = landing.client.name
        self._check_room = check_room
        self.position = 0
        self.stretch: Stretch | None = None

    async def run(self) -> None:
        """Until all is there, by whomever. Raises UpstreamError, StorageFailed."""
        coverage = self._coverage
        tries = Tries()
        while (start := coverage.first_missing(self._arrival.size_bytes)) is not None:
            before = coverage.present_bytes()
            failed = await self._try_from(start, tries.idle)
            if failed is not None and not self._may_go_on(failed):
                raise self._given_up(failed)
            has_come_on = coverage.present_bytes() > before
            if failed is not None or not (has_come_on or self._is_coming(start)):
                if not tries.note(progress=has_come_on):
                    raise self._given_up(failed)
                await tries.pause()
            while self._has_nothing_to_do():
                await self._arrival.pulse.wait()

    async def _try_from(self, start: int, attempt: int) -> UpstreamError | None:
        """What went wrong, if anything. Raises StorageFailed."""
        try:
            await self._fetch_from(start, self._arrival.first_attempt + attempt)
        except UpstreamError as error:
            return error
        finally:
            self.stretch = None
        return None

    def _may_go_on(self, failed: UpstreamError) -> bool:
        """Once a blob is announced, only wrong bytes are final: a token or a signed URL may have
        run out, a cache behind the registry may have lost it for a moment. Before that, every
        endpoint has been asked already.
        """
        return self._arrival.announced and not isinstance(failed, WrongBytes)

    def _given_up(self, failed: UpstreamError | None) -> UpstreamError:
        if failed is not None and failed.answered == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return WrongBytes(self._upstream, f"has less of {self._arrival.digest} than is here")
        return failed or UpstreamBroken(self._upstream, "sends nothing of what is missing")

    def _is_coming(self, start: int) -> bool:
        return self._coverage.first_missing(self._arrival.size_bytes) != start

    def _has_nothing_to_do(self) -> bool:
        is_all_coming = self._coverage.first_missing(self._arrival.size_bytes) is None
        return is_all_coming and not self._landing.is_complete

    async def _fetch_from(self, start: int, attempt: int) -> None:
        arrival, landing = self._arrival, self._landing
        if landing.are_parts_wrong:
            start = 0
        self.position = start
        stop = self._end_of_gap(start)
        asked_at = asyncio.get_running_loop().time()
        end = stop or arrival.size_bytes or _FAR_BEHIND_ANY_END
        stretch = self.stretch = Stretch(start, end, asked_at, is_open=stop is None)
        asking = landing.client.get_blob(
            arrival.source.name,
            arrival.digest,
            start,
            stop,
            attempt=attempt,
            is_further=landing.is_shared_out,
        )
        lag = Lag()
        async with lag, asking as answer:
            late_seconds = lag.stop()
            self._check_answer(answer, start)
            if not arrival.announced:
                answered_at = asyncio.get_running_loop().time()
                landing.asking_seconds = answered_at - asked_at
                landing.answer_seconds = landing.asking_seconds - late_seconds
                await self._check_room()
            arrival.announce(answer.size_bytes, is_doubtful=landing.is_contested)
            stretch.position = answer.start
            if end == _FAR_BEHIND_ANY_END and arrival.size_bytes is not None:
                stretch.stop = stretch.end = arrival.size_bytes
            if await self._take(answer, stretch):
                return
        self._check_end(stretch.position, stop)
        if arrival.size_bytes is None:
            arrival.end_at(stretch.position)

    async def _take(self, answer: BlobAnswer, stretch: Stretch) -> bool:
        """Whether it was left before its end, since others bring what follows."""
        loop = asyncio.get_running_loop()
        async with aclosing(answer.chunks(self._landing.is_urgent)) as chunks:
            async for chunk in chunks:
                self._check_length(stretch.position + len(chunk))
                await self._keep_room(stretch.position + len(chunk))
                self.position = await self._landing.write(stretch.position, chunk)
                stretch.note(self.position, loop.time())
                is_taken_over = stretch.stop < stretch.end and stretch.is_over
                if is_taken_over or self._may_skip(self.position):
                    return True
        return False

    def _end_of_gap(self, start: int) -> int | None:
        """Where fill's next answer may end, since somebody has or fetches what follows, or will."""
        if self._landing.takes_ranges is False:
            return None
        end = self._coverage.next_coming(start, _FAR_BEHIND_ANY_END)
        size_bytes, share_bytes = self._arrival.size_bytes, self._landing.share_bytes
        if size_bytes is not None and share_bytes is not None:
            end = min(end, start + share_bytes, size_bytes)
        return end if end < _FAR_BEHIND_ANY_END else None

    def _check_answer(self, answer: BlobAnswer, start: int) -> None:
        """Raises UpstreamBroken for a part that was not asked for, WrongBytes for one of something
        else.
        """
        if start:
            self._landing.note_ranges(answer.is_partial and answer.start == start)
        if answer.is_partial and self._arrival.announced:
            self._check_part(answer)
        else:
            self._landing.check_size(answer.size_bytes)
        answer.check_begins_at(start)

    def _check_part(self, answer: BlobAnswer) -> None:
        """What an answer to a Range tells decides nothing against what the whole one did. Raises
        UpstreamBroken.
        """
        try:
            self._landing.check_size(answer.size_bytes)
        except WrongBytes as error:
            self._landing.are_parts_wrong = True
            self._landing.note_ranges(False)
            raise UpstreamBroken(self._upstream, "tells another size for a part") from error

    def _check_length(self, end: int) -> None:
        """Raises UpstreamBroken for a body that goes on behind the blob's end, or for ever."""
        size_bytes = self._arrival.size_bytes
        if end > (MAX_UNTOLD_BYTES if size_bytes is None else size_bytes):
            raise UpstreamBroken(self._upstream, "sent more of a blob than it announced")

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
            raise UpstreamBroken(self._upstream, ENDED_EARLY)

    def _may_skip(self, position: int) -> bool:
        """Whether so much of what follows is there, or being fetched, that asking anew behind it
        is cheaper.
        """
        if not self._landing.takes_ranges:
            return False
        return self._coverage.coming(position) - position >= SKIP_BYTES
