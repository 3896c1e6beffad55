"""Small contents, hot ones in memory: manifests, configs and the like, by digest."""

import asyncio
import os
import time

from cachetools import LRUCache

from mirror.errors import StorageFailed
from mirror.manifest import MANIFEST_LIMIT_BYTES, Descriptor, Manifest
from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.proxy.spared import spared
from mirror.singleflight import Flights
from mirror.store.filesystem import BlobStore, storage_failed
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

    async def find(self, digest: Digest) -> bytes | StoredBlob | None:
        """A small blob as bytes, a larger one as an open file."""
        if (body := self._hot.get(digest)) is not None:
            return body
        stored = await self._store.find(digest)
        if stored is None or stored.size_bytes > HOT_BLOB_BYTES:
            return stored
        return await self._read(digest, stored)

    async def read(self, digest: Digest) -> bytes | None:
        """The whole of what may be a manifest; None for what is too large to be one."""
        if (body := self._hot.get(digest)) is not None:
            return body
        stored = await self._store.find(digest)
        if stored is None:
            return None
        if stored.size_bytes > MANIFEST_LIMIT_BYTES:
            stored.close()
            return None
        return await self._read(digest, stored)

    async def keep(self, manifest: Manifest) -> None:
        """Stores a manifest whose digest was checked: once, however many repositories bring it.

        Where the disk fails, it is kept in memory only.
        """
        flight, _ = self._writes.start(manifest.digest, lambda: self._write(manifest))
        await flight.wait()

    async def aclose(self) -> None:
        await self._writes.aclose()

    async def note_stored(self, descriptor: Descriptor) -> None:
        """A file of this digest and size now has its final name."""
        size_bytes = descriptor.size_bytes or 0
        with spared("that a content was stored", digest=descriptor.digest):
            if await self._index.add_blob(descriptor.digest, size_bytes, time.time()):
                self._metrics.stored(1, size_bytes)

    async def _read(self, digest: Digest, stored: StoredBlob) -> bytes:
        """The whole, and hot from now on. Closes it, not before the thread is done with it."""
        reading = asyncio.ensure_future(asyncio.to_thread(_whole, stored))
        reading.add_done_callback(lambda _: stored.close())
        body = await asyncio.shield(reading)
        self._keep_hot(digest, body)
        return body

    async def _write(self, manifest: Manifest) -> None:
        self._keep_hot(manifest.digest, manifest.body)
        if await self._store.has(manifest.digest):
            return
        with spared("a manifest", digest=manifest.digest):
            await self._store.write(manifest.digest, manifest.body)
            await self.note_stored(manifest.descriptor)

    def _keep_hot(self, digest: Digest, body: bytes) -> None:
        if len(body) <= HOT_BYTES:
            self._hot[digest] = body


def _whole(stored: StoredBlob) -> bytes:
    try:
        body = os.pread(stored.file.fileno(), stored.size_bytes, 0)
    except OSError as error:
        raise storage_failed(error) from error
    if len(body) < stored.size_bytes:
        raise StorageFailed("a stored blob is shorter than it was; its operator should look")
    return body
