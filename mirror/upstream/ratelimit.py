"""What registries say about pulls left: Docker Hub's `ratelimit-*` headers, on GET and on HEAD."""

import re
from collections.abc import Mapping

from mirror.metrics import Metrics

_COUNT = re.compile(r"\s*(\d{1,9})\s*(?:;.*)?")


class RateLimits:
    """Per (upstream, account): the remaining pulls as last heard. Absent means no limit is
    known.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._remaining: dict[tuple[str, str], int] = {}

    def note(self, upstream: str, account: str, headers: Mapping[str, str]) -> None:
        remaining = _count(headers.get("ratelimit-remaining"))
        if remaining is None:
            return
        self._remaining[upstream, account] = remaining
        limit = _count(headers.get("ratelimit-limit"))
        self._metrics.ratelimit(upstream, account, limit, remaining)

    def remaining(self, upstream: str, account: str) -> float:
        return self._remaining.get((upstream, account), float("inf"))


def _count(header: str | None) -> int | None:
    """`76;w=21600` → 76."""
    match = _COUNT.fullmatch(header or "")
    return int(match[1]) if match else None
