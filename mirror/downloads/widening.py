"""When one blob gets further connections, and when it has enough. No I/O, no clock of its own.

A far upstream gives each connection a rate of its own, so that several are faster than one; a near
one, or a line that is full, does not. Nobody can tell beforehand: connections are added while that
makes the sum of the rates grow.
"""

from collections import deque
from math import ceil, inf
from typing import NamedTuple

# What would be there in this time anyway is not worth another connection.
ENOUGH_SECONDS = 1.0
# With so many connections as would bring the rest in this time there are enough.
GOAL_SECONDS = 0.5
# The shortest and the longest time that a rate is measured over.
LOOK_SECONDS = 0.2
WINDOW_SECONDS = 0.3
# New connections start slowly: that they bring nothing more is said after this time only, and of a
# single one that brings nothing at all as well.
PATIENCE_SECONDS = 1.0
# Of what new connections would bring if each were as fast as those before: less is no growth.
GROWTH_SHARE = 0.25
# At once, as a multiple of those that there are.
MAX_STEP = 3
# For one blob, the first one included.
MAX_CONNECTIONS = 8


class _Mark(NamedTuple):
    """What had come by a moment; `ahead_bytes` of it faster than this mirror took it."""

    at: float
    received_bytes: int
    ahead_bytes: int


class Widening:
    """`connections` is how many the blob should have. Times are seconds of any one clock."""

    def __init__(self, now: float) -> None:
        self.connections = 1
        self._before = 1
        self._rate_before = 0.0
        self._is_trying = False
        self._is_settled = False
        self._changed_at = now
        # When something came last.
        self._heard_at = now
        self._marks: deque[_Mark] = deque()

    def look(self, now: float, received_bytes: int, ahead_bytes: int, missing_bytes: int) -> None:
        """Called every now and then with what has come so far by all connections of the blob."""
        if self._marks and received_bytes > self._marks[-1].received_bytes:
            self._heard_at = now
        self._marks.append(_Mark(now, received_bytes, ahead_bytes))
        while now - self._marks[0].at > WINDOW_SECONDS:
            self._marks.popleft()
        first, last = self._marks[0], self._marks[-1]
        seconds = last.at - first.at
        if seconds < LOOK_SECONDS or self._is_settled:
            return
        came = last.received_bytes - first.received_bytes
        if last.ahead_bytes - first.ahead_bytes > came / 2:
            return  # it is this host that is slow
        silent_since = max(self._heard_at, self._changed_at)
        if self._heard_at < now and now - silent_since < PATIENCE_SECONDS:
            return
        self._judge(now, came / seconds, missing_bytes)

    def forget(self) -> None:
        """What was seen says nothing of the upstream."""
        self._marks.clear()

    def refuse(self) -> None:
        """The upstream did not take one of them: the others may go on."""
        self._is_settled = True
        self.connections = max(1, self.connections - 1)

    def _judge(self, now: float, rate: float, missing_bytes: int) -> None:
        if self._is_trying and not self._has_grown(rate):
            if now - self._changed_at >= PATIENCE_SECONDS:
                self._is_settled, self.connections = True, self._before
            return
        self._is_trying, self._before = False, self.connections
        seconds_left = missing_bytes / rate if rate else inf
        if seconds_left <= ENOUGH_SECONDS:
            return
        most = min(MAX_CONNECTIONS, MAX_STEP * self.connections)
        if seconds_left < most * GOAL_SECONDS:  # else more are needed than there may be
            most = min(most, ceil(self.connections * seconds_left / GOAL_SECONDS))
        if most > self.connections:
            self._rate_before, self.connections = rate, most
            self._is_trying, self._changed_at = True, now
            self._marks.clear()

    def _has_grown(self, rate: float) -> bool:
        expected = self._rate_before * (self.connections / self._before - 1)
        return rate > 0 and rate >= self._rate_before + GROWTH_SHARE * expected
