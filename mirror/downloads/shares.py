"""Who has the connections to one upstream: blobs that clients ask for come first, then further
connections for the large ones among them, then blobs that nobody has asked for yet.
"""

import time
from collections.abc import Callable

from mirror.downloads.pulse import Pulse

# Of those that the pool has for one host, and of a small pool so much of it: the others are left to
# ranges that readers wait for.
CONNECTIONS = 48
CONNECTIONS_SHARE = 0.75
# Beyond the first one of each blob.
MAX_FURTHER = 24
# Blobs that nobody has asked for yet.
MAX_AHEAD = 20
# Of few connections, no more than so much for either.
SECONDARY_SHARE = 0.5
# An upstream that refused a further connection is not asked for as many for so long.
REFUSED_SECONDS = 60
# Whether an upstream takes ranges is found out anew after this time.
RANGES_SECONDS = 600


class Shares:
    """Counts; whoever takes gives back."""

    def __init__(self, pool: int = 256, clock: Callable[[], float] = time.monotonic) -> None:
        """`pool` is how many connections there may be for blobs."""
        self._pool = pool
        self._clock = clock
        self.asked = 0
        self.further = 0
        self.ahead = 0
        # Beats when something was given back.
        self.freed = Pulse()
        self._most_further = MAX_FURTHER
        self._refused_until = 0.0
        self._takes_ranges: bool | None = None
        self._ranges_until = 0.0

    @property
    def connections(self) -> int:
        return max(1, min(CONNECTIONS, int(self._pool * CONNECTIONS_SHARE)))

    @property
    def max_further(self) -> int:
        return min(MAX_FURTHER, int(self.connections * SECONDARY_SHARE))

    @property
    def max_ahead(self) -> int:
        return max(1, min(MAX_AHEAD, int(self.connections * SECONDARY_SHARE)))

    @property
    def is_crowded(self) -> bool:
        """Further connections are to end, for blobs that clients ask for."""
        return self.asked + self.further > self.connections

    @property
    def is_too_much_ahead(self) -> bool:
        """One that nobody has asked for is to make room."""
        return self.ahead > 0 and self.asked + self.further + self.ahead > self.connections

    def may_begin_ahead(self) -> bool:
        is_full = self.asked + self.further + self.ahead >= self.connections
        return self.ahead < self.max_ahead and not is_full

    def may_widen(self) -> bool:
        is_full = self.asked + self.further >= self.connections
        if self._clock() >= self._refused_until:
            self._most_further = MAX_FURTHER
        return self.further < min(self._most_further, self.max_further) and not is_full

    def refuse(self) -> None:
        """The upstream refused one of the further connections that are counted now."""
        self._most_further = max(0, min(self._most_further, self.further) - 1)
        self._refused_until = self._clock() + REFUSED_SECONDS

    @property
    def takes_ranges(self) -> bool | None:
        """None where that is not known, or no longer."""
        return self._takes_ranges if self._clock() < self._ranges_until else None

    def note_ranges(self, are_taken: bool) -> None:
        self._takes_ranges, self._ranges_until = are_taken, self._clock() + RANGES_SECONDS

    def give_back(self, kind: str) -> None:
        """`kind` is `asked`, `further` or `ahead`."""
        setattr(self, kind, getattr(self, kind) - 1)
        self.freed.beat()
