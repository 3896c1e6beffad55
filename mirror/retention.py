"""Which stored blobs go first where there is no room for all. No I/O.

GreedyDual: a use lifts a blob's rank above the floor by its worth, the lowest rank goes first, and
the floor rises to it. So a blob that nobody uses goes after about `worth` turnovers of the cache,
whatever a clock says. Worth is more for what is used often, and for what is small: the time to
fetch it again is latency, not bytes, and it takes no room from others. Most is what costs a pull of
an upstream that counts them: a manifest.
"""

from math import log2

# Over Zipf streams with sizes as of real layers and a third of them in the cache, this gives more
# hits than least recently used, and close to as many as any could (see bench/README.md).
SMALL_BYTES = 512 * 1024
SMALL_BONUS = 7
MOST_USES = 64
# Of a hundred pulls in six hours, each is worth more than what any other small content costs, which
# is one round trip: a manifest stays for twice as many turnovers as a config of its size, whatever
# that is, as if it had been asked for twice as often as it was. That is cheap: manifests take a
# thousandth of what layers take. It is no more than that, since a tag that nobody asks for any more
# has to go some day, too.
PULL_BONUS = 8


def worth(size_bytes: int, uses: int, *, costs_pull: bool = False) -> float:
    """In turnovers of the cache, from 1 to 112. `costs_pull`: to fetch it again is counted by an
    upstream that has a limit.
    """
    bonus = SMALL_BONUS / (1 + size_bytes / SMALL_BYTES) + PULL_BONUS * costs_pull
    return (1 + bonus) * (1 + log2(max(1, min(uses, MOST_USES))))
