"""Small contents, hot ones in memory: manifests, configs and the like, by digest."""

import time

from cachetools import LRUCache

from mirror.manifest import MANIFEST_LIMIT_BYTES, Descriptor, Manifest
from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.singleflight import Flights
from mirror.store.filesystem import BlobStore
from mirror.store.handles import StoredBlob
from mirror.store.index import Index

HOT_BYTES = 32 * 1024 * 1024
# A larger blob goes out by sendfile, where memory would gain nothing.
HOT_BLOB_BYTES = 64 * 1024


class Contents:
    """The store with its hot part in memory. Raises StorageFailed."""

    def __init__(self, store: BlobStore, index: Index, metrics: Metrics) -> None:
        self._store = store
        self._index = index
        self._metrics = metrics
        self._hot: LRUCache[Digest, bytes] = LRUCache(HOT_BYTES, getsizeof=len)
        self._writes: Flights[Digest, None] = Flights()

    async def open(self) -> None:
        """Takes stock, for the gauges."""
        blobs, size_bytes = await self._index.usage()
        self._metrics.stored(blobs, size_bytes)

    def hot(self, digest: Digest) -> bytes | None:
        return self._hot.get(digest)

    async def has(self, digest: Digest) -> bool:
        return digest in self._hot or await self._store.has(digest)

    async def find(self, digest: Digest) -> bytes | StoredBlob | None:
        """A small blob as bytes, a larger one as an open file."""
        if (body := self._hot.get(digest)) is not None:
            return body
        stored = await self._store.find(digest)
        if stored is None or stored.size_bytes > HOT_BLOB_BYTES:
            return stored
        stored.close()
        return await self._read(digest)

    async def read(self, digest: Digest) -> bytes | None:
        """The whole of what may be a manifest; None for what is too large to be one."""
        if (body := self._hot.get(digest)) is not None:
            return body
        stored = await self._store.find(digest)
        if stored is None:
            return None
        stored.close()
        return await self._read(digest) if stored.size_bytes <= MANIFEST_LIMIT_BYTES else None

    async def keep(self, manifest: Manifest) -> None:
        """Stores a manifest whose digest was checked: once, however many repositories bring it."""
        flight, _ = self._writes.start(manifest.digest, lambda: self._write(manifest))
        await flight.wait()

    async def aclose(self) -> None:
        await self._writes.aclose()

    async def note_stored(self, descriptor: Descriptor) -> None:
        """A file of this digest and size now has its final name."""
        size_bytes = descriptor.size_bytes or 0
        await self._index.add_blob(descriptor.digest, size_bytes, time.time())
        self._metrics.stored(1, size_bytes)

    async def _read(self, digest: Digest) -> bytes | None:
        body = await self._store.read(digest)
        if body is not None:
            self._keep_hot(digest, body)
        return body

    async def _write(self, manifest: Manifest) -> None:
        if await self.has(manifest.digest):
            return
        await self._store.write(manifest.digest, manifest.body)
        self._keep_hot(manifest.digest, manifest.body)
        await self.note_stored(manifest.descriptor)

    def _keep_hot(self, digest: Digest, body: bytes) -> None:
        if len(body) <= HOT_BYTES:
            self._hot[digest] = body
