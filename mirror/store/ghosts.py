"""What was evicted and is wanted again: how much larger the disk should have been for it."""

from cachetools import LRUCache

from mirror.metrics import Metrics
from mirror.names import Digest

MAX_GHOSTS = 100_000
# A disk that is larger by this share of what is stored now.
LARGER_BY = {"10%": 0.1, "25%": 0.25, "50%": 0.5, "100%": 1.0}


class Ghosts:
    """Only digests are remembered, and how much was evicted before each."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._evicted_bytes = 0
        self._ghosts: LRUCache[Digest, int] = LRUCache(MAX_GHOSTS)

    def evicted(self, digest: Digest, size_bytes: int) -> None:
        self._ghosts[digest] = self._evicted_bytes
        self._evicted_bytes += size_bytes

    def came_again(self, digest: Digest, size_bytes: int, stored_bytes: int) -> None:
        """To be called for each blob that is stored, for whichever may have been here before."""
        if (evicted_before := self._ghosts.pop(digest, None)) is None:
            return
        lacking_bytes = self._evicted_bytes - evicted_before
        for name, share in LARGER_BY.items():
            if lacking_bytes <= share * stored_bytes:
                self._metrics.evicted_too_early(name, size_bytes)
