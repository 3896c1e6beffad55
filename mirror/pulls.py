"""Pulls spent upstream and saved by the cache, for the repositories with the most of both. Clients
choose the repositories, so their number is bounded: in memory, and more so in what is shown.
"""

from collections import Counter
from collections.abc import Iterable
from heapq import nlargest

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# For each upstream.
MAX_COUNTED = 1000
MAX_SHOWN = 20


class RepositoryPulls(Collector):
    """Not a counter to Prometheus: who is shown changes, and who was forgotten begins anew."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, Counter[str]]] = {}

    def count(self, upstream: str, repository: str, outcome: str, times: int = 1) -> None:
        """`outcome` is `spent` or `saved`."""
        counts = self._counts.setdefault(upstream, {})
        if repository not in counts and len(counts) >= MAX_COUNTED:
            del counts[min(counts, key=lambda each: counts[each].total())]
        counted = counts.get(repository)
        if counted is None:
            counted = counts[repository] = Counter()
        counted[outcome] += times

    def collect(self) -> Iterable[Metric]:
        shown = GaugeMetricFamily(
            "mirror_repository_pulls",
            f"Pulls spent and saved, of the {MAX_SHOWN} repositories with the most",
            labels=["upstream", "repository", "outcome"],
        )
        for upstream, counts in self._counts.items():
            for repository in nlargest(MAX_SHOWN, counts, key=lambda each: counts[each].total()):
                for outcome in ("spent", "saved"):
                    labels = [upstream, repository, outcome]
                    shown.add_metric(labels, counts[repository][outcome])
        yield shown
