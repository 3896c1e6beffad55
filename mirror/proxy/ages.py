"""How old is what the index remembers, whatever the wall clock does meanwhile."""

import time
from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)


class Ages(Generic[K]):
    """The index has dates of the wall clock, since they outlive the process. Here each is seen once
    by that clock; from then on its age grows on the one that never jumps.
    """

    def __init__(self, max_known: int) -> None:
        self._known: LRUCache[K, tuple[float, float]] = LRUCache(max_known)

    def note(self, key: K, checked_at: float) -> None:
        """Checked just now; `checked_at` is what the index is told."""
        self._known[key] = (checked_at, time.monotonic())

    def seconds(self, key: K, checked_at: float) -> float:
        """Never negative: what is dated in the future is as new as can be."""
        now = time.monotonic()
        known = self._known.get(key)
        if known is None or known[0] != checked_at:
            age_seconds = max(time.time() - checked_at, 0.0)
            known = self._known[key] = (checked_at, now - age_seconds)
        return now - known[1]
