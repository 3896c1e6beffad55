"""From a tag to a digest: fresh, revalidated, or stale.

Within `tag_ttl` nothing is asked. Then one HEAD for however many askers, which Docker Hub does not
count as a pull. A remembered tag moves to a new digest only once that manifest is here: a Hub that
answers HEAD but refuses the GET must not take away what could still be served.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from cachetools import LRUCache

from mirror.errors import UNANSWERED, Offline, UpstreamBroken, UpstreamNotFound
from mirror.manifest import Descriptor
from mirror.metrics import Cache
from mirror.names import Digest, Repository, Tag
from mirror.proxy.absences import Absences
from mirror.proxy.access import Access
from mirror.proxy.patience import by_upstream, within_patience
from mirror.proxy.spared import if_told, spared
from mirror.singleflight import Flights
from mirror.store.index import Index
from mirror.store.pins import Pins
from mirror.store.remembered import RememberedTag
from mirror.upstream.client import UpstreamClient

HOT_TAGS = 50_000

# Brings the manifest here by (repository, digest, tag) or, without a digest, by the tag alone;
# returns its digest, and whether that took a GET. Raises MirrorError.
Obtain = Callable[[Repository, Digest | None, Tag], Awaitable[tuple[Digest, bool]]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """`stale_seconds` is the age of an answer that stands in for a failing upstream, else None.
    `is_pulled`: this took a GET upstream. Until `fresh_until` on the monotonic clock, nothing would
    be asked; None: it is due.
    """

    digest: Digest
    cache: Cache
    stale_seconds: float | None = None
    is_pulled: bool = False
    fresh_until: float | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """A remembered tag, and when it was last checked on the clock that never jumps. Only as it is
    loaded does the wall clock tell its age.
    """

    digest: Digest
    checked_at: float
    is_dated: bool = True  # False: in the future, so that nobody knows when, or in doubt

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self.checked_at


class Tags:
    def __init__(
        self,
        clients: Mapping[str, UpstreamClient],
        index: Index,
        access: Access,
        absences: Absences,
        obtain: Obtain,
        pins: Pins,
    ) -> None:
        self._clients = clients
        self._index = index
        self._access = access
        self._absences = absences
        self._obtain = obtain
        self._pins = pins
        self._hot: LRUCache[tuple[Repository, Tag], _Known] = LRUCache(HOT_TAGS)
        self._flights: Flights[tuple[Repository, Tag], Resolved] = Flights(by_upstream)

    async def resolve(self, repository: Repository, tag: Tag) -> Resolved:
        """Raises UpstreamError, TooBusy."""
        known = await self._known(repository, tag)
        if known is None:
            return await self._asked(repository, tag, can_stand_in=False)
        if self._is_fresh(repository, known):
            return self._fresh(repository, known)
        upstream = self._clients[repository.upstream].upstream
        stale = Resolved(known.digest, Cache.STALE, known.age_seconds)
        can_stand_in = known.age_seconds <= upstream.stale_for_seconds
        try:
            return await self._asked(repository, tag, can_stand_in=can_stand_in)
        except UNANSWERED as error:
            if can_stand_in or isinstance(error, Offline):
                return stale
            raise
        except UpstreamNotFound:
            if upstream.keeps_vanished:
                return stale
            raise

    async def remembered(self, repository: Repository, tag: Tag) -> Resolved | None:
        """However old; nobody is asked."""
        known = await self._known(repository, tag)
        if known is None:
            return None
        if self._is_fresh(repository, known):
            return Resolved(known.digest, Cache.HIT)
        return Resolved(known.digest, Cache.STALE, known.age_seconds)

    def doubt(self, repository: Repository, tag: Tag) -> None:
        """It is due, however lately the upstream was asked."""
        if (known := self._hot.get((repository, tag))) is not None:
            self._hot[repository, tag] = replace(known, is_dated=False)

    def forget(self, repository: Repository, tag: Tag) -> None:
        """The index forgot it as well."""
        self._hot.pop((repository, tag), None)

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def _known(self, repository: Repository, tag: Tag) -> _Known | None:
        if (known := self._hot.get((repository, tag))) is not None:
            return known
        remembered = await if_told(self._index.tag(repository, tag))
        known = self._hot.get((repository, tag))  # a flight may have landed meanwhile
        if known is None and remembered is not None:
            known = self._warm(repository, tag, remembered)
        return known

    def _warm(self, repository: Repository, tag: Tag, remembered: RememberedTag) -> _Known:
        age_seconds = time.time() - remembered.checked_at
        checked_at = time.monotonic() - max(age_seconds, 0)
        known = _Known(remembered.digest, checked_at, is_dated=age_seconds >= 0)
        self._hot[repository, tag] = known
        return known

    def _is_fresh(self, repository: Repository, known: _Known) -> bool:
        """For `tag_ttl`, and longer while few pulls are left; not where the upstream has said since
        that it does not have what the tag was. An upstream that says so at once contradicts itself,
        and is not asked again for each client.
        """
        client = self._clients[repository.upstream]
        ttl_seconds, age_seconds = client.upstream.tag_ttl_seconds, known.age_seconds
        settled_at = known.checked_at + client.upstream.not_found_ttl_seconds
        if not known.is_dated or self._absences.was_noted_since(
            "manifest", repository, known.digest, settled_at
        ):
            return False
        return age_seconds < ttl_seconds or age_seconds < ttl_seconds * client.ratelimits.ttl_factor

    def _fresh(self, repository: Repository, known: _Known) -> Resolved:
        ttl_seconds = self._clients[repository.upstream].upstream.tag_ttl_seconds
        return Resolved(known.digest, Cache.HIT, fresh_until=known.checked_at + ttl_seconds)

    async def _asked(self, repository: Repository, tag: Tag, *, can_stand_in: bool) -> Resolved:
        self._absences.check("manifest", repository, tag)
        flight, joined = self._flights.start(
            (repository, tag), lambda: self._check(repository, tag)
        )
        resolved = await within_patience(flight, repository.upstream, can_stand_in=can_stand_in)
        if not joined:
            return resolved
        is_miss = resolved.cache is Cache.MISS
        return Resolved(resolved.digest, Cache.JOINED if is_miss else resolved.cache)

    async def _check(self, repository: Repository, tag: Tag) -> Resolved:
        """The work of a flight. All that follows from the upstream's answer happens here, since
        nobody may be left who waits for it.
        """
        known = self._hot.get((repository, tag))
        if known is not None and self._is_fresh(repository, known):
            return Resolved(known.digest, Cache.HIT)  # an earlier flight has just landed
        try:
            digest, is_pulled = await self._ask(repository, tag, known)
        except UpstreamNotFound:
            await self._note_vanished(repository, tag)
            raise
        await self._adopt(repository, tag, digest)
        unmoved = known is not None and digest == known.digest
        cache = Cache.REVALIDATED if unmoved else Cache.MISS
        return Resolved(digest, cache, is_pulled=is_pulled)

    async def _ask(
        self, repository: Repository, tag: Tag, known: _Known | None
    ) -> tuple[Digest, bool]:
        head = await self._clients[repository.upstream].head_manifest(repository.name, tag)
        digest = head.digest
        if digest is None:
            return await self._obtain(repository, None, tag)
        # It is there now, whatever was said when somebody asked for it before it was pushed.
        self._absences.forget("manifest", repository, digest)
        if await self._access.held(repository, digest) is None:
            descriptor = Descriptor(digest, head.media_type, head.size_bytes)
            await self._access.grant(repository, descriptor)
        if known is None or digest == known.digest:
            return digest, False
        try:
            return await self._obtain(repository, digest, tag)
        except UpstreamNotFound as error:  # not the tag, which was there a moment ago
            told = f"{tag} is {digest} by its word, which it does not give"
            raise UpstreamBroken(repository.upstream, told) from error

    async def _adopt(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        remembered = RememberedTag(digest, time.time())
        self._hot[repository, tag] = _Known(digest, time.monotonic())
        with spared("a tag", repository=repository, tag=tag):
            await self._index.set_tag(repository, tag, remembered)
            await self._pins.note_tag(repository, tag, digest)

    async def _note_vanished(self, repository: Repository, tag: Tag) -> None:
        """404 upstream: forgotten here too, unless the operator keeps what vanishes."""
        self._absences.note("manifest", repository, tag)
        if self._clients[repository.upstream].upstream.keeps_vanished:
            return
        self._hot.pop((repository, tag), None)
        with spared("that a tag vanished", repository=repository, tag=tag):
            await self._index.drop_tag(repository, tag)
