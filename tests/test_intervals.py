"""Intervals against a plain set of positions."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.intervals import Intervals

POSITIONS = st.integers(0, 40)
CHANGES = st.lists(st.tuples(st.sampled_from(["add", "remove"]), POSITIONS, POSITIONS))


def built(changes: list[tuple[str, int, int]]) -> tuple[Intervals, set[int]]:
    intervals, model = Intervals(), set[int]()
    for change, start, end in changes:
        if change == "add":
            intervals.add(start, end)
            model |= set(range(start, end))
        else:
            intervals.remove(start, end)
            model -= set(range(start, end))
    return intervals, model


@given(CHANGES)
def test_they_hold_what_was_added_and_not_removed(changes: list[tuple[str, int, int]]) -> None:
    intervals, model = built(changes)
    assert {each for start, end in intervals for each in range(start, end)} == model


@given(CHANGES)
def test_they_are_sorted_and_do_not_touch(changes: list[tuple[str, int, int]]) -> None:
    edges = [edge for interval in built(changes)[0] for edge in interval]
    assert edges == sorted(set(edges))


@given(CHANGES, POSITIONS)
def test_a_run_reaches_to_its_first_gap(changes: list[tuple[str, int, int]], start: int) -> None:
    intervals, model = built(changes)
    end = start
    while end in model:
        end += 1
    assert intervals.reach(start) == end


@given(CHANGES, POSITIONS)
def test_the_next_start_is_that_of_the_first_run_behind(
    changes: list[tuple[str, int, int]], position: int
) -> None:
    intervals, model = built(changes)
    starts = [each for each in sorted(model) if each - 1 not in model and each > position]
    assert intervals.next_start(position) == (starts[0] if starts else None)


def test_they_show_what_they_hold() -> None:
    intervals, _ = built([("add", 5, 9), ("add", 1, 3)])
    assert repr(intervals) == "Intervals([(1, 3), (5, 9)])"
