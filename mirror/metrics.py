"""What the mirror counts, as words for the call sites.

Every label is bounded whatever clients send: upstreams come from the configuration, kinds and cache
words from enumerations, methods from a short list, accounts from the configuration. The series that
the words move are in series.py.
"""

from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache

from prometheus_client import generate_latest

from mirror.series import Series

NO_UPSTREAM = "-"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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
    """The words; a few series that one room alone moves are given to it as they are."""

    def __init__(self) -> None:
        self._series = Series()
        self.downloads_active = self._series.downloads_active
        self.download_followers = self._series.download_followers
        self.scrubbed_bytes = self._series.scrubbed_bytes
        self.scrub_errors = self._series.scrub_errors
        self.storage_room_bytes = self._series.storage_room_bytes
        self._settle: list[Callable[[], None]] = []
        self._keep_series_at_hand()
        self.storage_writable(True)
        for state in State:
            self.holds(state, 0, 0)

    def _keep_series_at_hand(self) -> None:
        """The library takes four times as long to look a series up as to add to it, and these are
        on the way of every answer. The labels are bounded, so the memory is.
        """
        self._requests_of = lru_cache(maxsize=None)(
            lambda upstream, kind, method, status, cache: self._series.requests.labels(
                upstream, kind, method, str(status), cache.value
            )
        )
        self._client_bytes_of = lru_cache(maxsize=None)(self._series.client_bytes.labels)
        self._pulls_saved_of = lru_cache(maxsize=None)(self._series.pulls_saved.labels)

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
        self._series.client_first_byte.note((upstream, kind), seconds, times)

    def connection_refused(self) -> None:
        self._series.connections_refused.inc()

    def upstream_answered(
        self, upstream: str, kind: str, method: str, status: int, seconds: float
    ) -> None:
        """`status` 0 when there was no answer."""
        self._series.upstream_requests.labels(upstream, kind, method, str(status)).inc()
        if status:
            self._series.upstream_first_byte.note((upstream, kind), seconds)

    def upstream_received(self, upstream: str, kind: str, received_bytes: int) -> None:
        self._series.upstream_bytes.labels(upstream, kind).inc(received_bytes)

    def prefetched(self, upstream: str, received_bytes: int) -> None:
        self._series.prefetched_bytes.labels(upstream).inc(received_bytes)

    def digest_mismatch(self, upstream: str) -> None:
        self._series.digest_mismatches.labels(upstream).inc()

    def ratelimit(self, upstream: str, account: str, limit: int | None, remaining: int) -> None:
        if limit is not None:
            self._series.ratelimit_limit.labels(upstream, account).set(limit)
        self._series.ratelimit_remaining.labels(upstream, account).set(remaining)

    def ratelimit_resets(self, upstream: str, account: str, seconds: Callable[[], float]) -> None:
        """`seconds` is asked whenever the metrics are read."""
        self._series.ratelimit_reset_seconds.labels(upstream, account).set_function(seconds)

    def pull_spent(self, upstream: str, account: str, repository: str) -> None:
        self._series.pulls_spent.labels(upstream, account).inc()
        self._series.repository_pulls.count(upstream, repository, "spent")

    def pull_saved(self, upstream: str, repository: str, times: int = 1) -> None:
        self._pulls_saved_of(upstream).inc(times)
        self._series.repository_pulls.count(upstream, repository, "saved", times)

    def circuit(self, upstream: str, endpoint: str, request_class: str, *, is_open: bool) -> None:
        self._series.circuit_open.labels(upstream, endpoint, request_class).set(int(is_open))

    def holds(self, state: State, count: int, size_bytes: int) -> None:
        self._series.cache_blobs.labels(state.value).set(count)
        self._series.cache_bytes.labels(state.value).set(size_bytes)

    def ask_staged(self, usage: Callable[[], tuple[int, int]]) -> None:
        """`usage` is asked for (blobs, bytes) whenever the metrics are read."""
        self._series.cache_blobs.labels(State.STAGED.value).set_function(lambda: usage()[0])
        self._series.cache_bytes.labels(State.STAGED.value).set_function(lambda: usage()[1])

    def evicted(self, size_bytes: int, unused_seconds: float) -> None:
        self._series.evicted_blobs.inc()
        self._series.evicted_bytes.inc(size_bytes)
        self._series.evicted_unused.observe(unused_seconds)

    def evicted_too_early(self, larger_by: str, size_bytes: int) -> None:
        """`larger_by` is one of a few shares of the disk (see store/ghosts.py)."""
        self._series.evicted_too_early.labels(larger_by).inc(size_bytes)

    def damaged(self, reason: str) -> None:
        self._series.damaged_blobs.labels(reason).inc()

    def index_failed(self) -> None:
        self._series.index_errors.inc()

    def storage_writable(self, is_writable: bool) -> None:
        self._series.storage_writable.set(int(is_writable))

    def render(self) -> bytes:
        """The Prometheus text format."""
        for settle in self._settle:
            settle()
        return generate_latest(self._series.registry)
