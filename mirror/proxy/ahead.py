"""Blobs that clients are about to ask for: what a manifest names, from when it is served.

A client asks for an image's blobs three or four at a time, and for a far upstream's that is few.
Whoever asks then joins what is arriving, or has it at once. Only a manifest that a client was given
counts, so that of an index nothing comes but the platforms that are pulled. It is work that nobody
waits for: it gives way to whatever somebody does (see downloads/shares.py), and its failures are
nobody's.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog
from cachetools import TTLCache

from mirror.downloads.downloads import Downloads
from mirror.errors import StorageFailed
from mirror.manifest import INDEXES, Descriptor, Manifest, blobs_of
from mirror.names import Digest, Repository
from mirror.proxy.contents import Contents
from mirror.upstream.client import UpstreamClient

# What waits for each upstream, at most: what is beyond is fetched when it is asked for.
MAX_WAITING = 1000
MAX_WAITING_BYTES = 16 * 1024**3
# A hot manifest is looked at once in this time.
LOOK_AGAIN_SECONDS = 10
_MAX_LOOKED_AT = 10_000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Wish:
    repository: Repository
    digest: Digest
    size_bytes: int


@dataclass
class _Line:
    """What waits for one upstream, and the task that sees to it while something does."""

    wishes: deque[_Wish] = field(default_factory=deque)
    waiting_bytes: int = 0
    task: asyncio.Task[None] | None = None

    def join(self, wish: _Wish) -> None:
        is_full = len(self.wishes) >= MAX_WAITING
        if not is_full and self.waiting_bytes + wish.size_bytes <= MAX_WAITING_BYTES:
            self.wishes.append(wish)
            self.waiting_bytes += wish.size_bytes

    def next(self) -> _Wish:
        wish = self.wishes.popleft()
        self.waiting_bytes -= wish.size_bytes
        return wish

    def clear(self) -> None:
        self.wishes.clear()
        self.waiting_bytes = 0


class Ahead:
    """Owns a task for each manifest that it looks at, and one for each upstream."""

    def __init__(
        self, clients: Mapping[str, UpstreamClient], downloads: Downloads, contents: Contents
    ) -> None:
        self._clients = clients
        self._downloads = downloads
        self._contents = contents
        self._lines = {name: _Line() for name in clients}
        self._looks: set[asyncio.Task[None]] = set()
        self._looked_at: TTLCache[tuple[Repository, Digest], bool] = TTLCache(
            _MAX_LOOKED_AT, LOOK_AGAIN_SECONDS
        )
        self._has_ended = False

    def note_served(self, repository: Repository, manifest: Manifest) -> None:
        """A client was given this manifest. Returns at once."""
        key = repository, manifest.digest
        if manifest.media_type in INDEXES or key in self._looked_at:
            return
        if not self._may_fetch(repository.upstream):
            return
        self._looked_at[key] = True
        look = asyncio.get_running_loop().create_task(self._look(repository, manifest))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    def end(self) -> None:
        """Nothing more begins, and what nobody has asked for ends."""
        self._has_ended = True
        for line in self._lines.values():
            line.clear()
        self._downloads.crowd.end_ahead()

    async def aclose(self) -> None:
        self.end()
        tasks = [*self._looks, *(line.task for line in self._lines.values() if line.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _may_fetch(self, upstream: str) -> bool:
        client = self._clients[upstream]
        return not self._has_ended and client.upstream.prefetch and client.can_spare_blobs()

    async def _look(self, repository: Repository, manifest: Manifest) -> None:
        """Bodies may be megabytes: they are read in a thread."""
        blobs = await asyncio.to_thread(blobs_of, manifest.body)
        line = self._lines[repository.upstream]
        for digest, blob in {blob.digest: blob for blob in blobs}.items():
            line.join(_Wish(repository, digest, _told_bytes(blob)))
        if line.wishes and line.task is None and not self._has_ended:
            line.task = asyncio.get_running_loop().create_task(
                self._serve(repository.upstream, line)
            )

    async def _serve(self, upstream: str, line: _Line) -> None:
        """Begins one after the other, when there is room; all at once are dropped when the upstream
        has trouble.
        """
        shares = self._downloads.crowd.shares[upstream]
        try:
            while line.wishes:
                if not shares.may_begin_ahead():
                    await shares.freed.wait()
                    continue
                if not self._may_fetch(upstream):
                    line.clear()
                    return
                await self._begin(line.next())
        finally:
            line.task = None

    async def _begin(self, wish: _Wish) -> None:
        if self._downloads.find(wish.digest) is not None:
            return
        try:
            is_here = await self._contents.has(wish.digest)
        except StorageFailed as failed:
            _log.debug("not fetched ahead", digest=str(wish.digest), error=failed.message)
            return
        if not is_here and not self._has_ended:
            self._downloads.begin_ahead(wish.repository, wish.digest, wish.size_bytes)


def _told_bytes(blob: Descriptor) -> int:
    """Each descriptor of a manifest tells its size."""
    return blob.size_bytes or 0
