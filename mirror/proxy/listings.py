"""Lists that only the upstream can give: tags and referrers. Asked each time, coalesced, remembered
for outages. A failure is never told as an empty list.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from mirror.errors import UNANSWERED, Offline, UpstreamBroken, UpstreamNotFound
from mirror.manifest import OCI_INDEX, bare_type
from mirror.metrics import Cache
from mirror.names import Digest, Repository, Tag
from mirror.proxy.ages import Ages
from mirror.proxy.patience import by_upstream, within_patience
from mirror.proxy.spared import if_told, spared
from mirror.proxy.weblinks import next_query
from mirror.singleflight import Flights
from mirror.store.index import Index
from mirror.store.remembered import MAX_LISTINGS, RememberedListing
from mirror.upstream.client import ListingAnswer, ManifestAnswer, UpstreamClient

MAX_VALUE_CHARACTERS = 512
MAX_REMEMBERED_BYTES = 1024 * 1024
# Any other parameter reaches the upstream, too, but what it answers is not remembered: clients must
# not fill the index with questions of their own making. The last two are some registries' tokens.
PARAMETERS = frozenset({"artifactType", "last", "n", "next_page", "page_token"})
FILTERS_APPLIED = "OCI-Filters-Applied"
# Names of parameters. Anything else is not told on: no client may be sent any byte as a header.
_FILTERS = re.compile(r"[\w, -]{1,256}", re.ASCII)
_NO_REFERRERS = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()

Query = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Listing:
    """A page. `next_query` asks for the one behind it; `stale_seconds`: see tags.Resolved."""

    body: bytes
    next_query: dict[str, str] | None
    filters_applied: str | None
    cache: Cache
    stale_seconds: float | None = None


class Listings:
    def __init__(self, clients: Mapping[str, UpstreamClient], index: Index) -> None:
        self._clients = clients
        self._index = index
        self._ages: Ages[tuple[Repository, str]] = Ages(MAX_LISTINGS)
        self._flights: Flights[tuple[Repository, str], RememberedListing] = Flights(by_upstream)

    async def tags(self, repository: Repository, query: Query) -> Listing:
        """`body` is a JSON list of tags. Raises UpstreamError."""
        question = f"tags/list?{urlencode(sorted(query.items()))}"

        async def ask() -> RememberedListing:
            return await self._ask_tags(repository, query)

        return await self._answer(repository, question, query, ask)

    async def referrers(self, repository: Repository, digest: Digest, query: Query) -> Listing:
        """`body` is an OCI image index. Raises UpstreamError.

        Where the upstream has no such API (404), the fallback tag `sha256-<hex>` answers, and an
        empty index where there is no such tag either (distribution-spec, "Listing Referrers").
        """
        question = f"referrers/{digest}?{urlencode(sorted(query.items()))}"

        async def ask() -> RememberedListing:
            return await self._ask_referrers(repository, digest, query)

        return await self._answer(repository, question, query, ask)

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def _answer(
        self,
        repository: Repository,
        question: str,
        query: Query,
        ask: Callable[[], Awaitable[RememberedListing]],
    ) -> Listing:
        key = (repository, question)
        remembered = await if_told(self._index.listing(repository, question))
        age_seconds = self._ages.seconds(key, remembered.checked_at) if remembered else 0
        stale_for_seconds = self._clients[repository.upstream].upstream.stale_for_seconds
        can_stand_in = remembered is not None and age_seconds <= stale_for_seconds

        async def ask_and_remember() -> RememberedListing:
            listing = await ask()
            if _may_be_remembered(query) and len(listing.body) <= MAX_REMEMBERED_BYTES:
                with spared("a list", repository=repository):
                    await self._index.set_listing(repository, question, listing)
                    self._ages.note(key, listing.checked_at)
            return listing

        try:
            flight, joined = self._flights.start(key, ask_and_remember)
            listing = await within_patience(flight, repository.upstream, can_stand_in=can_stand_in)
        except UNANSWERED as error:
            if remembered is not None and (can_stand_in or isinstance(error, Offline)):
                return _listing(remembered, Cache.STALE, age_seconds)
            raise
        return _listing(listing, Cache.JOINED if joined else Cache.NONE)

    async def _ask_tags(self, repository: Repository, query: Query) -> RememberedListing:
        client = self._clients[repository.upstream]

        async def understand(answer: ListingAnswer) -> RememberedListing:
            body = await asyncio.to_thread(_tags_of, repository, answer.body)
            return _remember(body, answer.headers)

        return await client.get_listing(repository.name, "tags", "tags/list", query, understand)

    async def _ask_referrers(
        self, repository: Repository, digest: Digest, query: Query
    ) -> RememberedListing:
        client = self._clients[repository.upstream]

        async def understand(answer: ListingAnswer) -> RememberedListing:
            if bare_type(answer.headers.get("Content-Type", "")) != OCI_INDEX:
                raise UpstreamBroken(
                    repository.upstream, "sent a list of referrers that is no index"
                )
            await asyncio.to_thread(_index_of, repository, answer.body)
            return _remember(answer.body, answer.headers)

        path = f"referrers/{digest}"
        try:
            return await client.get_listing(repository.name, "referrers", path, query, understand)
        except UpstreamNotFound:
            return await self._from_fallback_tag(repository, digest, query.get("artifactType"))

    async def _from_fallback_tag(
        self, repository: Repository, digest: Digest, artifact_type: str | None
    ) -> RememberedListing:
        client = self._clients[repository.upstream]
        tag = Tag.parse(f"{digest.algorithm}-{digest.hex[:64]}")

        async def understand(answer: ManifestAnswer) -> bytes:
            return await asyncio.to_thread(_filtered, repository, answer.body, artifact_type)

        try:
            body = await client.get_manifest(repository.name, tag, understand)
        except UpstreamNotFound:
            body = _filtered(repository, _NO_REFERRERS, artifact_type)
        applied = {} if artifact_type is None else {FILTERS_APPLIED: "artifactType"}
        return _remember(body, applied)


def _may_be_remembered(query: Query) -> bool:
    """Clients may invent parameters without end; those that registries page and filter by count."""
    return query.keys() <= PARAMETERS and all(
        len(value) <= MAX_VALUE_CHARACTERS for value in query.values()
    )


def _remember(body: bytes, headers: Mapping[str, str]) -> RememberedListing:
    kept = {name: headers[name] for name in ("Link", FILTERS_APPLIED) if name in headers}
    return RememberedListing(body, kept, time.time())


def _listing(
    remembered: RememberedListing, cache: Cache, stale_seconds: float | None = None
) -> Listing:
    applied = remembered.headers.get(FILTERS_APPLIED, "")
    return Listing(
        remembered.body,
        next_query(remembered.headers.get("Link")),
        applied if _FILTERS.fullmatch(applied) else None,
        cache,
        stale_seconds,
    )


def _tags_of(repository: Repository, body: bytes) -> bytes:
    """The JSON list alone. Raises UpstreamBroken."""
    document = _json_object(body)
    if document is not None and "tags" in document:
        tags = document["tags"]
        if tags is None:  # sent by some registries where there are none
            return b"[]"
        if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
            return json.dumps(tags, separators=(",", ":")).encode()
    raise UpstreamBroken(repository.upstream, "sent a list of tags that is none")


def _filtered(repository: Repository, body: bytes, artifact_type: str | None) -> bytes:
    """Raises UpstreamBroken."""
    index = _index_of(repository, body)
    if artifact_type is None:
        return body
    index["manifests"] = [
        entry
        for entry in index["manifests"]
        if isinstance(entry, dict) and entry.get("artifactType") == artifact_type
    ]
    return json.dumps(index).encode()


def _index_of(repository: Repository, body: bytes) -> dict[str, Any]:
    """Raises UpstreamBroken for what is no index: an empty list in its place would hide
    signatures.
    """
    document = _json_object(body)
    if document is None or not isinstance(document.get("manifests"), list):
        raise UpstreamBroken(repository.upstream, "sent a list of referrers that is no index")
    return document


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
