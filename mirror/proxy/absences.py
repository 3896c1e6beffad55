"""404s, remembered for a few seconds: cosign alone asks for several missing tags with each pull."""

import time
from collections.abc import Mapping

from cachetools import LRUCache, TLRUCache

from mirror.errors import UpstreamNotFound
from mirror.names import Reference, Repository
from mirror.upstream.definition import Upstream

MAX_ABSENCES = 10_000


class RememberedAbsence(UpstreamNotFound):
    """The upstream said 404 a moment ago."""


class Absences:
    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._absences: TLRUCache[tuple[str, Repository, Reference], str] = TLRUCache(
            MAX_ABSENCES, self._ends_at, time.monotonic
        )
        # When, however long ago.
        self._noted_at: LRUCache[tuple[str, Repository, Reference], float] = LRUCache(MAX_ABSENCES)

    def check(self, kind: str, repository: Repository, reference: Reference) -> None:
        """`kind` is `manifest` or `blob`. Raises RememberedAbsence."""
        message = self._absences.get((kind, repository, reference))
        if message is not None:
            raise RememberedAbsence(repository.upstream, message)

    def was_noted_since(
        self, kind: str, repository: Repository, reference: Reference, since: float
    ) -> bool:
        """`since` is a time of the monotonic clock."""
        return self._noted_at.get((kind, repository, reference), since) > since

    def note(self, kind: str, repository: Repository, reference: Reference) -> None:
        self._noted_at[kind, repository, reference] = time.monotonic()
        self._absences[kind, repository, reference] = (
            f"{repository.name} has no {kind} {reference}, it said a moment ago"
        )

    def forget(self, kind: str, repository: Repository, reference: Reference) -> None:
        self._absences.pop((kind, repository, reference), None)

    def _ends_at(self, key: tuple[str, Repository, Reference], _message: str, now: float) -> float:
        return now + self._upstreams[key[1].upstream].not_found_ttl_seconds
