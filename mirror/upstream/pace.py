"""How fast blobs come from one upstream, over all connections together: a bucket of bytes.

Whoever wants to read from a socket takes first what it may read, a slice at most, and leaves the
socket alone while it waits: so the upstream is held back, and nothing that has come ever waits.
Blobs that clients ask for come before those that nobody has asked for yet.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

# What one connection takes at a time: what comes in this time, unless that is little.
SLICE_SECONDS = 0.05
LEAST_SLICE_BYTES = 16 * 1024
# What an upstream that was not asked for a while may send at once.
BURST_SECONDS = 0.25
JUST_NOW_SECONDS = 1.0

IsUrgent = Callable[[], bool]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    wanted_bytes: int
    is_urgent: IsUrgent
    granted: "asyncio.Future[int]"


class Pace:
    """`bytes_per_second` None: as fast as it comes. To be used in one event loop only."""

    def __init__(self, bytes_per_second: int | None = None) -> None:
        self._rate = inf if bytes_per_second is None else float(bytes_per_second)
        self._slice_bytes = max(LEAST_SLICE_BYTES, self._rate * SLICE_SECONDS)
        self._burst_bytes = max(self._slice_bytes, self._rate * BURST_SECONDS)
        self._bytes = self._burst_bytes  # less than none: what came was not asked for
        self._filled_at = 0.0
        self._waited_at = -inf
        self._waiters: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def holds_back(self) -> bool:
        """Whether the upstream would send more than it may: somebody had to wait just now."""
        return asyncio.get_running_loop().time() - self._waited_at < JUST_NOW_SECONDS

    def take_now(self, wanted_bytes: int, is_urgent: IsUrgent) -> int:
        """What may be read at once, if anything."""
        if self._rate == inf:
            return wanted_bytes
        if self._waiters and not (is_urgent() and not self._next().is_urgent()):
            return 0
        self._fill()
        taken_bytes = int(min(wanted_bytes, self._slice_bytes))
        if self._bytes < taken_bytes:
            return 0
        self._bytes -= taken_bytes
        return taken_bytes

    async def take(self, wanted_bytes: int, is_urgent: IsUrgent) -> int:
        """The same, waited for: one byte at least."""
        if taken_bytes := self.take_now(wanted_bytes, is_urgent):
            return taken_bytes
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(int(min(wanted_bytes, self._slice_bytes)), is_urgent, granted)
        self._waiters.append(waiter)
        self._waited_at = asyncio.get_running_loop().time()
        self._serve()
        try:
            return await granted
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not granted.cancelled():
                self.give_back(granted.result())
            raise

    def charge(self, came_bytes: int) -> None:
        """What came without having been taken."""
        self._bytes -= came_bytes

    def give_back(self, unread_bytes: int) -> None:
        self._bytes += unread_bytes

    def _fill(self) -> None:
        now = asyncio.get_running_loop().time()
        self._bytes += self._rate * (now - self._filled_at)
        self._bytes, self._filled_at = min(self._bytes, self._burst_bytes), now

    def _next(self) -> _Waiter:
        """In the order in which they came, but the urgent ones first."""
        return next((each for each in self._waiters if each.is_urgent()), self._waiters[0])

    def _serve(self) -> None:
        """Gives what there is, and looks again when there will be enough for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fill()
        while self._waiters:
            waiter = self._next()
            lacking_bytes = waiter.wanted_bytes - self._bytes
            if lacking_bytes > 0:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(lacking_bytes / self._rate, self._serve)
                return
            self._waiters.remove(waiter)
            if not waiter.granted.done():
                self._bytes -= waiter.wanted_bytes
                waiter.granted.set_result(waiter.wanted_bytes)


class Portion:
    """What one connection has taken and not read yet, in bytes; `left_bytes` is counted down by who
    reads.
    """

    def __init__(self, pace: Pace, is_urgent: IsUrgent) -> None:
        self._pace = pace
        self._is_urgent = is_urgent
        self.left_bytes = 0

    def top_up(self, room_bytes: int) -> None:
        """So that as much can be read, as far as it may be at once."""
        if room_bytes > self.left_bytes:
            self.left_bytes += self._pace.take_now(room_bytes - self.left_bytes, self._is_urgent)

    async def wait(self, room_bytes: int) -> None:
        self.left_bytes += await self._pace.take(room_bytes, self._is_urgent)

    def close(self) -> None:
        self._pace.give_back(self.left_bytes)
        self.left_bytes = 0
