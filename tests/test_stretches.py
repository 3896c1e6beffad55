"""How what is missing is shared out: every byte is somebody's, and nobody's twice."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.downloads.coverage import Coverage
from mirror.downloads.stretches import (
    LEAST_BYTES,
    LEAST_REST_BYTES,
    MOST_BYTES,
    SILENT_SECONDS,
    Stretch,
    fair_share,
    free_stretch,
    take_over,
)
from mirror.intervals import Intervals

MIB = 1 << 20
SIZE = 100 * MIB


def running(start: int, stop: int, position: int, seconds: float = 1.0) -> Stretch:
    """Asked for at 0, its first bytes there at once, the last ones after so many seconds."""
    stretch = Stretch(start, stop, 0.0)
    stretch.note(start, 0.0)
    stretch.note(position, seconds)
    return stretch


def test_a_share_is_neither_small_nor_large() -> None:
    assert fair_share(MIB, 8) == LEAST_BYTES
    assert fair_share(64 * 8 * MIB, 8) == 16 * MIB
    assert fair_share(1 << 40, 8) == MOST_BYTES


def test_fill_keeps_a_share_of_its_gap() -> None:
    fill = Stretch(5 * MIB, SIZE, 0.0, is_open=True)
    assert free_stretch([(5 * MIB, SIZE)], fill, 10 * MIB) == (15 * MIB, 25 * MIB)


def test_what_fill_was_asked_for_with_an_end_is_its_own() -> None:
    fill = Stretch(5 * MIB, 20 * MIB, 0.0)
    assert free_stretch([(5 * MIB, 20 * MIB)], fill, 4 * MIB) is None
    assert free_stretch([(5 * MIB, SIZE)], fill, 4 * MIB) == (20 * MIB, 24 * MIB)


def test_what_somebody_left_behind_comes_first() -> None:
    fill = Stretch(50 * MIB, SIZE, 0.0, is_open=True)
    gaps = [(3 * MIB, 4 * MIB), (50 * MIB, SIZE)]
    assert free_stretch(gaps, fill, 4 * MIB) == (3 * MIB, 4 * MIB)


def test_no_crumb_is_left() -> None:
    end = LEAST_BYTES + LEAST_REST_BYTES
    assert free_stretch([(0, end)], None, LEAST_BYTES) == (0, end)


def test_the_slowest_gives_half_of_its_rest() -> None:
    fast, slow = running(0, 50 * MIB, 45 * MIB), running(50 * MIB, SIZE, 60 * MIB)
    rest = take_over([fast, slow], 1.0, 0.1)
    assert rest is not None
    assert (rest.start, rest.stop, slow.stop) == (80 * MIB, SIZE, 80 * MIB)
    assert fast.stop == 50 * MIB


def test_what_ends_soon_is_left_alone() -> None:
    assert take_over([running(0, 10 * MIB, 9 * MIB)], 1.0, 0.1) is None
    assert take_over([running(0, 10 * MIB, 10 * MIB)], 9.0, 0.1) is None


def test_the_silent_loses_all_and_the_next_has_longer() -> None:
    silent = running(0, MIB, 1000, seconds=0.1)
    assert take_over([silent], SILENT_SECONDS, 0.1) is None
    now = 0.1 + SILENT_SECONDS
    rest = take_over([silent], now, 0.1)
    assert rest is not None
    assert silent.is_over
    assert (rest.start, rest.stop) == (1000, MIB)
    assert take_over([silent, rest], now + SILENT_SECONDS, 0.1) is None
    assert take_over([silent, rest], now + 2 * SILENT_SECONDS, 0.1) is not None


@given(
    size=st.integers(1, 200 * MIB),
    there=st.lists(st.tuples(st.integers(0, 200 * MIB), st.integers(1, 30 * MIB)), max_size=5),
    connections=st.integers(1, 8),
)
def test_all_is_given_out_once(size: int, there: list[tuple[int, int]], connections: int) -> None:
    present = Intervals()
    for start, length in there:
        present.add(min(start, size), min(start + length, size))
    coverage = Coverage(present)
    missing = size - present.count()
    share = fair_share(missing, connections)
    given_out = 0
    while (free := free_stretch(coverage.gaps(size), None, share)) is not None:
        start, stop = free
        assert 0 <= start < stop <= size
        assert coverage.coming(start) == start
        assert coverage.next_coming(start, stop) == stop
        coverage.planned.add(start, stop)
        given_out += stop - start
    assert given_out == missing
