"""Sets of byte positions, as sorted disjoint half-open intervals."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Intervals:
    """Which bytes of a file are there. Touching intervals merge; all operations keep order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Forget [start, end); what lies around it stays."""
        for low, high in list(self):
            if low < end and start < high:
                position = self._starts.index(low)
                del self._starts[position], self._ends[position]
                self.add(low, min(start, high))
                self.add(max(end, low), high)

    def reach(self, position: int) -> int:
        """The end of the unbroken run that holds `position`; `position` itself if it is missing."""
        index = bisect_right(self._starts, position) - 1
        return max(position, self._ends[index]) if index >= 0 else position

    def end(self) -> int:
        """The end of the last interval; 0 where there is none."""
        return self._ends[-1] if self._ends else 0

    def count(self) -> int:
        """How many positions there are in all."""
        return sum(self._ends) - sum(self._starts)

    def next_start(self, position: int) -> int | None:
        """The start of the first interval that begins behind `position`."""
        index = bisect_right(self._starts, position)
        return self._starts[index] if index < len(self._starts) else None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __repr__(self) -> str:
        return f"Intervals({list(self)})"
