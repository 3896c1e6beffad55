"""Who has the connections to one upstream: blobs that clients ask for come first, then further
connections for the large ones among them, then blobs that nobody has asked for yet.
"""

import time
from collections.abc import Callable

from mirror.downloads.pulse import Pulse

# Of those that the pool has for one host; the others are left to ranges that readers wait for.
CONNECTIONS = 48
# Beyond the first one of each blob.
MAX_FURTHER = 24
# Blobs that nobody has asked for yet.
MAX_AHEAD = 20
# An upstream that refused a further connection is not asked for as many for so long.
REFUSED_SECONDS = 60
# Whether an upstream takes ranges is found out anew after this time.
RANGES_SECONDS = 600


class Shares:
    """Counts; whoever takes gives back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
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
    def is_crowded(self) -> bool:
        """Further connections are to end, for blobs that clients ask for."""
        return self.asked + self.further > CONNECTIONS

    @property
    def is_too_much_ahead(self) -> bool:
        """One that nobody has asked for is to make room."""
        return self.ahead > 0 and self.asked + self.further + self.ahead > CONNECTIONS

    def may_begin_ahead(self) -> bool:
        is_full = self.asked + self.further + self.ahead >= CONNECTIONS
        return self.ahead < MAX_AHEAD and not is_full

    def may_widen(self) -> bool:
        is_full = self.asked + self.further >= CONNECTIONS
        if self._clock() >= self._refused_until:
            self._most_further = MAX_FURTHER
        return self.further < self._most_further and not is_full

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
