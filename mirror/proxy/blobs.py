"""Blobs: from memory, from the store, or from an arrival that everyone follows."""

from dataclasses import dataclass

from mirror.downloads.arrival import Arrival
from mirror.downloads.downloads import Downloads
from mirror.downloads.passthrough import PassThrough
from mirror.downloads.reader import ArrivalReader, BlobReader, StoredReader
from mirror.errors import StorageFailed, UpstreamFailing, UpstreamNotFound, UpstreamRateLimited
from mirror.metrics import Cache, Metrics
from mirror.names import Digest, Repository
from mirror.proxy.absences import Absences
from mirror.proxy.access import Access, named_bytes
from mirror.proxy.contents import Contents
from mirror.store.handles import StoredBlob
from mirror.store.links import Link
from mirror.store.readers import Readers


@dataclass(frozen=True, slots=True)
class BlobReply:
    """A blob's bytes where it is small, else a reader that the caller closes; `direct` is the way
    past the disk, which is the content itself where the disk fails from the start.
    """

    content: bytes | BlobReader | PassThrough
    cache: Cache
    direct: PassThrough


@dataclass(frozen=True, slots=True)
class BlobHead:
    """The size is None where not even the upstream says it."""

    size_bytes: int | None
    cache: Cache


class _ComesFromElsewhere(Exception):
    """The blob is arriving from another upstream. What that sends, and how slowly, is nothing to
    wait for, nor to pass on under this one's name.
    """


class Blobs:
    def __init__(
        self,
        contents: Contents,
        downloads: Downloads,
        access: Access,
        absences: Absences,
        readers: Readers,
        metrics: Metrics,
    ) -> None:
        self._contents = contents
        self._downloads = downloads
        self._access = access
        self._absences = absences
        self._readers = readers
        self._metrics = metrics

    async def head(self, repository: Repository, digest: Digest) -> BlobHead:
        """From a known descriptor, else from the upstream's HEAD; never a download.

        Raises MirrorError.
        """
        known = await self._access.known(repository, digest)
        is_proven = known is not None and known.proven
        if not is_proven:
            self._absences.check("blob", repository, digest)
        if known is not None and known.descriptor.size_bytes is not None:
            return BlobHead(known.descriptor.size_bytes, Cache.HIT)
        if known is None or not is_proven:
            known = await self._prove(repository, digest)
        found = await self._contents.find(digest)
        if isinstance(found, StoredBlob):
            found.close()
            return BlobHead(found.size_bytes, Cache.REVALIDATED)
        size_bytes = len(found) if found is not None else known.descriptor.size_bytes
        return BlobHead(size_bytes, Cache.MISS if found is None else Cache.REVALIDATED)

    async def open(self, repository: Repository, digest: Digest) -> BlobReply:
        """Raises MirrorError; a miss once the upstream's answer to the download is in."""
        direct = self._downloads.pass_through(repository, digest)
        try:
            content, cache = await self._open(repository, digest)
        except _ComesFromElsewhere:
            await direct.open()
            return BlobReply(direct, Cache.UNSTORED, direct)
        except StorageFailed as failed:
            try:
                await direct.open()
            except UpstreamRateLimited:
                raise  # it says when to come again
            except UpstreamFailing:
                raise failed from None
            return BlobReply(direct, Cache.UNSTORED, direct)
        return BlobReply(content, cache, direct)

    async def _open(
        self, repository: Repository, digest: Digest
    ) -> tuple[bytes | BlobReader, Cache]:
        known = await self._access.known(repository, digest)
        proof = Cache.HIT if known is not None and known.proven else None
        if proof is None:
            self._absences.check("blob", repository, digest)
        expected_bytes = named_bytes(known)
        while True:
            found = await self._find(digest)
            if isinstance(found, Arrival) and found.source.upstream != repository.upstream:
                if await self._downloads.make_way(found):
                    continue
                raise _ComesFromElsewhere
            if proof is None and not _is_fetched_by(repository, found):
                if isinstance(found, StoredBlob):
                    found.close()
                proven = await self._prove(repository, digest)
                proof = Cache.REVALIDATED if proven.proven else Cache.HIT
                continue
            # From here to where `join` finds or begins an arrival nothing else runs.
            if isinstance(found, StoredBlob):
                return StoredReader(found), proof or Cache.HIT
            if isinstance(found, bytes):
                return found, proof or Cache.HIT
            following = await self._follow(repository, digest, expected_bytes)
            if following is not None:
                return following
            proof = proof or Cache.HIT  # the upstream gives it to this repository

    async def _follow(
        self, repository: Repository, digest: Digest, expected_bytes: int | None
    ) -> tuple[BlobReader, Cache] | None:
        """None when the download has just ended, or failed for who began it. Raises MirrorError."""
        try:
            arrival, joined = await self._downloads.join(repository, digest, expected_bytes)
        except UpstreamNotFound:
            self._absences.note("blob", repository, digest)
            raise
        reader = await ArrivalReader.open(arrival, self._metrics, self._readers)
        if reader is not None:
            return reader, Cache.JOINED if joined else Cache.MISS
        error = arrival.error
        if error is not None and (arrival.source == repository or isinstance(error, StorageFailed)):
            raise error
        return None

    async def _prove(self, repository: Repository, digest: Digest) -> Link:
        try:
            return await self._access.prove_blob(repository, digest)
        except UpstreamNotFound:
            self._absences.note("blob", repository, digest)
            raise

    async def _find(self, digest: Digest) -> bytes | StoredBlob | Arrival | None:
        """An arrival may begin or land while we look into the store: then we look again."""
        while True:
            if (arrival := self._downloads.find(digest)) is not None:
                return arrival
            landed = self._downloads.landed
            found = await self._contents.find(digest)
            if found is not None:
                return found
            if landed == self._downloads.landed and self._downloads.find(digest) is None:
                return None


def _is_fetched_by(repository: Repository, found: bytes | StoredBlob | Arrival | None) -> bool:
    """What is not here, or on its way under this name, needs no further proof: that the upstream
    gives it is one.
    """
    return found is None or (isinstance(found, Arrival) and found.source == repository)
