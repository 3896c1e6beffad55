"""Which bytes of an arrival are there, being written, or planned by a piece. No I/O."""

from collections.abc import Iterator

from mirror.intervals import Intervals


class Coverage:
    """`present` is the arrival's own; what is being written or planned is known here alone."""

    def __init__(self, present: Intervals) -> None:
        self.present = present
        self.writing = Intervals()
        self.planned = Intervals()

    def gap(self, start: int, end: int) -> tuple[int, int] | None:
        """The first stretch of [start, end) that is neither there nor being written."""
        begin = _run(start, self.present, self.writing)
        if begin >= end:
            return None
        return begin, _next_start(begin, end, self.present, self.writing)

    def coming(self, position: int) -> int:
        """The end of what is there, or will be by a piece, without a gap from `position` on."""
        return _run(position, self.present, self.planned)

    def next_coming(self, position: int, end: int) -> int:
        """Where the stretch that nobody has or fetches ends, at most at `end`."""
        return _next_start(position, end, self.present, self.planned)

    def first_missing(self, size_bytes: int | None) -> int | None:
        """The first byte that nobody has or fetches; never None while the size is unknown."""
        position = self.coming(0)
        return position if size_bytes is None or position < size_bytes else None

    def gaps(self, size_bytes: int) -> Iterator[tuple[int, int]]:
        """All stretches that nobody has or fetches by a piece, in order."""
        position = 0
        while (position := self.coming(position)) < size_bytes:
            end = self.next_coming(position, size_bytes)
            yield position, end
            position = end

    def present_bytes(self) -> int:
        return self.present.count()


def _run(position: int, *sets: Intervals) -> int:
    """The end of what lies in any of the sets, without a gap, from `position` on."""
    while (further := max(each.reach(position) for each in sets)) > position:
        position = further
    return position


def _next_start(position: int, end: int, *sets: Intervals) -> int:
    """Where the gap in all sets that holds `position` ends, at most at `end`."""
    starts = (each.next_start(position) for each in sets)
    return min([end, *(start for start in starts if start is not None)])
