"""Blobs: from memory, from the store, or from an arrival that everyone follows."""

from dataclasses import dataclass

from mirror.downloads.arrival import Arrival
from mirror.downloads.downloads import Downloads
from mirror.downloads.reader import ArrivalReader, BlobReader, StoredReader
from mirror.errors import UpstreamNotFound
from mirror.manifest import Descriptor
from mirror.metrics import Cache, Metrics
from mirror.names import Digest, Repository
from mirror.proxy.absences import Absences
from mirror.proxy.access import Access
from mirror.proxy.contents import Contents
from mirror.store.handles import StoredBlob


@dataclass(frozen=True, slots=True)
class BlobReply:
    """A blob's bytes where it is small, else a reader that the caller closes."""

    content: bytes | BlobReader
    cache: Cache


@dataclass(frozen=True, slots=True)
class BlobHead:
    """The size is None where not even the upstream says it."""

    size_bytes: int | None
    cache: Cache


class Blobs:
    def __init__(
        self,
        contents: Contents,
        downloads: Downloads,
        access: Access,
        absences: Absences,
        metrics: Metrics,
    ) -> None:
        self._contents = contents
        self._downloads = downloads
        self._access = access
        self._absences = absences
        self._metrics = metrics

    async def head(self, repository: Repository, digest: Digest) -> BlobHead:
        """From a known descriptor, else from the upstream's HEAD; never a download.

        Raises MirrorError.
        """
        known = await self._access.known(repository, digest)
        if known is not None and known.size_bytes is not None:
            return BlobHead(known.size_bytes, Cache.HIT)
        self._absences.check("blob", repository, digest)
        descriptor = known or await self._prove(repository, digest)
        found = await self._contents.find(digest)
        if isinstance(found, StoredBlob):
            found.close()
            return BlobHead(found.size_bytes, Cache.REVALIDATED)
        size_bytes = len(found) if found is not None else descriptor.size_bytes
        return BlobHead(size_bytes, Cache.MISS if found is None else Cache.REVALIDATED)

    async def open(self, repository: Repository, digest: Digest) -> BlobReply:
        """Raises MirrorError; a miss once the upstream's answer to the download is in."""
        known = await self._access.known(repository, digest)
        if known is None:
            self._absences.check("blob", repository, digest)
        proof = Cache.HIT if known is not None else None
        expected_bytes = known.size_bytes if known is not None else None
        while True:
            found = await self._find(digest)
            if proof is None and not _is_fetched_by(repository, found):
                if isinstance(found, StoredBlob):
                    found.close()
                await self._prove(repository, digest)
                proof = Cache.REVALIDATED
                continue
            # From here to where `join` finds or begins an arrival nothing else runs.
            if isinstance(found, StoredBlob):
                return BlobReply(StoredReader(found), proof or Cache.HIT)
            if isinstance(found, bytes):
                return BlobReply(found, proof or Cache.HIT)
            try:
                arrival, joined = await self._downloads.join(repository, digest, expected_bytes)
            except UpstreamNotFound:
                self._absences.note("blob", repository, digest)
                raise
            proof = proof or Cache.HIT  # the upstream gives it to this repository
            reader = await ArrivalReader.open(arrival, self._metrics)
            if reader is not None:
                return BlobReply(reader, Cache.JOINED if joined else Cache.MISS)

    async def _prove(self, repository: Repository, digest: Digest) -> Descriptor:
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
