"""What the mirror counts, as words for the call sites.

Every label is bounded whatever clients send: upstreams come from the configuration, kinds and cache
words from enumerations, methods from a short list, accounts from the configuration.
"""

from enum import StrEnum
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

NO_UPSTREAM = "-"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FIRST_BYTE_BUCKETS_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Cache(StrEnum):
    """Where an answer came from."""

    HIT = "hit"  # nothing was asked
    REVALIDATED = "revalidated"  # the upstream confirmed what was here
    MISS = "miss"  # this request began the download
    JOINED = "joined"  # another request's download or question served this one, too
    STALE = "stale"  # remembered, because the upstream fails
    NEGATIVE = "negative"  # a remembered 404
    NONE = "none"  # nothing that is cached: errors, pings, pages of tags


class Metrics:
    """Owns one Prometheus registry, so that two mirrors in one process do not share counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mirror_requests",
            "Answers to clients",
            ["upstream", "kind", "method", "status", "cache"],
            registry=self._registry,
        )
        self._client_bytes = Counter(
            "mirror_client_bytes",
            "Body bytes sent to clients",
            ["upstream", "kind"],
            registry=self._registry,
        )
        self._upstream_requests = Counter(
            "mirror_upstream_requests",
            "Requests sent upstream; status 0: no answer",
            ["upstream", "kind", "method", "status"],
            registry=self._registry,
        )
        self._upstream_bytes = Counter(
            "mirror_upstream_bytes",
            "Body bytes received from upstreams",
            ["upstream", "kind"],
            registry=self._registry,
        )
        self._client_first_byte = Histogram(
            "mirror_client_first_byte_seconds",
            "From a client's request to the first byte of the answer",
            ["upstream", "kind"],
            buckets=_FIRST_BYTE_BUCKETS_SECONDS,
            registry=self._registry,
        )
        self._upstream_first_byte = Histogram(
            "mirror_upstream_first_byte_seconds",
            "From a request sent upstream to the first byte of its answer",
            ["upstream", "kind"],
            buckets=_FIRST_BYTE_BUCKETS_SECONDS,
            registry=self._registry,
        )
        self.downloads_active = Gauge(
            "mirror_downloads_active", "Blobs on their way in", registry=self._registry
        )
        self.download_followers = Gauge(
            "mirror_download_followers",
            "Clients reading a blob that is on its way in",
            registry=self._registry,
        )
        self._digest_mismatches = Counter(
            "mirror_digest_mismatches",
            "Contents from an upstream that did not have the digest they were asked by",
            ["upstream"],
            registry=self._registry,
        )
        self.cache_bytes = Gauge(
            "mirror_cache_bytes", "Bytes of stored blobs", registry=self._registry
        )
        self.cache_blobs = Gauge(
            "mirror_cache_blobs", "Stored blobs, manifests included", registry=self._registry
        )
        self._ratelimit_limit = Gauge(
            "mirror_ratelimit_limit",
            "Pulls that the upstream grants in a window",
            ["upstream", "account"],
            registry=self._registry,
        )
        self._ratelimit_remaining = Gauge(
            "mirror_ratelimit_remaining",
            "Pulls that the upstream says are left",
            ["upstream", "account"],
            registry=self._registry,
        )

        # The library looks a series up in four times the time of adding to it, and these three are
        # on the way of every answer. The labels are bounded, so the memory is.
        self._requests_of = lru_cache(maxsize=None)(
            lambda upstream, kind, method, status, cache: self._requests.labels(
                upstream, kind, method, str(status), cache.value
            )
        )
        self._client_bytes_of = lru_cache(maxsize=None)(self._client_bytes.labels)
        self._client_first_byte_of = lru_cache(maxsize=None)(self._client_first_byte.labels)

    def answered(
        self, upstream: str, kind: str, method: str, status: int, cache: Cache, sent_bytes: int
    ) -> None:
        method = method if method in _METHODS else "OTHER"
        self._requests_of(upstream, kind, method, status, cache).inc()
        if sent_bytes:
            self._client_bytes_of(upstream, kind).inc(sent_bytes)

    def first_byte_sent(self, upstream: str, kind: str, seconds: float) -> None:
        self._client_first_byte_of(upstream, kind).observe(seconds)

    def upstream_answered(
        self, upstream: str, kind: str, method: str, status: int, seconds: float
    ) -> None:
        """`status` 0 when there was no answer."""
        self._upstream_requests.labels(upstream, kind, method, str(status)).inc()
        if status:
            self._upstream_first_byte.labels(upstream, kind).observe(seconds)

    def upstream_sent(self, upstream: str, kind: str, received_bytes: int) -> None:
        self._upstream_bytes.labels(upstream, kind).inc(received_bytes)

    def digest_mismatch(self, upstream: str) -> None:
        self._digest_mismatches.labels(upstream).inc()

    def ratelimit(self, upstream: str, account: str, limit: int | None, remaining: int) -> None:
        if limit is not None:
            self._ratelimit_limit.labels(upstream, account).set(limit)
        self._ratelimit_remaining.labels(upstream, account).set(remaining)

    def stored(self, blobs: int, size_bytes: int) -> None:
        self.cache_blobs.inc(blobs)
        self.cache_bytes.inc(size_bytes)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
