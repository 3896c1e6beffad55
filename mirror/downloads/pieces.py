"""Bounded Ranges where a reader waits far ahead of every connection. They come before whatever the
mirror fetches of its own accord.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mirror.downloads.fill import Fill
from mirror.downloads.landing import Landing
from mirror.downloads.stretches import Stretch
from mirror.downloads.tries import Tries
from mirror.errors import UpstreamError

# A reader this far ahead of every connection gets one of its own.
FAR_AHEAD_BYTES = 1024 * 1024
PIECE_BYTES = 4 * 1024 * 1024
MAX_PIECES = 6
# Pieces in a row that failed: from then on everybody waits for fill.
MAX_FAILED_PIECES = 4


class Pieces:
    def __init__(
        self,
        landing: Landing,
        fill: Fill,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._landing = landing
        self._fill = fill
        self._spawn = spawn
        self._tries = Tries()
        self.running = 0

    @property
    def have_failed(self) -> bool:
        """So often that ranges are no use for this blob."""
        return self._tries.idle >= MAX_FAILED_PIECES

    def want(self, start: int, end: int | None) -> None:
        """A reader waits for [start, end): begin a piece there unless somebody is close before
        it.
        """
        size_bytes, coverage = self._landing.arrival.size_bytes, self._landing.coverage
        position = self._fill.position
        if (
            size_bytes is None
            or not self._may_begin()
            or position <= start < position + FAR_AHEAD_BYTES
            or (coverage.coming(start) > start and not self._makes_room(start))
        ):
            return
        limit = min(end or size_bytes, start + PIECE_BYTES, size_bytes)
        stop = coverage.next_coming(start, limit)
        coverage.planned.add(start, stop)
        self.running += 1
        now = asyncio.get_running_loop().time()
        self._spawn(self._fetch(Stretch(start, stop, now, is_wish=True)))

    def _may_begin(self) -> bool:
        """The first one alone finds out whether the upstream takes ranges."""
        if self._landing.is_ending:
            return False
        at_most = {None: 1, True: MAX_PIECES, False: 0}[self._landing.takes_ranges]
        return self.running < at_most and not self.have_failed

    def _makes_room(self, start: int) -> bool:
        """Who would come by `start` much later leaves it, and what follows, to a reader's piece."""
        for stretch in self._landing.running:
            is_far = stretch.position + FAR_AHEAD_BYTES < start < stretch.stop
            if is_far and not stretch.is_wish:
                self._landing.coverage.planned.remove(start, stretch.stop)
                stretch.stop = start
                return True
        return False

    async def _fetch(self, stretch: Stretch) -> None:
        """A piece that fails costs nothing: fill comes by, or, after a pause, the next piece."""
        landing = self._landing
        landing.running.add(stretch)
        try:
            try:
                await landing.fetch(stretch, is_further=False, must_end=lambda: False)
                self._tries = Tries()
            finally:
                landing.coverage.planned.remove(stretch.start, stretch.stop)
                landing.running.discard(stretch)
                landing.arrival.pulse.beat()
        except UpstreamError:
            self._tries.note(progress=False)
            await self._tries.pause()
        finally:
            self.running -= 1
            landing.arrival.pulse.beat()
