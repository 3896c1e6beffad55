"""What a registry says about pulls left: Docker Hub's `ratelimit-*` headers on GET and on HEAD, and
anybody's 429.
"""

import re
import time
from collections.abc import Mapping

from mirror.metrics import Metrics
from mirror.upstream.answers import DEFAULT_RETRY_AFTER_SECONDS

_COUNT = re.compile(r"\s*(\d{1,9})\s*(?:;.*)?")
_SECONDS = re.compile(r"\s*(\d{1,6})\s*", re.ASCII)


class RateLimits:
    """One upstream's, per account: the remaining pulls as last heard. Absent means no limit is
    known.
    """

    def __init__(self, upstream: str, metrics: Metrics) -> None:
        self._upstream = upstream
        self._metrics = metrics
        self._remaining: dict[str, int] = {}
        self._refused_until: dict[str, float] = {}

    def note(self, account: str, status: int, headers: Mapping[str, str]) -> None:
        if status == 429:
            wait_seconds = _wait_seconds(headers.get("Retry-After"))
            self._refused_until[account] = time.monotonic() + wait_seconds
        remaining = _count(headers.get("ratelimit-remaining"))
        if remaining is None:
            return
        self._remaining[account] = remaining
        limit = _count(headers.get("ratelimit-limit"))
        self._metrics.ratelimit(self._upstream, account, limit, remaining)

    def remaining(self, account: str) -> float:
        """None are left to one that was refused, until it may come again."""
        if time.monotonic() < self._refused_until.get(account, 0):
            return 0
        return self._remaining.get(account, float("inf"))


def _count(header: str | None) -> int | None:
    """`76;w=21600` → 76."""
    match = _COUNT.fullmatch(header or "")
    return int(match[1]) if match else None


def _wait_seconds(retry_after: str | None) -> int:
    """A date counts as if nothing were told."""
    match = _SECONDS.fullmatch(retry_after or "")
    return int(match[1]) if match else DEFAULT_RETRY_AFTER_SECONDS
