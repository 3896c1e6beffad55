"""Manifests as clients ask for them: by tag or digest, GET or HEAD, of the types they accept."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from mirror.errors import ManifestUnknown, UpstreamNotFound
from mirror.manifest import (
    INDEXES,
    Descriptor,
    Manifest,
    fallback_child,
    is_accepted,
    is_manifest_type,
)
from mirror.metrics import Cache, Metrics
from mirror.names import Digest, Reference, Repository, Tag
from mirror.proxy.absences import Absences, RememberedAbsence
from mirror.proxy.access import Access
from mirror.proxy.ahead import Ahead
from mirror.proxy.contents import Contents
from mirror.proxy.manifest_source import ManifestSource
from mirror.proxy.tags import Resolved, Tags
from mirror.store.index import Index
from mirror.store.pins import Pins
from mirror.upstream.client import UpstreamClient


@dataclass(frozen=True, slots=True)
class ManifestReply:
    """`body` is None where only the descriptor was asked for. For the rest see tags.Resolved; what
    was asked for by digest is fresh for ever, once it is here.
    """

    descriptor: Descriptor
    body: bytes | None
    cache: Cache
    stale_seconds: float | None = None
    is_pulled: bool = False
    fresh_until: float | None = None


class Manifests:
    def __init__(
        self,
        clients: Mapping[str, UpstreamClient],
        index: Index,
        contents: Contents,
        access: Access,
        absences: Absences,
        ahead: Ahead,
        pins: Pins,
        metrics: Metrics,
    ) -> None:
        self._ahead = ahead
        self._clients = clients
        self._source = ManifestSource(clients, contents, access, absences, pins, metrics)
        self._tags = Tags(clients, index, access, absences, self._source.obtain, pins)
        self._background = {name: asyncio.Lock() for name in clients}

    async def get(
        self,
        repository: Repository,
        reference: Reference,
        accept: Sequence[str],
        *,
        in_background: bool = False,
    ) -> ManifestReply:
        """The manifest, bytes untouched. Raises MirrorError.

        `in_background`: for nobody who waits, so that it leaves the upstream's last pulls to those
        who do.
        """
        answer = self._get_in_background if in_background else self._get
        reply = await answer(repository, reference, accept)
        if reply.body is not None:
            described = reply.descriptor
            manifest = Manifest(described.digest, described.media_type, reply.body)
            self._ahead.note_served(repository, manifest)
        return reply

    async def fetch(self, repository: Repository, digest: Digest) -> None:
        """Has it here, for no client: nobody is about to ask for its layers. Raises MirrorError."""
        await self._source.by_digest(repository, digest)

    async def _get(
        self, repository: Repository, reference: Reference, accept: Sequence[str]
    ) -> ManifestReply:
        if isinstance(reference, Digest):
            manifest, cache = await self._source.by_digest(repository, reference)
            return ManifestReply(
                manifest.descriptor,
                manifest.body,
                cache,
                is_pulled=cache is Cache.MISS,
                fresh_until=_for_ever(cache),
            )
        resolved, manifest, cache = await self._resolved(repository, reference)
        is_pulled = resolved.is_pulled or cache is Cache.MISS
        if not is_accepted(manifest.media_type, accept):
            manifest, cache = await self._acceptable(repository, manifest, accept)
            is_pulled = is_pulled or cache is Cache.MISS
        return ManifestReply(
            manifest.descriptor,
            manifest.body,
            _worse(resolved, cache),
            resolved.stale_seconds,
            is_pulled,
            resolved.fresh_until if cache is Cache.HIT else None,
        )

    async def _resolved(self, repository: Repository, tag: Tag) -> tuple[Resolved, Manifest, Cache]:
        """What the tag is, and that manifest. Where a fresh one is neither here nor there any more,
        the tag has moved, or is gone, before its time: the upstream is asked what it is now.
        """
        resolved = await self._tags.resolve(repository, tag)
        if resolved.fresh_until is not None:
            try:
                return resolved, *await self._source.by_digest(repository, resolved.digest)
            except RememberedAbsence:
                raise
            except UpstreamNotFound:
                self._tags.doubt(repository, tag)
                resolved = await self._tags.resolve(repository, tag)
        return resolved, *await self._source.by_digest(repository, resolved.digest, tag)

    async def _get_in_background(
        self, repository: Repository, reference: Reference, accept: Sequence[str]
    ) -> ManifestReply:
        """What may cost a pull one at a time, so that each knows how many the one before has
        left.
        """
        remembered = await self._remembered(repository, reference, accept)
        if remembered is not None and remembered.cache is Cache.HIT:
            return remembered
        async with self._background[repository.upstream]:
            kept = self._clients[repository.upstream].ratelimits.kept_from_background()
            if kept is None:
                return await self._get(repository, reference, accept)
        if remembered is None:
            raise kept
        return remembered

    async def _remembered(
        self, repository: Repository, reference: Reference, accept: Sequence[str]
    ) -> ManifestReply | None:
        """What is here already, however old."""
        if isinstance(reference, Digest):
            resolved, accept = Resolved(reference, Cache.HIT), ()
        elif (known := await self._tags.remembered(repository, reference)) is not None:
            resolved = known
        else:
            return None
        manifest = await self._source.stored(repository, resolved.digest)
        if manifest is None or not is_accepted(manifest.media_type, accept):
            return None
        return ManifestReply(
            manifest.descriptor, manifest.body, resolved.cache, resolved.stale_seconds
        )

    async def head(
        self, repository: Repository, reference: Reference, accept: Sequence[str]
    ) -> ManifestReply:
        """What `get` would answer, without spending a pull where HEAD upstream tells enough.

        Raises MirrorError.
        """
        resolved = None
        digest = reference
        if isinstance(digest, Tag):
            resolved = await self._tags.resolve(repository, digest)
            digest = resolved.digest
        descriptor, cache = await self._source.describe(repository, digest)
        usable = is_manifest_type(descriptor.media_type) and descriptor.size_bytes is not None
        if not usable or (resolved and not is_accepted(descriptor.media_type, accept)):
            return await self._get(repository, reference, accept)
        if resolved is None:
            return ManifestReply(descriptor, None, cache, fresh_until=_for_ever(cache))
        return ManifestReply(
            descriptor,
            None,
            _worse(resolved, cache),
            resolved.stale_seconds,
            fresh_until=resolved.fresh_until if cache is Cache.HIT else None,
        )

    def forget(
        self, repository: Repository, tags: Iterable[Tag], digests: Iterable[Digest]
    ) -> None:
        for tag in tags:
            self._tags.forget(repository, tag)
        self._source.forget(repository, digests)

    async def aclose(self) -> None:
        await self._tags.aclose()
        await self._source.aclose()

    async def _acceptable(
        self, repository: Repository, manifest: Manifest, accept: Sequence[str]
    ) -> tuple[Manifest, Cache]:
        """For a client that names types and leaves the stored one out: what registries do, which
        is an index's linux/amd64 entry, else 404.
        """
        child = None
        if manifest.media_type in INDEXES:
            child = await asyncio.to_thread(fallback_child, manifest.body)
        if child is not None:
            found, cache = await self._source.by_digest(repository, child)
            if is_accepted(found.media_type, accept):
                return found, cache
        raise ManifestUnknown(
            f"{repository} has {manifest.digest} as {manifest.media_type}, which the request's "
            "Accept header leaves out"
        )


def _for_ever(cache: Cache) -> float | None:
    return inf if cache is Cache.HIT else None


def _worse(resolved: Resolved, content: Cache) -> Cache:
    """One word for both steps: the one that tells of more work, or of a failing upstream."""
    if resolved.cache is Cache.STALE or content is Cache.HIT:
        return resolved.cache
    return content if resolved.cache in (Cache.HIT, Cache.REVALIDATED) else resolved.cache
