"""Further connections for a blob that is large and far: as many as make it come faster."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mirror.downloads.fill import Fill
from mirror.downloads.landing import Landing
from mirror.downloads.pieces import Pieces
from mirror.downloads.stretches import Stretch, fair_share, free_stretch, take_over
from mirror.downloads.widening import Widening
from mirror.errors import UpstreamError

# Of what is less than this nobody looks how fast it comes.
LEAST_WORTH_BYTES = 8 * 1024 * 1024
LOOK_EVERY_SECONDS = 0.05
# A look that comes later than this says that it is this host which is busy.
LATE_SECONDS = 0.15
# An upstream whose first answer comes sooner is near: what slows it is nothing that several
# connections would share out.
FAR_SECONDS = 0.025
# Connections that broke off after they brought something: from then on there are no more.
MAX_BROKEN = 4


class Further:
    """Only for blobs that clients ask for; of no use where the size is not told."""

    def __init__(
        self,
        landing: Landing,
        fill: Fill,
        pieces: Pieces,
        spawn: Callable[[Coroutine[Any, Any, None], Callable[[], None]], None],
    ) -> None:
        self._landing = landing
        self._fill = fill
        self._pieces = pieces
        self._spawn = spawn
        self._shares = landing.shares
        self._running = 0
        self._broken = 0

    async def run(self) -> None:
        landing, arrival = self._landing, self._landing.arrival
        await arrival.wait_announced()
        is_near = landing.answer_seconds < FAR_SECONDS
        if is_near or arrival.size_bytes is None or self._missing_bytes() < LEAST_WORTH_BYTES:
            return
        loop = asyncio.get_running_loop()
        self._widening = Widening(loop.time())
        while not landing.is_complete:
            looked_at = loop.time()
            if arrival.is_asked:
                self._widening.look(
                    looked_at, landing.received_bytes, landing.ahead_bytes, self._missing_bytes()
                )
                if self._widening.connections == 1:
                    landing.share_bytes = None  # fill is alone, or soon will be
                self._spread()
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            if loop.time() - looked_at > LATE_SECONDS:
                self._widening.forget()

    def _missing_bytes(self) -> int:
        arrival = self._landing.arrival
        return (arrival.size_bytes or 0) - arrival.present.count()

    def _spread(self) -> None:
        """Begins what may begin now."""
        while self._running < self._allowed() and self._shares.may_widen():
            stretch = self._next()
            if stretch is None:
                return
            self._landing.coverage.planned.add(stretch.position, stretch.stop)
            self._let_fill_end()
            self._shares.further += 1
            self._running += 1
            self._spawn(self._fetch(stretch), lambda: self._shares.give_back("further"))

    def _allowed(self) -> int:
        """Beside fill and what readers wait for; one alone finds out whether ranges are taken."""
        connections = self._widening.connections
        takes_ranges = self._landing.takes_ranges
        if takes_ranges is None:
            takes_ranges = self._shares.takes_ranges
        if self._landing.is_ending or connections == 1:
            return 0
        if takes_ranges is False or self._pieces.have_failed:
            return 0
        is_filling = self._fill.stretch is not None
        allowed = connections - is_filling - self._pieces.running
        return min(allowed, 1) if takes_ranges is None else allowed + self._almost_over()

    def _almost_over(self) -> int:
        """Connections that end before the next one, asked for now, would bring anything."""
        now, asking_seconds = asyncio.get_running_loop().time(), self._landing.asking_seconds
        return sum(
            each.seconds_left(now) <= asking_seconds and not each.is_wish
            for each in self._landing.running
        )

    def _next(self) -> Stretch | None:
        landing, now = self._landing, asyncio.get_running_loop().time()
        share_bytes = fair_share(self._missing_bytes(), self._widening.connections)
        landing.share_bytes, landing.is_shared_out = share_bytes, True
        gaps = landing.coverage.gaps(landing.arrival.size_bytes or 0)
        if (free := free_stretch(gaps, self._fill.stretch, share_bytes)) is not None:
            return Stretch(*free, now)
        running = list(landing.running)
        if self._fill.stretch is not None:
            running.append(self._fill.stretch)
        return take_over(running, now, landing.asking_seconds)

    def _let_fill_end(self) -> None:
        """Where others begin now."""
        if (fill := self._fill.stretch) is not None:
            coverage, position = self._landing.coverage, fill.position
            is_coming = coverage.coming(position) > position
            fill.end_at(position if is_coming else coverage.next_coming(position, fill.end))

    async def _fetch(self, stretch: Stretch) -> None:
        """One that fails costs nothing: what it leaves is taken up by others, or by fill."""
        landing = self._landing
        landing.running.add(stretch)
        try:
            await landing.fetch(stretch, is_further=True, must_end=lambda: self._shares.is_crowded)
        except UpstreamError:
            self._note_failure(has_brought=stretch.position > stretch.start)
        finally:
            landing.coverage.planned.remove(stretch.start, stretch.stop)
            self._let_fill_end()
            landing.running.discard(stretch)
            self._running -= 1
            landing.arrival.pulse.beat()
        self._spread()

    def _note_failure(self, *, has_brought: bool) -> None:
        self._broken += 1
        self._landing.share_bytes = None  # let fill ask for as much as it can
        if not has_brought or self._broken >= MAX_BROKEN:
            self._widening.refuse()
            self._shares.refuse()
