"""Which stored blobs go first where there is no room for all. No I/O.

GreedyDual: a use lifts a blob's rank above the floor by its worth, the lowest rank goes first, and
the floor rises to it. So a blob that nobody uses goes after about `worth` turnovers of the cache,
whatever a clock says. Worth is more for what is used often, and for what is small: the time to
fetch it again is latency, not bytes, and it takes no room from others. Manifests are small; they
are also what registries count.
"""

from math import log2

# Over Zipf streams with sizes as of real layers and a third of them in the cache, this gives more
# hits than least recently used, and close to as many as any could (see bench/README.md).
SMALL_BYTES = 512 * 1024
SMALL_BONUS = 7
MOST_USES = 64


def worth(size_bytes: int, uses: int) -> float:
    """In turnovers of the cache, from 1 to 56."""
    bonus = SMALL_BONUS / (1 + size_bytes / SMALL_BYTES)
    return (1 + bonus) * (1 + log2(max(1, min(uses, MOST_USES))))
