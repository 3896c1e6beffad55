"""Manifests by digest: from memory, from the store, or from the upstream, once for all askers."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from cachetools import LRUCache

from mirror.errors import ManifestUnknown, UpstreamBroken, UpstreamNotFound
from mirror.manifest import (
    Descriptor,
    Manifest,
    blobs_of,
    is_manifest_type,
    media_type_of,
    named_in,
)
from mirror.metrics import Cache, Metrics
from mirror.names import Digest, Reference, Repository, Tag
from mirror.proxy.absences import Absences
from mirror.proxy.access import Access
from mirror.proxy.contents import Contents
from mirror.proxy.patience import by_upstream
from mirror.proxy.spared import spared
from mirror.singleflight import Flights
from mirror.store.pins import Pins
from mirror.upstream.client import ManifestAnswer, UpstreamClient

HOT_MANIFESTS = 50_000


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A manifest, the blobs that it proves something about, and all that it names."""

    manifest: Manifest
    blobs: list[Descriptor]
    named: tuple[Digest, ...]

    @classmethod
    def of(cls, digest: Digest, body: bytes, content_type: str) -> Self | None:
        """None: not a manifest. Bodies may be megabytes: call it from a thread."""
        media_type = media_type_of(body, content_type)
        if media_type is None:
            return None
        manifest = Manifest(digest, media_type, body)
        return cls(manifest, blobs_of(body), named_in(body).digests)


class ManifestSource:
    """Each method says what it cost as well. They raise MirrorError."""

    def __init__(
        self,
        clients: Mapping[str, UpstreamClient],
        contents: Contents,
        access: Access,
        absences: Absences,
        pins: Pins,
        metrics: Metrics,
    ) -> None:
        self._clients = clients
        self._contents = contents
        self._access = access
        self._absences = absences
        self._pins = pins
        self._metrics = metrics
        # The reference is what the upstream is asked for the digest by.
        self._flights: Flights[tuple[Repository, Digest, Reference], Manifest] = Flights(
            by_upstream
        )
        # Manifests whose blobs are known to be named under the repository.
        self._named: LRUCache[tuple[Repository, Digest], bool] = LRUCache(HOT_MANIFESTS)

    async def stored(self, repository: Repository, digest: Digest) -> Manifest | None:
        """What can be served without a question to the upstream."""
        held = await self._access.held(repository, digest)
        body = await self._contents.read(digest) if held is not None else None
        if held is None or body is None:
            return None
        return await self._manifest(repository, digest, body, held)

    async def by_digest(
        self, repository: Repository, digest: Digest, tag: Tag | None = None
    ) -> tuple[Manifest, Cache]:
        held = await self._access.held(repository, digest)
        body = await self._contents.read(digest)
        if body is None:
            self._absences.check("manifest", repository, digest)
            return await self._fetched(repository, digest, tag)
        cache = Cache.HIT
        if held is None:
            held, cache = await self._prove(repository, digest)
        return await self._manifest(repository, digest, body, held), cache

    async def describe(self, repository: Repository, digest: Digest) -> tuple[Descriptor, Cache]:
        descriptor = await self._access.held(repository, digest)
        if descriptor is not None:
            return descriptor, Cache.HIT
        return await self._prove(repository, digest)

    async def obtain(
        self, repository: Repository, digest: Digest | None, tag: Tag
    ) -> tuple[Digest, bool]:
        """For Tags: has the manifest here before a tag may point to it."""
        if digest is not None:
            manifest, cache = await self.by_digest(repository, digest, tag)
            return manifest.digest, cache is Cache.MISS
        manifest = await self._get(repository, tag, None)
        return manifest.digest, True

    def forget(self, repository: Repository, digests: Iterable[Digest]) -> None:
        for digest in digests:
            self._named.pop((repository, digest), None)

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def _prove(self, repository: Repository, digest: Digest) -> tuple[Descriptor, Cache]:
        """That the repository holds it, by the upstream's word: HEAD, and GET where that does not
        tell.
        """
        self._absences.check("manifest", repository, digest)
        try:
            proven = await self._access.prove_manifest(repository, digest)
        except UpstreamNotFound:
            self._absences.note("manifest", repository, digest)
            raise
        if proven is not None:
            return proven.descriptor, Cache.REVALIDATED if proven.proven else Cache.HIT
        manifest, cache = await self._fetched(repository, digest)
        return manifest.descriptor, cache

    async def _fetched(
        self, repository: Repository, digest: Digest, tag: Tag | None = None
    ) -> tuple[Manifest, Cache]:
        """By its digest, so that all its names are one pull; by its tag where that is not found:
        some caches upstream of us know a manifest by its tag only, until that was pulled.
        """
        try:
            try:
                return await self._flown(repository, digest, digest)
            except UpstreamNotFound:
                if tag is None:
                    raise
                return await self._flown(repository, digest, tag)
        except UpstreamNotFound:
            self._absences.note("manifest", repository, digest)
            raise

    async def _flown(
        self, repository: Repository, digest: Digest, reference: Reference
    ) -> tuple[Manifest, Cache]:
        flight, joined = self._flights.start(
            (repository, digest, reference), lambda: self._fetch(repository, digest, reference)
        )
        return await flight.wait(), Cache.JOINED if joined else Cache.MISS

    async def _manifest(
        self, repository: Repository, digest: Digest, body: bytes, held: Descriptor
    ) -> Manifest:
        """A stored manifest as this repository serves it."""
        is_known = is_manifest_type(held.media_type) and held.size_bytes == len(body)
        if is_known and (repository, digest) in self._named:
            return Manifest(digest, held.media_type, body)
        parsed = await asyncio.to_thread(_Parsed.of, digest, body, held.media_type)
        if parsed is None:
            raise ManifestUnknown(f"{digest} is a blob of {repository}, not a manifest")
        if not is_known and await self._access.held(repository, digest) is not None:
            await self._access.grant(repository, parsed.manifest.descriptor)
        return await self._noted(repository, parsed)

    async def _fetch(
        self, repository: Repository, digest: Digest, reference: Reference
    ) -> Manifest:
        held = await self._access.held(repository, digest)
        body = self._contents.hot(digest)
        if held is not None and body is not None:  # an earlier flight has just landed
            return await self._manifest(repository, digest, body, held)
        return await self._get(repository, reference, digest)

    async def _get(
        self, repository: Repository, reference: Reference, digest: Digest | None
    ) -> Manifest:
        """From the upstream, and kept. `digest` None: whatever the tag is."""

        async def understand(answer: ManifestAnswer) -> _Parsed:
            return await asyncio.to_thread(self._check, repository, answer, digest)

        client = self._clients[repository.upstream]
        parsed = await client.get_manifest(repository.name, reference, understand)
        await self._contents.keep(parsed.manifest)
        await self._access.grant(repository, parsed.manifest.descriptor)
        return await self._noted(repository, parsed)

    def _check(
        self, repository: Repository, answer: ManifestAnswer, digest: Digest | None
    ) -> _Parsed:
        """Blocking. Raises UpstreamBroken for bytes that are not the manifest asked for, or none at
        all.
        """
        digest = digest or answer.digest or Digest.of(answer.body)
        if not digest.matches(answer.body):
            self._metrics.digest_mismatch(repository.upstream)
            raise UpstreamBroken(
                repository.upstream, f"sent bytes that are not {digest}; nothing was stored"
            )
        parsed = _Parsed.of(digest, answer.body, answer.content_type)
        if parsed is None:
            raise UpstreamBroken(
                repository.upstream, f"sent something for {repository.name} that is no manifest"
            )
        return parsed

    async def _noted(self, repository: Repository, parsed: _Parsed) -> Manifest:
        """What the manifest names is there now, whatever was said when somebody asked for it before
        it was pushed.
        """
        manifest = parsed.manifest
        for blob in parsed.blobs:
            self._absences.forget("blob", repository, blob.digest)
        await self._access.name(repository, parsed.blobs)
        with spared("what a pinned image needs", digest=manifest.digest):
            await self._pins.note_manifest(manifest.digest, parsed.named)
        self._named[repository, manifest.digest] = True
        return manifest
