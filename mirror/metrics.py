"""What the mirror counts, as words for the call sites.

Every label is bounded whatever clients send: upstreams come from the configuration, kinds and cache
words from enumerations, methods from a short list, accounts from the configuration.
"""

from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache, partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from mirror import __version__
from mirror.durations import Durations
from mirror.pulls import RepositoryPulls

NO_UPSTREAM = "-"
_FOR_EACH = ["upstream", "kind"]
_FOR_ACCOUNT = ["upstream", "account"]
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNUSED_BUCKETS_SECONDS = tuple(
    hours * 3600 for hours in (0.1, 1, 6, 24, 3 * 24, 7 * 24, 30 * 24, 90 * 24)
)
_FIRST_BYTE_BUCKETS_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


# A series beside each counter, which tells when that was first used.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Cache(StrEnum):
    """Where an answer came from."""

    HIT = "hit"  # nothing was asked
    REVALIDATED = "revalidated"  # the upstream confirmed what was here
    MISS = "miss"  # this request began the download
    JOINED = "joined"  # another request's download or question served this one, too
    STALE = "stale"  # remembered, because the upstream fails
    # Straight from the upstream: this mirror's disk fails, or another upstream brings the same.
    UNSTORED = "unstored"
    NEGATIVE = "negative"  # a remembered 404
    NONE = "none"  # nothing that is cached: errors, pings, pages of tags


class State(StrEnum):
    """Of what lies in the cache folder: each blob is in one."""

    STORED = "stored"  # whole, and makes room when it has to
    PINNED = "pinned"  # whole, and stays
    STAGED = "staged"  # on its way in, or left by a download that broke off
    DAMAGED = "damaged"  # set aside


class Metrics:
    """Owns one Prometheus registry, so that two mirrors in one process do not share counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counter = partial(Counter, registry=self._registry)
        self._gauge = partial(Gauge, registry=self._registry)
        self._histogram = partial(Histogram, registry=self._registry)
        self._gauge("mirror_build_info", "Always 1", ["version"]).labels(__version__).set(1)
        self._count_answers()
        self._count_downloads()
        self._count_pulls()
        self._count_blobs()
        self._watch_the_disk()
        self._keep_series_at_hand()
        self._settle: list[Callable[[], None]] = []

    def _first_bytes(self, name: str, documentation: str) -> Durations:
        durations = Durations(name, documentation, _FOR_EACH, _FIRST_BYTE_BUCKETS_SECONDS)
        self._registry.register(durations)
        return durations

    def _count_answers(self) -> None:
        self._requests = self._counter(
            "mirror_requests", "Answers to clients", [*_FOR_EACH, "method", "status", "cache"]
        )
        self._client_bytes = self._counter(
            "mirror_client_bytes", "Body bytes sent to clients", _FOR_EACH
        )
        self._client_first_byte = self._first_bytes(
            "mirror_client_first_byte_seconds",
            "From a client's request to the first byte of the answer",
        )
        self._connections_refused = self._counter(
            "mirror_connections_refused", "Connections that there was no room for"
        )

    def _count_downloads(self) -> None:
        self._upstream_requests = self._counter(
            "mirror_upstream_requests",
            "Requests sent upstream; status 0: no answer",
            [*_FOR_EACH, "method", "status"],
        )
        self._upstream_bytes = self._counter(
            "mirror_upstream_bytes", "Body bytes received from upstreams", _FOR_EACH
        )
        self._prefetched_bytes = self._counter(
            "mirror_prefetched_bytes",
            "Body bytes of blobs that came before any client asked for them",
            ["upstream"],
        )
        self._upstream_first_byte = self._first_bytes(
            "mirror_upstream_first_byte_seconds",
            "From a request sent upstream to the first byte of its answer",
        )
        self._digest_mismatches = self._counter(
            "mirror_digest_mismatches",
            "Content whose digest was not the one requested",
            ["upstream"],
        )
        self._circuit_open = self._gauge(
            "mirror_upstream_circuit_open",
            "1: the endpoint is left alone for a while, since it failed",
            ["upstream", "endpoint", "class"],
        )
        self.downloads_active = self._gauge("mirror_downloads_active", "Blobs on their way in")
        self.download_followers = self._gauge(
            "mirror_download_followers", "Clients reading a blob that is on its way in"
        )

    def _count_pulls(self) -> None:
        self._ratelimit_limit = self._gauge(
            "mirror_ratelimit_limit", "Pulls that the upstream allows in a window", _FOR_ACCOUNT
        )
        self._ratelimit_remaining = self._gauge(
            "mirror_ratelimit_remaining", "Pulls that the upstream says are left", _FOR_ACCOUNT
        )
        self._ratelimit_reset_seconds = self._gauge(
            "mirror_ratelimit_reset_seconds",
            "Until an account that rests may pull again; 0: it may",
            _FOR_ACCOUNT,
        )
        self._pulls_spent = self._counter(
            "mirror_pulls_spent",
            "Manifests that the upstream gave, as it counts them",
            _FOR_ACCOUNT,
        )
        self._pulls_saved = self._counter(
            "mirror_pulls_saved", "Manifests given to clients without a pull", ["upstream"]
        )
        self._repository_pulls = RepositoryPulls()
        self._registry.register(self._repository_pulls)

    def _count_blobs(self) -> None:
        self._cache_bytes = self._gauge("mirror_cache_bytes", "Bytes of blobs here", ["state"])
        self._cache_blobs = self._gauge(
            "mirror_cache_blobs", "Blobs here, manifests included", ["state"]
        )
        for state in State:
            self.holds(state, 0, 0)
        self._evicted_blobs = self._counter(
            "mirror_evicted_blobs", "Blobs that made room for others"
        )
        self._evicted_bytes = self._counter("mirror_evicted_bytes", "Their bytes")
        self._evicted_unused = self._histogram(
            "mirror_evicted_unused_seconds",
            "How long they had not been used",
            buckets=_UNUSED_BUCKETS_SECONDS,
        )
        self._evicted_too_early = self._counter(
            "mirror_evicted_too_early_bytes",
            "Bytes of evicted blobs that came again, and would have stayed on a larger disk",
            ["larger_by"],
        )

    def _watch_the_disk(self) -> None:
        self._damaged_blobs = self._counter(
            "mirror_damaged_blobs", "Stored blobs that were set aside, or had gone", ["reason"]
        )
        self.scrubbed_bytes = self._counter(
            "mirror_scrubbed_bytes", "Bytes of stored blobs read again"
        )
        self.scrub_errors = self._counter(
            "mirror_scrub_errors", "Stored blobs that the scrub could not read"
        )
        self._index_errors = self._counter(
            "mirror_index_errors", "Questions the index did not answer"
        )
        self._storage_writable = self._gauge(
            "mirror_storage_writable", "1: the disk took what was last written to it, 0: it did not"
        )
        self.storage_room_bytes = self._gauge(
            "mirror_storage_room_bytes", "Free for downloads, when the last one began"
        )
        self._storage_writable.set(1)

    def _keep_series_at_hand(self) -> None:
        """The library takes four times as long to look a series up as to add to it, and these are
        on the way of every answer. The labels are bounded, so the memory is.
        """
        self._requests_of = lru_cache(maxsize=None)(
            lambda upstream, kind, method, status, cache: self._requests.labels(
                upstream, kind, method, str(status), cache.value
            )
        )
        self._client_bytes_of = lru_cache(maxsize=None)(self._client_bytes.labels)
        self._pulls_saved_of = lru_cache(maxsize=None)(self._pulls_saved.labels)

    def before_reading(self, settle: Callable[[], None]) -> None:
        """Lets somebody who counts apart add to the counts before they are shown."""
        self._settle.append(settle)

    def answered(
        self,
        upstream: str,
        kind: str,
        method: str,
        status: int,
        cache: Cache,
        sent_bytes: int,
        times: int = 1,
    ) -> None:
        """`sent_bytes` each time."""
        method = method if method in _METHODS else "OTHER"
        self._requests_of(upstream, kind, method, status, cache).inc(times)
        if sent_bytes:
            self._client_bytes_of(upstream, kind).inc(sent_bytes * times)

    def first_byte_sent(self, upstream: str, kind: str, seconds: float, times: int = 1) -> None:
        self._client_first_byte.note((upstream, kind), seconds, times)

    def connection_refused(self) -> None:
        self._connections_refused.inc()

    def upstream_answered(
        self, upstream: str, kind: str, method: str, status: int, seconds: float
    ) -> None:
        """`status` 0 when there was no answer."""
        self._upstream_requests.labels(upstream, kind, method, str(status)).inc()
        if status:
            self._upstream_first_byte.note((upstream, kind), seconds)

    def upstream_received(self, upstream: str, kind: str, received_bytes: int) -> None:
        self._upstream_bytes.labels(upstream, kind).inc(received_bytes)

    def prefetched(self, upstream: str, received_bytes: int) -> None:
        self._prefetched_bytes.labels(upstream).inc(received_bytes)

    def digest_mismatch(self, upstream: str) -> None:
        self._digest_mismatches.labels(upstream).inc()

    def ratelimit(self, upstream: str, account: str, limit: int | None, remaining: int) -> None:
        if limit is not None:
            self._ratelimit_limit.labels(upstream, account).set(limit)
        self._ratelimit_remaining.labels(upstream, account).set(remaining)

    def ratelimit_resets(self, upstream: str, account: str, seconds: Callable[[], float]) -> None:
        """`seconds` is asked whenever the metrics are read."""
        self._ratelimit_reset_seconds.labels(upstream, account).set_function(seconds)

    def pull_spent(self, upstream: str, account: str, repository: str) -> None:
        self._pulls_spent.labels(upstream, account).inc()
        self._repository_pulls.count(upstream, repository, "spent")

    def pull_saved(self, upstream: str, repository: str, times: int = 1) -> None:
        self._pulls_saved_of(upstream).inc(times)
        self._repository_pulls.count(upstream, repository, "saved", times)

    def circuit(self, upstream: str, endpoint: str, request_class: str, *, is_open: bool) -> None:
        self._circuit_open.labels(upstream, endpoint, request_class).set(int(is_open))

    def holds(self, state: State, count: int, size_bytes: int) -> None:
        self._cache_blobs.labels(state.value).set(count)
        self._cache_bytes.labels(state.value).set(size_bytes)

    def ask_staged(self, usage: Callable[[], tuple[int, int]]) -> None:
        """`usage` is asked for (blobs, bytes) whenever the metrics are read."""
        self._cache_blobs.labels(State.STAGED.value).set_function(lambda: usage()[0])
        self._cache_bytes.labels(State.STAGED.value).set_function(lambda: usage()[1])

    def evicted(self, size_bytes: int, unused_seconds: float) -> None:
        self._evicted_blobs.inc()
        self._evicted_bytes.inc(size_bytes)
        self._evicted_unused.observe(unused_seconds)

    def evicted_too_early(self, larger_by: str, size_bytes: int) -> None:
        """`larger_by` is one of a few shares of the disk (see store/ghosts.py)."""
        self._evicted_too_early.labels(larger_by).inc(size_bytes)

    def damaged(self, reason: str) -> None:
        self._damaged_blobs.labels(reason).inc()

    def index_failed(self) -> None:
        self._index_errors.inc()

    def storage_writable(self, is_writable: bool) -> None:
        self._storage_writable.set(int(is_writable))

    def render(self) -> bytes:
        """The Prometheus text format."""
        for settle in self._settle:
            settle()
        return generate_latest(self._registry)
