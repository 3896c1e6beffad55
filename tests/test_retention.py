"""Which blobs go first: what is worth little goes before what is worth much, on real-looking
streams as in principle.
"""

import random
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from mirror.retention import worth

BLOBS, REQUESTS = 2_000, 40_000
NEVER = 1 << 62

sizes = st.integers(0, 1 << 50)
uses = st.integers(1, 1 << 40)


@given(sizes, uses)
def test_worth_is_bounded(size_bytes: int, used: int) -> None:
    assert 1 <= worth(size_bytes, used) <= 56


@given(sizes, sizes, uses, uses)
def test_what_is_smaller_and_used_more_is_worth_no_less(
    size_a: int, size_b: int, uses_a: int, uses_b: int
) -> None:
    least = worth(max(size_a, size_b), min(uses_a, uses_b))
    assert worth(min(size_a, size_b), max(uses_a, uses_b)) >= least


def zipf(exponent: float, drifts: bool) -> list[int]:
    """Requests for blobs by their number; with `drifts`, what is asked for changes over time."""
    chance = random.Random(7)
    weights = list(accumulate((n + 1) ** -exponent for n in range(BLOBS)))
    names = chance.sample(range(BLOBS), BLOBS)
    asked: list[int] = []
    while len(asked) < REQUESTS:
        asked += [names[n] for n in chance.choices(range(BLOBS), cum_weights=weights, k=400)]
        for _ in range(20 if drifts else 0):
            a, b = chance.randrange(BLOBS), chance.randrange(BLOBS)
            names[a], names[b] = names[b], names[a]
    return asked


def layers() -> list[int]:
    """Sizes as of layers and manifests: half of them below a megabyte, few above a gigabyte."""
    chance = random.Random(3)
    return [int(min(2e9, max(500, chance.lognormvariate(14, 2.2)))) for _ in range(BLOBS)]


Worth = Callable[[int, int], float]


def hits(asked: Sequence[int], size: Sequence[int], room: int, worth: Worth) -> tuple[float, float]:
    """(of requests, of bytes) with the lowest rank going first, as the store does it."""
    rank: dict[int, tuple[float, int]] = {}
    used = dict.fromkeys(range(BLOBS), 0)
    queue: list[tuple[float, int, int]] = []
    floor, stored, found, found_bytes = 0.0, 0, 0, 0
    for turn, blob in enumerate(asked):
        if blob in rank:
            found, found_bytes = found + 1, found_bytes + size[blob]
        else:
            used[blob] = 0
            stored += size[blob]
        used[blob] += 1
        rank[blob] = (floor + worth(size[blob], used[blob]), turn)
        heappush(queue, (*rank[blob], blob))
        while stored > room:
            lowest, since, victim = heappop(queue)
            if rank.get(victim) == (lowest, since):
                floor, stored = lowest, stored - size[victim]
                del rank[victim]
    return found / len(asked), found_bytes / sum(size[blob] for blob in asked)


def best_hits(asked: Sequence[int], size: Sequence[int], room: int) -> tuple[float, float]:
    """What is asked for latest goes first: nobody can know that."""
    following, next_turn = [NEVER] * len(asked), dict.fromkeys(range(BLOBS), NEVER)
    for turn in range(len(asked) - 1, -1, -1):
        following[turn], next_turn[asked[turn]] = next_turn[asked[turn]], turn
    there: dict[int, int] = {}
    queue: list[tuple[int, int]] = []
    stored, found, found_bytes = 0, 0, 0
    for turn, blob in enumerate(asked):
        if blob in there:
            found, found_bytes = found + 1, found_bytes + size[blob]
        else:
            stored += size[blob]
        there[blob] = following[turn]
        heappush(queue, (-following[turn], blob))
        while stored > room:
            latest, victim = heappop(queue)
            if there.get(victim) == -latest:
                stored -= size[victim]
                del there[victim]
    return found / len(asked), found_bytes / sum(size[blob] for blob in asked)


def test_it_is_better_than_least_recently_used_on_zipf_streams() -> None:
    size = layers()
    room = sum(size) // 3
    for exponent, drifts in ((0.8, False), (0.8, True), (1.0, False), (1.0, True)):
        asked = zipf(exponent, drifts)
        ours = hits(asked, size, room, worth)
        recent = hits(asked, size, room, lambda _size_bytes, _uses: 1)
        best = best_hits(asked, size, room)
        print(  # noqa: T201 - for who runs it with -s
            f"Zipf {exponent}{', drifting' if drifts else ''}: hits (bytes) "
            f"{ours[0]:.3f} ({ours[1]:.3f}), least recently used {recent[0]:.3f} "
            f"({recent[1]:.3f}), best of all {best[0]:.3f} ({best[1]:.3f})"
        )
        assert ours[0] > 1.05 * recent[0]
        assert ours[1] > 0.98 * recent[1]
