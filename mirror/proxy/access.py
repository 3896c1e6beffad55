"""Who may read what: content is stored once, but served under a repository only when that
repository is known to hold it. It was seen in a manifest served under that name, or its upstream,
asked with HEAD, says so.
"""

from collections.abc import Iterable, Mapping

from cachetools import LRUCache

from mirror.manifest import Descriptor, is_manifest_type
from mirror.names import Digest, Repository
from mirror.proxy.patience import within_patience
from mirror.proxy.spared import spared
from mirror.singleflight import Flights
from mirror.store.index import Index
from mirror.upstream.client import UpstreamClient

HOT_LINKS = 100_000
_BLOB_TYPE = "application/octet-stream"


class Access:
    def __init__(self, index: Index, clients: Mapping[str, UpstreamClient]) -> None:
        self._index = index
        self._clients = clients
        self._hot: LRUCache[tuple[Repository, Digest], Descriptor] = LRUCache(HOT_LINKS)
        self._blobs: Flights[tuple[Repository, Digest], Descriptor] = Flights()
        self._manifests: Flights[tuple[Repository, Digest], Descriptor | None] = Flights()

    async def known(self, repository: Repository, digest: Digest) -> Descriptor | None:
        """The content as this repository holds it; None where nothing is known of it."""
        descriptor = self._hot.get((repository, digest))
        if descriptor is None:
            linked = await self._index.linked(repository, digest)
            descriptor = self._hot.get((repository, digest), linked)  # it may be granted meanwhile
            if descriptor is not None:
                self._hot[repository, digest] = descriptor
        return descriptor

    async def grant(self, repository: Repository, held: Iterable[Descriptor]) -> None:
        """The repository was seen to hold these."""
        descriptors = list(held)
        for descriptor in descriptors:
            self._hot[repository, descriptor.digest] = descriptor
        with spared("what a repository holds", repository=repository):
            await self._index.link(repository, descriptors)

    async def prove_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        """Asks the upstream with HEAD, and remembers. Raises UpstreamError."""

        async def ask() -> Descriptor:
            if (known := self._hot.get((repository, digest))) is not None:
                return known  # an earlier flight has just landed
            size_bytes = await self._clients[repository.upstream].head_blob(repository.name, digest)
            return await self._granted(repository, Descriptor(digest, _BLOB_TYPE, size_bytes))

        flight, _ = self._blobs.start((repository, digest), ask)
        return await within_patience(flight, repository.upstream)

    async def prove_manifest(self, repository: Repository, digest: Digest) -> Descriptor | None:
        """Asks the upstream with HEAD, and remembers; None where HEAD does not tell. Raises
        UpstreamError.
        """

        async def ask() -> Descriptor | None:
            if (known := self._hot.get((repository, digest))) is not None:
                return known
            client = self._clients[repository.upstream]
            head = await client.head_manifest(repository.name, digest)
            is_told = head.digest is None and is_manifest_type(head.media_type)
            if head.digest != digest and not is_told:
                return None
            return await self._granted(
                repository, Descriptor(digest, head.media_type, head.size_bytes)
            )

        flight, _ = self._manifests.start((repository, digest), ask)
        return await within_patience(flight, repository.upstream)

    async def aclose(self) -> None:
        await self._blobs.aclose()
        await self._manifests.aclose()

    async def _granted(self, repository: Repository, descriptor: Descriptor) -> Descriptor:
        await self.grant(repository, [descriptor])
        return descriptor
