"""What a front process counts, until it tells the process that owns the folder."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from mirror.metrics import Cache
from mirror.names import Digest
from mirror.web.counts import Counts

# To be told in one go: blobs that clients were given whole.
MAX_GIVEN = 10_000


class Uncounted:
    """Counts nothing: the front counts what it answers."""

    def before_reading(self, settle: Callable[[], None]) -> None:
        pass

    def answered(self, *_: object, times: int = 1) -> None:
        pass

    def first_byte_sent(self, *_: object, times: int = 1) -> None:
        pass

    def pull_saved(self, *_: object, times: int = 1) -> None:
        pass

    def connection_refused(self) -> None:
        pass


class Tally:
    """Counts (see there) as they will be told: each call once, with how often it was made."""

    def __init__(self) -> None:
        self._settle: list[Callable[[], None]] = []
        self._answered: Counter[tuple[str, str, str, int, str, int]] = Counter()
        self._first_bytes: Counter[tuple[str, str, float]] = Counter()
        self._saved: Counter[tuple[str, str]] = Counter()
        self._given: list[tuple[str, str]] = []
        self._refused = 0

    def before_reading(self, settle: Callable[[], None]) -> None:
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
        self._answered[upstream, kind, method, status, cache.value, sent_bytes] += times

    def first_byte_sent(self, upstream: str, kind: str, seconds: float, times: int = 1) -> None:
        self._first_bytes[upstream, kind, round(seconds, 3)] += times

    def pull_saved(self, upstream: str, repository: str, times: int = 1) -> None:
        self._saved[upstream, repository] += times

    def connection_refused(self) -> None:
        self._refused += 1

    def given(self, digest: Digest, client: str) -> None:
        """A stored blob has gone to this client as a whole."""
        if len(self._given) < MAX_GIVEN:
            self._given.append((str(digest), client))

    def take(self) -> dict[str, Any] | None:
        """All of it, to be told; None: there is nothing."""
        for settle in self._settle:
            settle()
        told = {
            "answered": [[*key, times] for key, times in self._answered.items()],
            "first_bytes": [[*key, times] for key, times in self._first_bytes.items()],
            "saved": [[*key, times] for key, times in self._saved.items()],
            "given": self._given,
            "refused": self._refused,
        }
        if not any(told.values()):
            return None
        for counter in (self._answered, self._first_bytes, self._saved):
            counter.clear()
        self._given, self._refused = [], 0
        return told


def add(told: dict[str, Any], counts: Counts, note_given: Callable[[Digest, str], None]) -> None:
    """What a front has told, to the counts of all. Raises KeyError, ValueError, MirrorError."""
    for upstream, kind, method, status, cache, sent_bytes, times in told["answered"]:
        counts.answered(upstream, kind, method, status, Cache(cache), sent_bytes, times)
    for upstream, kind, seconds, times in told["first_bytes"]:
        counts.first_byte_sent(upstream, kind, seconds, times)
    for upstream, repository, times in told["saved"]:
        counts.pull_saved(upstream, repository, times)
    for digest, client in told["given"]:
        note_given(Digest.parse(digest), client)
    for _ in range(told["refused"]):
        counts.connection_refused()
