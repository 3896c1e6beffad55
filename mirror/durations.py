"""How long things took, as a Prometheus histogram that is counted on the event loop alone: the
library's own takes a lock for each bucket, and cannot note many of the same at once.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Durations(Collector):
    """In seconds, for each set of label values; the bounds of the buckets ascend."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], bounds_seconds: Sequence[float]
    ) -> None:
        self._described = (name, documentation)
        self._labels = labels
        self._bounds = bounds_seconds
        self._bounds_told = [*(str(float(each)) for each in bounds_seconds), "+Inf"]
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def note(self, values: tuple[str, ...], seconds: float, times: int = 1) -> None:
        counts = self._counts.get(values)
        if counts is None:
            counts = self._counts[values] = [0] * len(self._bounds_told)
            self._sums[values] = 0.0
        counts[bisect_left(self._bounds, seconds)] += times
        self._sums[values] += seconds * times

    def collect(self) -> Iterable[Metric]:
        name, documentation = self._described
        family = HistogramMetricFamily(name, documentation, labels=self._labels)
        for values, counts in self._counts.items():
            total, buckets = 0, []
            for bound, count in zip(self._bounds_told, counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            family.add_metric(values, buckets, self._sums[values])
        yield family
