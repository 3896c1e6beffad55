"""Who may read what: content is stored once, but served under a repository only when that
repository is proven to hold it: it was fetched under that name, or its upstream, asked with HEAD,
says so. What a manifest merely names proves nothing, since whoever may push a manifest chooses what
it names: the upstream is asked first. Only while that cannot be is the name enough, and only for
content that came from the same upstream.
"""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from cachetools import LRUCache

from mirror.errors import UNANSWERED
from mirror.manifest import BLOB_TYPE, Descriptor, is_manifest_type
from mirror.names import Digest, Repository
from mirror.proxy.patience import by_upstream, within_patience
from mirror.proxy.spared import if_told, spared
from mirror.singleflight import Flights
from mirror.store.index import Index
from mirror.store.links import Link
from mirror.upstream.client import UpstreamClient

HOT_LINKS = 100_000

V = TypeVar("V")


class Access:
    def __init__(self, index: Index, clients: Mapping[str, UpstreamClient]) -> None:
        self._index = index
        self._clients = clients
        self._hot: LRUCache[tuple[Repository, Digest], Link] = LRUCache(HOT_LINKS)
        self._blobs: Flights[tuple[Repository, Digest], Link] = Flights(by_upstream)
        self._manifests: Flights[tuple[Repository, Digest], Link | None] = Flights(by_upstream)

    async def known(self, repository: Repository, digest: Digest) -> Link | None:
        """None where the repository is known neither to hold it nor to name it."""
        link = self._hot.get((repository, digest))
        if link is None:
            linked = await if_told(self._index.linked(repository, [digest]))
            link = self._hot.get((repository, digest), linked[0] if linked else None)
            if link is not None:  # it may have been granted meanwhile
                self._hot[repository, digest] = link
        return link

    async def held(self, repository: Repository, digest: Digest) -> Descriptor | None:
        """The content where the repository is proven to hold it."""
        link = await self.known(repository, digest)
        return link.descriptor if link is not None and link.proven else None

    async def grant(self, repository: Repository, held: Descriptor) -> Link:
        """The repository gave it, or its upstream says that it holds it."""
        known = self._hot.get((repository, held.digest))
        if known is not None:
            held = _completed(held, known.descriptor)
        return await self._note_held(repository, held)

    async def note_arrived(self, repository: Repository, held: Descriptor) -> None:
        """Its bytes came from there, and their number is certain, whatever a manifest says."""
        known = await self.known(repository, held.digest)
        if known is not None and known.proven and known.descriptor.size_bytes == held.size_bytes:
            return
        if known is not None and _is_by_manifest(known.descriptor):
            held = replace(held, media_type=known.descriptor.media_type)
        await self._note_held(repository, held)

    async def _note_held(self, repository: Repository, held: Descriptor) -> Link:
        link = self._hot[repository, held.digest] = Link(held, proven=True)
        with spared("what a repository holds", repository=repository):
            await self._index.link(repository, [link])
        return link

    async def name(self, repository: Repository, named: Iterable[Descriptor]) -> None:
        """A manifest of the repository names these: their sizes are known, and no more."""
        new = [each for each in named if not self._is_settled(repository, each)]
        linked = await if_told(self._index.linked(repository, [each.digest for each in new]))
        for link in linked or ():
            if link.proven:
                self._hot[repository, link.descriptor.digest] = link
        links = [Link(each, proven=False) for each in new if not self._is_settled(repository, each)]
        for link in links:
            self._hot[repository, link.descriptor.digest] = link
        with spared("what a manifest names", repository=repository):
            await self._index.link(repository, links)

    async def prove_blob(self, repository: Repository, digest: Digest) -> Link:
        """Asks the upstream with HEAD, and remembers. Not proven: a name that stands in for an
        upstream that fails. Raises UpstreamError.
        """

        async def ask() -> Link:
            known = self._hot.get((repository, digest))
            if known is not None and known.proven:
                return known  # an earlier flight has just landed
            size_bytes = await self._clients[repository.upstream].head_blob(repository.name, digest)
            return await self.grant(repository, Descriptor(digest, BLOB_TYPE, size_bytes))

        return await self._proof(self._blobs, repository, digest, ask)

    async def prove_manifest(self, repository: Repository, digest: Digest) -> Link | None:
        """As for a blob; None where HEAD does not tell. Raises UpstreamError."""

        async def ask() -> Link | None:
            known = self._hot.get((repository, digest))
            if known is not None and known.proven:
                return known
            client = self._clients[repository.upstream]
            head = await client.head_manifest(repository.name, digest)
            is_told = head.digest is None and is_manifest_type(head.media_type)
            if head.digest != digest and not is_told:
                return None
            descriptor = Descriptor(digest, head.media_type, head.size_bytes)
            return await self.grant(repository, descriptor)

        return await self._proof(self._manifests, repository, digest, ask)

    def forget(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """The index forgot it as well: from now on the upstream is asked."""
        for digest in digests:
            self._hot.pop((repository, digest), None)

    async def aclose(self) -> None:
        await self._blobs.aclose()
        await self._manifests.aclose()

    def _is_settled(self, repository: Repository, named: Descriptor) -> bool:
        known = self._hot.get((repository, named.digest))
        return known is not None and (known.proven or known.descriptor == named)

    async def _proof(
        self,
        flights: Flights[tuple[Repository, Digest], V],
        repository: Repository,
        digest: Digest,
        ask: Callable[[], Coroutine[Any, Any, V]],
    ) -> V | Link:
        stand_in = await self._stand_in(repository, digest)
        try:
            flight, _ = flights.start((repository, digest), ask)
            return await within_patience(
                flight, repository.upstream, can_stand_in=stand_in is not None
            )
        except UNANSWERED:
            if stand_in is None:
                raise
            return stand_in

    async def _stand_in(self, repository: Repository, digest: Digest) -> Link | None:
        """What the repository names, where the content came from the same upstream: registries take
        a manifest only when they hold its layers under that name (distribution-spec, "Pushing
        Manifests"). Another upstream's word could have been made up to get at it.
        """
        link = await self.known(repository, digest)
        if link is None:
            return None
        sources = await if_told(self._index.sources(digest)) or set()
        return link if repository.upstream in sources else None


def named_bytes(link: Link | None) -> int | None:
    """The size by a manifest; what HEAD says of it is put right by a download."""
    if link is None or not _is_by_manifest(link.descriptor):
        return None
    return link.descriptor.size_bytes


def _is_by_manifest(descriptor: Descriptor) -> bool:
    """No other answer tells a blob's type."""
    return descriptor.media_type not in ("", BLOB_TYPE)


def _completed(held: Descriptor, known: Descriptor) -> Descriptor:
    """By what a manifest told, where one did; HEAD may tell no size."""
    if _is_by_manifest(held):
        media_type, sizes = held.media_type, (held.size_bytes, known.size_bytes)
    elif _is_by_manifest(known):
        media_type, sizes = known.media_type, (known.size_bytes, held.size_bytes)
    else:
        media_type, sizes = known.media_type, (held.size_bytes, known.size_bytes)
    return Descriptor(held.digest, media_type, next((s for s in sizes if s is not None), None))
