"""Small contents, hot ones in memory: manifests, configs and the like, by digest."""

import asyncio
import errno
import os
import time
from collections import deque
from contextlib import suppress

import structlog
from cachetools import LRUCache

from mirror.errors import StorageFailed, TooBusy
from mirror.manifest import MANIFEST_LIMIT_BYTES, Descriptor, Manifest
from mirror.names import Digest
from mirror.proxy.spared import if_told, spared
from mirror.retention import worth
from mirror.singleflight import Flights
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.handles import Handle, StoredBlob
from mirror.store.index import Index
from mirror.store.quarantine import Damage, Quarantine
from mirror.store.usage import Usage

# Beside the bytes of each content in memory: its digest, and its places in two dictionaries.
OVERHEAD_BYTES = 512
# What is stored while the index takes nothing; what comes on top of that `mirror verify` finds.
MAX_MISSED = 100_000
# Manifests that the disk did not take; what comes on top of that is fetched again after a restart.
MAX_UNWRITTEN = 1_000
# A larger blob goes out by sendfile, where memory would gain nothing.
HOT_BLOB_BYTES = 64 * 1024
# What a disk says of one file; anything else (too many open files, say) is no fault of the blob's.
_FILE_ERRORS = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EISDIR})

_log = structlog.get_logger()


class Contents:
    """The store with its hot part in memory. What it holds damaged, it does not hold."""

    def __init__(
        self,
        store: BlobStore,
        index: Index,
        quarantine: Quarantine,
        usage: Usage,
        eviction: Eviction,
        hot_bytes: int,
    ) -> None:
        """`hot_bytes` is what the hot part may take."""
        self._store = store
        self._index = index
        self._quarantine = quarantine
        self._usage = usage
        self._eviction = eviction
        self._hot: LRUCache[Digest, bytes] = LRUCache(hot_bytes, getsizeof=_held_bytes)
        self._writes: Flights[Digest, None] = Flights()
        self._missed: deque[Descriptor] = deque(maxlen=MAX_MISSED)
        self._unwritten: LRUCache[Digest, Descriptor] = LRUCache(MAX_UNWRITTEN)
        self._is_closing = False

    def hot(self, digest: Digest) -> bytes | None:
        return self._hot.get(digest)

    async def has(self, digest: Digest) -> bool:
        """Whether it is here, as far as its name tells. Raises StorageFailed."""
        return digest in self._hot or await self._store.has(digest)

    async def find(self, digest: Digest) -> bytes | StoredBlob | None:
        """A small blob as bytes, a larger one as an open file."""
        self._eviction.note_use(digest)
        if (body := self._hot.get(digest)) is not None:
            return body
        stored = self._store.find_open(digest) or await self._open(digest)
        if stored is None or stored.size_bytes > HOT_BLOB_BYTES:
            return stored
        return await self._read(digest, stored)

    async def read(self, digest: Digest) -> bytes | None:
        """The whole of what may be a manifest; None for what is too large to be one."""
        self._eviction.note_use(digest)
        if (body := self._hot.get(digest)) is not None:
            return body
        stored = self._store.find_open(digest) or await self._open(digest)
        if stored is None:
            return None
        if stored.size_bytes > MANIFEST_LIMIT_BYTES:
            stored.close()
            return None
        return await self._read(digest, stored)

    async def keep(self, manifest: Manifest) -> None:
        """Stores a manifest whose digest was checked: once, however many repositories bring it.

        Where the disk fails, or is full of what may not go, it is kept in memory only, and written
        once something else was stored, or at the end.
        """
        flight, _ = self._writes.start(manifest.digest, lambda: self._write(manifest))
        await flight.wait()

    def forget(self, digest: Digest) -> None:
        """It is no longer here."""
        self._hot.pop(digest, None)
        self._unwritten.pop(digest, None)

    async def aclose(self) -> None:
        self._is_closing = True
        await self._writes.aclose()
        while (manifest := self._next_unwritten()) is not None:
            await self._write(manifest)
            if manifest.digest in self._unwritten:
                break
        await self._tell_missed()

    async def note_stored(self, descriptor: Descriptor) -> None:
        """A file of this digest and size now has its final name."""
        # Before anything is awaited: its download counts no more.
        self._usage.add(1, descriptor.size_bytes or 0)
        is_told = False
        with spared("that a content was stored", digest=descriptor.digest):
            await self._tell_stored(descriptor)
            is_told = True
        if is_told:
            await self._tell_missed()
            self._go_on_writing()
        else:
            self._missed.append(descriptor)

    async def _tell_stored(self, descriptor: Descriptor) -> None:
        """Raises StorageFailed."""
        size_bytes = descriptor.size_bytes or 0
        rank = self._eviction.floor + worth(size_bytes, uses=1)
        if await self._index.add_blob(descriptor.digest, size_bytes, time.time(), rank):
            self._eviction.note_stored(descriptor.digest, size_bytes)
        else:
            self._usage.add(-1, -size_bytes)

    async def _tell_missed(self) -> None:
        """What the index did not take before, as while another program had it locked: what it does
        not know is never evicted.
        """
        while self._missed:
            descriptor = self._missed.popleft()
            try:
                await self._tell_stored(descriptor)
            except StorageFailed:
                self._missed.appendleft(descriptor)
                return

    async def _open(self, digest: Digest) -> StoredBlob | None:
        """A blob that is not open yet, or no longer what it was."""
        while True:
            set_aside_before = self._store.set_aside_count
            handle = await self._sound(digest)
            if handle is None:
                return None
            if set_aside_before != self._store.set_aside_count:
                handle.close()  # it may have been set aside meanwhile
            elif (stored := self._store.keep(digest, handle)) is not None:
                return stored

    async def _sound(self, digest: Digest) -> Handle | None:
        """As far as its size tells, as it was when it was stored."""
        if self._store.is_doubted(digest):
            await self._quarantine.take(digest, Damage.UNREADABLE)
            return None
        try:
            handle = await self._store.find(digest)
        except OSError as error:
            await self._note_unopened(digest, error)
            return None
        try:
            size_bytes = await if_told(self._index.blob_size(digest))
        except BaseException:
            if handle is not None:
                handle.close()
            raise
        if handle is None:
            if size_bytes is not None:
                await self._quarantine.take(digest, Damage.MISSING)
        elif size_bytes not in (None, handle.size_bytes):
            inode = handle.inode
            handle.close()
            await self._quarantine.take(digest, Damage.SIZE, inode)
            return None
        return handle

    async def _note_unopened(self, digest: Digest, error: OSError) -> None:
        if error.errno in _FILE_ERRORS:
            await self._quarantine.take(digest, Damage.UNREADABLE)
        else:
            _log.error("a blob cannot be opened", digest=str(digest), error=error.strerror)

    async def _read(self, digest: Digest, stored: StoredBlob) -> bytes | None:
        """The whole, and hot from now on. Closes it, not before the thread is done with it."""
        inode = stored.inode
        reading = asyncio.ensure_future(asyncio.to_thread(_whole, digest, stored))
        reading.add_done_callback(lambda _: stored.close())
        body = await asyncio.shield(reading)
        if isinstance(body, Damage):
            await self._quarantine.take(digest, body, inode)
            return None
        self._keep_hot(digest, body)
        return body

    async def _write(self, manifest: Manifest) -> None:
        self._keep_hot(manifest.digest, manifest.body)
        with spared("a manifest", digest=manifest.digest):
            if not await self._store.has(manifest.digest):
                await self._put(manifest)
            self._unwritten.pop(manifest.digest, None)
            # Also of one that is here: the index may have failed when it came.
            await self.note_stored(manifest.descriptor)

    async def _put(self, manifest: Manifest) -> None:
        """On the disk; what that does not take, or the end cuts off, is tried again. Raises
        StorageFailed.
        """
        self._unwritten[manifest.digest] = manifest.descriptor
        async with self._eviction.place_for(len(manifest.body)):
            await self._store.write(manifest.digest, manifest.body)

    def _next_unwritten(self) -> Manifest | None:
        """One that is in memory still."""
        while self._unwritten:
            digest, descriptor = self._unwritten.popitem()
            if (body := self._hot.get(digest)) is not None:
                return Manifest(digest, descriptor.media_type, body)
        return None

    def _go_on_writing(self) -> None:
        """One after another: each that is stored leads to the next, and one that is not ends it."""
        if self._is_closing or (manifest := self._next_unwritten()) is None:
            return
        self._unwritten[manifest.digest] = manifest.descriptor  # the flight may not even begin
        with suppress(TooBusy):
            self._writes.start(manifest.digest, lambda: self._write(manifest))

    def _keep_hot(self, digest: Digest, body: bytes) -> None:
        if _held_bytes(body) <= self._hot.maxsize:
            self._hot[digest] = body


def _held_bytes(body: bytes) -> int:
    return len(body) + OVERHEAD_BYTES


def _whole(digest: Digest, stored: StoredBlob) -> bytes | Damage:
    """Small contents are checked each time they come into memory: they stay there for long."""
    try:
        body = os.pread(stored.file.fileno(), stored.size_bytes, 0)
    except OSError:
        return Damage.UNREADABLE
    if len(body) < stored.size_bytes:
        return Damage.SIZE
    return body if digest.matches(body) else Damage.BYTES
