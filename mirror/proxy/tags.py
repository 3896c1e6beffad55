"""From a tag to a digest: fresh, revalidated, or stale.

Within `tag_ttl` nothing is asked. Then one HEAD for however many askers, which Docker Hub does not
count as a pull. A remembered tag moves to a new digest only once that manifest is here: a Hub that
answers HEAD but refuses the GET must not take away what could still be served.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from cachetools import LRUCache

from mirror.errors import Offline, UpstreamBroken, UpstreamFailing, UpstreamNotFound
from mirror.manifest import Descriptor
from mirror.metrics import Cache
from mirror.names import Digest, Repository, Tag
from mirror.proxy.absences import Absences
from mirror.proxy.access import Access
from mirror.proxy.patience import within_patience
from mirror.singleflight import Flights
from mirror.store.index import Index, RememberedTag
from mirror.upstream.client import ManifestHead, UpstreamClient

HOT_TAGS = 50_000
# HEAD on manifests is not everywhere: then GET tells, too.
_HEAD_NOT_OFFERED = frozenset({400, 405, 501})

# Brings the manifest here by (repository, digest, tag) or, without a digest, by the tag alone;
# returns its digest. Raises MirrorError.
Obtain = Callable[[Repository, Digest | None, Tag], Awaitable[Digest]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """`stale_seconds` is the age of an answer that stands in for a failing upstream, else None."""

    digest: Digest
    cache: Cache
    stale_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """A remembered tag with both clocks: the wall's outlives the process, the other never jumps."""

    digest: Digest
    checked_at: float
    fresh_until: float


class Tags:
    def __init__(
        self,
        clients: Mapping[str, UpstreamClient],
        index: Index,
        access: Access,
        absences: Absences,
        obtain: Obtain,
    ) -> None:
        self._clients = clients
        self._index = index
        self._access = access
        self._absences = absences
        self._obtain = obtain
        self._hot: LRUCache[tuple[Repository, Tag], _Known] = LRUCache(HOT_TAGS)
        self._flights: Flights[tuple[Repository, Tag], Resolved] = Flights()

    async def resolve(self, repository: Repository, tag: Tag) -> Resolved:
        """Raises UpstreamError, StorageFailed."""
        known = await self._known(repository, tag)
        if known is not None and time.monotonic() < known.fresh_until:
            return Resolved(known.digest, Cache.HIT)
        self._absences.check("manifest", repository, tag)
        flight, joined = self._flights.start(
            (repository, tag), lambda: self._check(repository, tag)
        )
        stand_in = self._stand_in(repository, known)
        try:
            resolved = await within_patience(
                flight, repository.upstream, can_stand_in=stand_in is not None
            )
        except UpstreamFailing as error:
            if stand_in is None and not (known and isinstance(error, Offline)):
                raise
            return stand_in or _stale(known)
        except UpstreamNotFound:
            return await self._vanished(repository, tag, stand_in)
        if joined and resolved.cache is Cache.MISS:
            return Resolved(resolved.digest, Cache.JOINED)
        return resolved

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def _known(self, repository: Repository, tag: Tag) -> _Known | None:
        known = self._hot.get((repository, tag))
        if known is None:
            remembered = await self._index.tag(repository, tag)
            if remembered is not None:
                known = self._warm(repository, tag, remembered)
        return known

    def _warm(self, repository: Repository, tag: Tag, remembered: RememberedTag) -> _Known:
        ttl_seconds = self._clients[repository.upstream].upstream.tag_ttl_seconds
        age_seconds = time.time() - remembered.checked_at
        left_seconds = ttl_seconds - age_seconds if age_seconds >= 0 else 0
        known = _Known(
            remembered.digest, remembered.checked_at, time.monotonic() + max(left_seconds, 0)
        )
        self._hot[repository, tag] = known
        return known

    def _stand_in(self, repository: Repository, known: _Known | None) -> Resolved | None:
        """What is served while the upstream fails, if it is not too old for that."""
        if known is None:
            return None
        stale = _stale(known)
        stale_for_seconds = self._clients[repository.upstream].upstream.stale_for_seconds
        return stale if (stale.stale_seconds or 0) <= stale_for_seconds else None

    async def _check(self, repository: Repository, tag: Tag) -> Resolved:
        known = self._hot.get((repository, tag))
        if known is not None and time.monotonic() < known.fresh_until:
            return Resolved(known.digest, Cache.HIT)  # an earlier flight has just landed
        client = self._clients[repository.upstream]
        head = await self._head(client, repository, tag)
        digest = head.digest
        if digest is None or (known is not None and digest != known.digest):
            digest = await self._obtain(repository, digest, tag)
        elif known is None:
            await self._access.grant(
                repository, [Descriptor(digest, head.media_type, head.size_bytes)]
            )
        await self._adopt(repository, tag, digest)
        unmoved = known is not None and digest == known.digest
        return Resolved(digest, Cache.REVALIDATED if unmoved else Cache.MISS)

    async def _head(self, client: UpstreamClient, repository: Repository, tag: Tag) -> ManifestHead:
        try:
            return await client.head_manifest(repository.name, tag)
        except UpstreamBroken as error:
            if error.answered not in _HEAD_NOT_OFFERED:
                raise
            return ManifestHead(None, "", None)

    async def _adopt(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        remembered = RememberedTag(digest, time.time())
        self._warm(repository, tag, remembered)
        await self._index.set_tag(repository, tag, remembered)

    async def _vanished(
        self, repository: Repository, tag: Tag, stand_in: Resolved | None
    ) -> Resolved:
        """404 upstream: forgotten here too, unless the operator keeps what vanishes."""
        if stand_in is not None and self._clients[repository.upstream].upstream.keeps_vanished:
            return stand_in
        self._absences.note("manifest", repository, tag)
        self._hot.pop((repository, tag), None)
        await self._index.drop_tag(repository, tag)
        raise UpstreamNotFound(repository.upstream, f"{repository.name} has no tag {tag}")


def _stale(known: _Known | None) -> Resolved:
    assert known is not None  # noqa: S101 - both callers have looked
    return Resolved(known.digest, Cache.STALE, max(time.time() - known.checked_at, 0))
