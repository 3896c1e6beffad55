"""How what is missing of a blob is shared out to its connections, so that all end together. No I/O.

Each connection fetches one stretch after the other. At first these are a fair share of what nobody
fetches yet; when nothing is left of that, the rest of the slowest one is shared.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf

# Asking costs a round trip, so that a stretch is not small; nor is it so large that the blob's
# readers wait long for its end.
LEAST_BYTES = 4 * 1024 * 1024
MOST_BYTES = 64 * 1024 * 1024
# A rest is not cut into less than this.
LEAST_REST_BYTES = 1024 * 1024
# A rest that takes longer than this, and than asking for it elsewhere does, is shared.
LATE_SECONDS = 0.3
# A connection that says nothing for so long loses all of its rest, to one that has twice the time.
SILENT_SECONDS = 1.0


@dataclass(eq=False)
class Stretch:
    """What one connection is to fetch: from `position`, which follows the bytes, to `stop`, which
    moves forward when others take over. `is_open`: it was asked for without an end. `is_wish`: a
    reader waits for it.
    """

    position: int
    stop: int
    asked_at: float
    is_open: bool = False
    is_wish: bool = False
    patience_seconds: float = SILENT_SECONDS

    def __post_init__(self) -> None:
        self.start, self.end = self.position, self.stop
        self._was_asked_open = self.is_open
        self.heard_at = self.asked_at
        # Its first bytes were in, and up to where.
        self._began: tuple[float, int] | None = None

    def end_at(self, stop: int) -> None:
        """Others have or fetch what follows, or no longer do: then it has its own end again."""
        self.stop = min(stop, self.end)
        self.is_open = self._was_asked_open and self.stop == self.end

    @property
    def left_bytes(self) -> int:
        return max(0, self.stop - self.position)

    @property
    def is_over(self) -> bool:
        return self.position >= self.stop

    def note(self, position: int, now: float) -> None:
        """All up to `position` is there."""
        self.position, self.heard_at = position, now
        if self._began is None:
            self._began = now, position

    def is_silent(self, now: float) -> bool:
        return now - self.heard_at >= self.patience_seconds

    def seconds_left(self, now: float) -> float:
        """At the rate since the first bytes; without end before the second ones."""
        if not self.left_bytes:
            return 0.0
        began_at, began = self._began or (now, self.position)
        done = self.position - began
        return self.left_bytes * (now - began_at) / done if done else inf


def fair_share(missing_bytes: int, connections: int) -> int:
    """A quarter of what each would get, so that the blob comes about in order: its hash and its
    readers follow, others may be added, and who is faster comes again.
    """
    return min(max(missing_bytes // (4 * connections), LEAST_BYTES), MOST_BYTES)


def free_stretch(
    gaps: Iterable[tuple[int, int]], fill: Stretch | None, share_bytes: int
) -> tuple[int, int] | None:
    """The first stretch that nobody fetches, at most a share. `gaps` are what is neither there nor
    planned; `fill`, which plans nothing, keeps a share of its gap for itself.
    """
    for start, end in gaps:
        for begin, stop in _without(fill, start, end, share_bytes):
            if begin < stop:
                rest = stop - begin - share_bytes
                return begin, begin + share_bytes if rest > LEAST_REST_BYTES else stop
    return None


def _without(
    fill: Stretch | None, start: int, end: int, share_bytes: int
) -> Iterator[tuple[int, int]]:
    if fill is None or not start <= fill.position < end:
        yield start, end
        return
    yield start, fill.position
    kept = min(fill.stop, fill.position + share_bytes) if fill.is_open else fill.stop
    if end - kept > LEAST_REST_BYTES:
        yield kept, end


def take_over(running: Iterable[Stretch], now: float, asking_seconds: float) -> Stretch | None:
    """A new stretch out of the one that would end last; None where all end soon enough.

    `asking_seconds` is how long a new connection takes to bring its first byte.
    """
    late_seconds = LATE_SECONDS + asking_seconds
    flowing = []
    for stretch in running:
        if not stretch.left_bytes:
            continue
        if stretch.is_silent(now):
            return _cut(stretch, stretch.position, now, 2 * stretch.patience_seconds)
        if stretch.position > stretch.start and stretch.left_bytes >= 2 * LEAST_REST_BYTES:
            flowing.append(stretch)
    last = max(flowing, key=lambda each: each.seconds_left(now), default=None)
    if last is None or last.seconds_left(now) <= late_seconds:
        return None
    return _cut(last, last.position + last.left_bytes // 2, now, last.patience_seconds)


def _cut(stretch: Stretch, at: int, now: float, patience_seconds: float) -> Stretch:
    rest = Stretch(at, stretch.stop, now, patience_seconds=patience_seconds)
    stretch.stop = at
    return rest
