"""When a blob gets further connections: pure judgement, under upstreams made up of numbers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mirror.downloads.widening import (
    ENOUGH_SECONDS,
    MAX_CONNECTIONS,
    MAX_STEP,
    PATIENCE_SECONDS,
    Widening,
)

LOOK_SECONDS = 0.05
MB = 1_000_000


class Line:
    """An upstream that gives each connection a rate, and all together no more than another one."""

    def __init__(self, each: float, most: float, size: int, behind: bool = False) -> None:
        self.each, self.most, self.size, self.behind = each, most, size, behind
        self.now = self.received = 0.0
        self.widening = Widening(0.0)
        self.counts = [1]

    def run(self, seconds: float = 60) -> list[int]:
        """How many connections there were, one after the other, until the blob was there."""
        end = self.now + seconds
        while self.now < end and self.received < self.size:
            received = int(self.received)
            ahead = received if self.behind else 0
            self.widening.look(self.now, received, ahead, int(self.size - received))
            if self.widening.connections != self.counts[-1]:
                self.counts.append(self.widening.connections)
            self.now += LOOK_SECONDS
            rate = min(self.each * self.widening.connections, self.most)
            self.received += rate * LOOK_SECONDS
        return self.counts


def test_a_far_large_blob_gets_as_many_as_it_may_in_steps() -> None:
    assert Line(20 * MB, 1000 * MB, 400 * MB).run() == [1, 3, 8]


def test_a_blob_that_would_be_there_soon_keeps_one() -> None:
    assert Line(20 * MB, 1000 * MB, 20 * MB).run() == [1]
    assert Line(500 * MB, 500 * MB, 500 * MB).run() == [1]


def test_no_more_are_added_than_bring_the_rest_in_time() -> None:
    assert Line(20 * MB, 1000 * MB, 29 * MB).run() == [1, 3]


def test_a_full_line_gets_one_connection_back() -> None:
    assert Line(20 * MB, 20 * MB, 400 * MB).run() == [1, 3, 1]


def test_where_more_bring_nothing_more_the_last_ones_end() -> None:
    assert Line(20 * MB, 60 * MB, 400 * MB).run() == [1, 3, 8, 3]


def test_a_slow_host_adds_none() -> None:
    assert Line(20 * MB, 1000 * MB, 400 * MB, behind=True).run() == [1]


def test_silence_is_answered_after_a_while() -> None:
    line = Line(20 * MB, 1000 * MB, 20 * MB)
    line.run(seconds=0.5)
    line.each = 0
    assert line.run(seconds=PATIENCE_SECONDS - 0.1) == [1]
    assert line.run(seconds=0.4) == [1, 3]


def test_after_a_refusal_no_more_are_added() -> None:
    line = Line(20 * MB, 1000 * MB, 400 * MB)
    line.run(seconds=0.3)
    assert line.counts == [1, 3]
    line.widening.refuse()
    assert line.run() == [1, 3, 2]


@given(
    each=st.floats(0, 200 * MB),
    most=st.floats(MB, 300 * MB),
    size=st.integers(1, 500 * MB),
    refused_after=st.floats(0, 5),
)
def test_any_line_keeps_the_bounds(
    each: float, most: float, size: int, refused_after: float
) -> None:
    line = Line(each, most, size)
    line.run(seconds=refused_after)
    before = list(line.counts)
    for fewer, more in pairwise(before):
        assert more <= max(MAX_STEP * fewer, 1)
    assert max(before) <= MAX_CONNECTIONS
    if size <= ENOUGH_SECONDS * min(each, most):
        assert before == [1]
    line.widening.refuse()
    assert line.run(seconds=10)[len(before) + 1 :] == []
