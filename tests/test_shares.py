"""Who has the connections to one upstream."""

import pytest

from mirror.downloads import shares
from mirror.downloads.shares import Shares


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_what_nobody_asked_for_is_bounded_and_gives_way() -> None:
    counts = Shares()
    counts.ahead = counts.max_ahead
    assert not counts.may_begin_ahead()
    counts.ahead -= 1
    assert counts.may_begin_ahead()
    counts.asked = counts.connections - counts.ahead
    assert not counts.may_begin_ahead()
    assert not counts.is_too_much_ahead
    counts.asked += 1
    assert counts.is_too_much_ahead
    assert not counts.is_crowded


@pytest.mark.parametrize(
    ("pool", "connections", "further", "ahead"),
    [(256, 48, 24, 20), (64, 48, 24, 20), (8, 6, 3, 3), (2, 1, 0, 1), (1, 1, 0, 1)],
)
async def test_of_a_small_pool_some_is_left(
    pool: int, connections: int, further: int, ahead: int
) -> None:
    counts = Shares(pool)
    assert counts.connections == connections
    assert (counts.max_further, counts.max_ahead) == (further, ahead)


async def test_further_connections_are_bounded_and_end_in_a_crowd() -> None:
    counts = Shares()
    counts.asked, counts.further = 1, counts.max_further
    assert not counts.may_widen()
    counts.further -= 1
    assert counts.may_widen()
    counts.asked = counts.connections
    assert not counts.may_widen()
    assert counts.is_crowded


async def test_a_refusal_is_remembered_for_a_while() -> None:
    clock = Clock()
    counts = Shares(clock=clock)
    counts.further = 3
    counts.refuse()
    assert not counts.may_widen()
    counts.further = 1
    assert counts.may_widen()
    counts.refuse()
    counts.further = 0
    assert not counts.may_widen()
    clock.now = shares.REFUSED_SECONDS
    assert counts.may_widen()


async def test_whether_ranges_are_taken_is_remembered_for_a_while() -> None:
    clock = Clock()
    counts = Shares(clock=clock)
    assert counts.takes_ranges is None
    counts.note_ranges(False)
    assert counts.takes_ranges is False
    clock.now = shares.RANGES_SECONDS
    assert counts.takes_ranges is None
