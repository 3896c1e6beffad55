"""The answers: hit, revalidated, miss, stale. The one room that knows freshness and upstreams
both.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import partial

from mirror.downloads.downloads import Downloads
from mirror.errors import NameUnknown
from mirror.manifest import BLOB_TYPE, Descriptor, is_manifest_type
from mirror.metrics import Metrics
from mirror.names import Digest, Repository, Tag
from mirror.proxy.absences import Absences
from mirror.proxy.access import Access
from mirror.proxy.ahead import Ahead
from mirror.proxy.blobs import Blobs
from mirror.proxy.contents import Contents
from mirror.proxy.listings import Listings
from mirror.proxy.manifests import Manifests
from mirror.proxy.suspicions import Suspicions
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.handles import StoredBlob
from mirror.store.index import Index
from mirror.store.pins import Pins
from mirror.store.quarantine import Quarantine
from mirror.store.scrub import Scrub
from mirror.store.usage import Usage
from mirror.upstream.client import UpstreamClient


class Proxy:
    """Puts this room together; `manifests`, `blobs` and `listings` answer."""

    def __init__(
        self,
        store: BlobStore,
        index: Index,
        quarantine: Quarantine,
        scrub: Scrub,
        usage: Usage,
        eviction: Eviction,
        pins: Pins,
        clients: Mapping[str, UpstreamClient],
        metrics: Metrics,
        hot_bytes: int,
    ) -> None:
        """`hot_bytes` is what small contents may take of memory."""
        self._index = index
        self._clients = clients
        self._contents = Contents(store, index, quarantine, usage, eviction, hot_bytes)
        self._access = Access(index, clients)
        absences = Absences({name: client.upstream for name, client in clients.items()})
        stored = partial(_note_arrived, self._contents, self._access)
        self._downloads = Downloads(store, clients, metrics, stored, eviction)
        eviction.room.arriving_bytes = self._downloads.crowd.arriving_bytes
        metrics.ask_staged(self._staged)
        self._store = store
        self._ahead = Ahead(clients, self._downloads, self._contents)
        self.manifests = Manifests(
            clients, index, self._contents, self._access, absences, self._ahead, pins, metrics
        )
        self.blobs = Blobs(
            self._contents, self._downloads, self._access, absences, store.readers, metrics
        )
        self.listings = Listings(clients, index)
        self.suspicions = Suspicions(scrub.check_soon)

    def _staged(self) -> tuple[int, int]:
        """(blobs, bytes) that are on their way in, or are left of those that broke off."""
        blobs, staged_bytes = self._downloads.crowd.staged()
        left = self._store.leftovers
        return blobs + left.count, staged_bytes + left.size_bytes

    def end_ahead(self) -> None:
        """From now on nothing is fetched but what clients ask for."""
        self._ahead.end()

    async def aclose(self, grace_seconds: float) -> None:
        """Lets running downloads end within the grace; questions under way are dropped."""
        await self._ahead.aclose()
        await self._downloads.aclose(grace_seconds)
        await self.manifests.aclose()
        await self.listings.aclose()
        await self._access.aclose()
        await self._contents.aclose()

    def forget(
        self,
        repository: Repository,
        tags: Iterable[Tag],
        unlinked: Collection[Digest],
        removed: Iterable[Digest],
    ) -> None:
        """What the index forgot: its tags, what it held, and contents that are no longer here."""
        self.manifests.forget(repository, tags, unlinked)
        self._access.forget(repository, unlinked)
        for digest in removed:
            self._contents.forget(digest)

    def is_arriving(self, digest: Digest) -> bool:
        return self._downloads.find(digest) is not None

    async def refetch(self, repository: Repository, content: Descriptor) -> bool:
        """Has a content here that was set aside; whether it is stored by now.

        Raises MirrorError.
        """
        digest = content.digest
        if repository.upstream not in self._clients:
            raise NameUnknown(f"{repository.upstream} is not an upstream of this mirror any more")
        if is_manifest_type(content.media_type):
            self._contents.forget(digest)
            await self.manifests.fetch(repository, digest)
        else:
            arrival, _ = await self._downloads.join(repository, digest, content.size_bytes)
            await arrival.wait_ended()
        return await self._store.has(digest)

    async def note_found(self, digest: Digest, size_bytes: int) -> None:
        """A stored blob was read whole, and the index did not know it. Raises StorageFailed."""
        if await self._store.has(digest):
            await self._contents.note_stored(Descriptor(digest, BLOB_TYPE, size_bytes))

    async def catalog(self, upstream: str | None, after: str, limit: int) -> list[Repository]:
        """What is cached, by name, from the one that follows `after`. Raises StorageFailed."""
        return await self._index.repositories(upstream, after, limit)

    def find_open(self, digest: Digest) -> StoredBlob | None:
        """A stored blob that is open already, and still what it was; the caller closes it."""
        return self._store.find_open(digest)

    async def check_ready(self) -> None:
        """Raises StorageFailed when the disk or the index does not let us serve."""
        await self._store.folder.check_writable()
        await self._index.ping()


async def _note_arrived(
    contents: Contents, access: Access, repository: Repository, descriptor: Descriptor
) -> None:
    """For Downloads: a blob was stored, and its source holds it."""
    await contents.note_stored(descriptor)
    await access.note_arrived(repository, descriptor)
