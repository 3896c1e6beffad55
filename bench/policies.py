"""What a cache could make of a stream of requests: least recently used, and what no cache can beat.

The bound is PFOO-U (Berger, Beckmann and Harchol-Balter, "Practical Bounds on Optimal Caching with
Variable Object Sizes", 2018). A hit takes room from a blob's last request until this one: its size
times that long. A cache of so many bytes has that many in each turn, so the hits of any cache fit
into bytes times turns. The bound takes the cheapest of them as if they never met: no cache can have
more, and none need be able to have as many.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stream:
    """`asked` are blobs by their number, in the order of the requests; `sizes` are in bytes."""

    asked: Sequence[int]
    sizes: Sequence[int]

    @property
    def asked_bytes(self) -> int:
        return sum(self.sizes[blob] for blob in self.asked)


@dataclass(frozen=True, slots=True)
class Hits:
    """Of a stream; fractions are a bound's."""

    requests: float
    bytes: float

    def rates(self, stream: Stream) -> tuple[float, float]:
        """(of requests, of bytes)"""
        return self.requests / len(stream.asked), self.bytes / stream.asked_bytes


def least_recently_used(stream: Stream, room_bytes: int) -> Hits:
    """What is larger than the cache passes by."""
    held: OrderedDict[int, int] = OrderedDict()
    held_bytes = hits = hit_bytes = 0
    for blob in stream.asked:
        size_bytes = stream.sizes[blob]
        if blob in held:
            held.move_to_end(blob)
            hits, hit_bytes = hits + 1, hit_bytes + size_bytes
        elif size_bytes <= room_bytes:
            held[blob] = size_bytes
            held_bytes += size_bytes
        while held_bytes > room_bytes:
            held_bytes -= held.popitem(last=False)[1]
    return Hits(hits, hit_bytes)


def upper_bound(stream: Stream, room_bytes: int) -> Hits:
    """More hits than this no cache of that size has, and no more bytes from hits; each for itself:
    what has the most hits has fewer bytes.
    """
    spans = _spans(stream, room_bytes)
    turns = max(0, len(stream.asked) - 1)
    return Hits(
        _most(spans, room_bytes * turns, lambda _size_bytes: 1),
        _most(spans, room_bytes * turns, lambda size_bytes: size_bytes),
    )


def _spans(stream: Stream, room_bytes: int) -> list[tuple[int, int]]:
    """(size, turns that it must be held for it) of each request that could be a hit."""
    last: dict[int, int] = {}
    spans = []
    for turn, blob in enumerate(stream.asked):
        if blob in last and stream.sizes[blob] <= room_bytes:
            spans.append((stream.sizes[blob], turn - last[blob]))
        last[blob] = turn
    return spans


def _most(
    spans: Sequence[tuple[int, int]], byte_turns: int, gain_of: Callable[[int], int]
) -> float:
    """The most gain for so much room: what costs least for what it brings first, of the last one as
    much as fits.
    """
    priced = [(size * turns, gain_of(size)) for size, turns in spans]
    gained = 0.0
    for cost, gain in sorted(priced, key=lambda each: each[0] / max(1, each[1])):
        if cost > byte_turns:
            return gained + gain * byte_turns / cost
        byte_turns -= cost
        gained += gain
    return gained
