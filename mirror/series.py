"""The series that Prometheus reads: their names, what they mean, their labels and buckets.

What moves them is in metrics.py, which also says why every label is bounded.
"""

from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from mirror import __version__
from mirror.durations import Durations
from mirror.pulls import RepositoryPulls

_FOR_EACH = ["upstream", "kind"]
_FOR_ACCOUNT = ["upstream", "account"]
_UNUSED_BUCKETS_SECONDS = tuple(
    hours * 3600 for hours in (0.1, 1, 6, 24, 3 * 24, 7 * 24, 30 * 24, 90 * 24)
)
_FIRST_BYTE_BUCKETS_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


# A series beside each counter, which tells when that was first used.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Series:
    """All of one mirror, in a registry of their own, so that two mirrors in one process do not
    share counts.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counter = partial(Counter, registry=self.registry)
        self._gauge = partial(Gauge, registry=self.registry)
        self._histogram = partial(Histogram, registry=self.registry)
        self._gauge("mirror_build_info", "Always 1", ["version"]).labels(__version__).set(1)
        self._count_answers()
        self._count_downloads()
        self._count_pulls()
        self._count_blobs()
        self._watch_the_disk()

    def _first_bytes(self, name: str, documentation: str) -> Durations:
        durations = Durations(name, documentation, _FOR_EACH, _FIRST_BYTE_BUCKETS_SECONDS)
        self.registry.register(durations)
        return durations

    def _count_answers(self) -> None:
        self.requests = self._counter(
            "mirror_requests", "Answers to clients", [*_FOR_EACH, "method", "status", "cache"]
        )
        self.client_bytes = self._counter(
            "mirror_client_bytes", "Body bytes sent to clients", _FOR_EACH
        )
        self.client_first_byte = self._first_bytes(
            "mirror_client_first_byte_seconds",
            "From a client's request to the first byte of the answer",
        )
        self.connections_refused = self._counter(
            "mirror_connections_refused", "Connections that there was no room for"
        )

    def _count_downloads(self) -> None:
        self.upstream_requests = self._counter(
            "mirror_upstream_requests",
            "Requests sent upstream; status 0: no answer",
            [*_FOR_EACH, "method", "status"],
        )
        self.upstream_bytes = self._counter(
            "mirror_upstream_bytes", "Body bytes received from upstreams", _FOR_EACH
        )
        self.prefetched_bytes = self._counter(
            "mirror_prefetched_bytes",
            "Body bytes of blobs that came before any client asked for them",
            ["upstream"],
        )
        self.upstream_first_byte = self._first_bytes(
            "mirror_upstream_first_byte_seconds",
            "From a request sent upstream to the first byte of its answer",
        )
        self.digest_mismatches = self._counter(
            "mirror_digest_mismatches",
            "Content whose digest was not the one requested",
            ["upstream"],
        )
        self.circuit_open = self._gauge(
            "mirror_upstream_circuit_open",
            "1: the endpoint is left alone for a while, since it failed",
            ["upstream", "endpoint", "class"],
        )
        self.downloads_active = self._gauge("mirror_downloads_active", "Blobs on their way in")
        self.download_followers = self._gauge(
            "mirror_download_followers", "Clients reading a blob that is on its way in"
        )

    def _count_pulls(self) -> None:
        self.ratelimit_limit = self._gauge(
            "mirror_ratelimit_limit", "Pulls that the upstream allows in a window", _FOR_ACCOUNT
        )
        self.ratelimit_remaining = self._gauge(
            "mirror_ratelimit_remaining", "Pulls that the upstream says are left", _FOR_ACCOUNT
        )
        self.ratelimit_reset_seconds = self._gauge(
            "mirror_ratelimit_reset_seconds",
            "Until an account that rests may pull again; 0: it may",
            _FOR_ACCOUNT,
        )
        self.pulls_spent = self._counter(
            "mirror_pulls_spent",
            "Manifests that the upstream gave, as it counts them",
            _FOR_ACCOUNT,
        )
        self.pulls_saved = self._counter(
            "mirror_pulls_saved", "Manifests given to clients without a pull", ["upstream"]
        )
        self.repository_pulls = RepositoryPulls()
        self.registry.register(self.repository_pulls)

    def _count_blobs(self) -> None:
        self.cache_bytes = self._gauge("mirror_cache_bytes", "Bytes of blobs here", ["state"])
        self.cache_blobs = self._gauge(
            "mirror_cache_blobs", "Blobs here, manifests included", ["state"]
        )
        self.evicted_blobs = self._counter(
            "mirror_evicted_blobs", "Blobs that made room for others"
        )
        self.evicted_bytes = self._counter("mirror_evicted_bytes", "Their bytes")
        self.evicted_unused = self._histogram(
            "mirror_evicted_unused_seconds",
            "How long they had not been used",
            buckets=_UNUSED_BUCKETS_SECONDS,
        )
        self.evicted_too_early = self._counter(
            "mirror_evicted_too_early_bytes",
            "Bytes of evicted blobs that came again, and would have stayed on a larger disk",
            ["larger_by"],
        )

    def _watch_the_disk(self) -> None:
        self.damaged_blobs = self._counter(
            "mirror_damaged_blobs", "Stored blobs that were set aside, or had gone", ["reason"]
        )
        self.scrubbed_bytes = self._counter(
            "mirror_scrubbed_bytes", "Bytes of stored blobs read again"
        )
        self.scrub_errors = self._counter(
            "mirror_scrub_errors", "Stored blobs that the scrub could not read"
        )
        self.index_errors = self._counter(
            "mirror_index_errors", "Questions the index did not answer"
        )
        self.storage_writable = self._gauge(
            "mirror_storage_writable", "1: the disk took what was last written to it, 0: it did not"
        )
        self.storage_room_bytes = self._gauge(
            "mirror_storage_room_bytes", "Free for downloads, when the last one began"
        )
