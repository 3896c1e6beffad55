"""/v2/: what is read from the registry API. Writes to names that are only mirrored are refused."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from math import inf

from aiohttp import web
from cachetools import LRUCache

from mirror.addressing import Address, Directory, Kind
from mirror.downloads.passthrough import PassThrough
from mirror.downloads.reader import StoredReader
from mirror.errors import NameInvalid, Unsupported, UpstreamUnreachable
from mirror.manifest import BLOB_TYPE, OCI_INDEX
from mirror.metrics import Cache
from mirror.names import Digest, Reference, Repository
from mirror.proxy.listings import FILTERS_APPLIED, Listing
from mirror.proxy.proxy import Proxy
from mirror.store.handles import StoredBlob
from mirror.web.blobs import send_blob
from mirror.web.counts import Counts
from mirror.web.replies import (
    base_headers,
    content_headers,
    is_unchanged,
    json_reply,
    manifest_headers,
    stale_headers,
)
from mirror.web.request import FACTS, Facts

# containerd gives up on an answer's headers after 30 s; ours, or an error, come before.
ANSWER_SECONDS = 25.0
MAX_CATALOG_PAGE = 10_000
HOT_ADDRESSES = 4096
MAX_HOT_PATH_CHARACTERS = 512
_BACKGROUND = re.compile(r"(?:^|,)[ \t]*u=7[ \t]*(?:$|[,;])")
_READS = frozenset({"GET", "HEAD"})

_Answer = Callable[[web.BaseRequest, Address], Awaitable[web.StreamResponse]]


class Registry:
    def __init__(self, directory: Directory, proxy: Proxy, counts: Counts) -> None:
        self._directory = directory
        # Understood once: clients ask for the same few paths again and again, and reading one takes
        # a decoding of the path and query besides the grammar of names.
        self._addresses: LRUCache[str, Address] = LRUCache(HOT_ADDRESSES)
        self._proxy = proxy
        self._counts = counts
        self._answers: Mapping[Kind, _Answer] = {
            Kind.PING: self._ping,
            Kind.CATALOG: self._catalog,
            Kind.MANIFEST: self._manifest,
            Kind.BLOB: self._blob,
            Kind.TAGS: self._tags,
            Kind.REFERRERS: self._referrers,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Raises MirrorError."""
        facts = request[FACTS]
        address = self._address(request, facts)
        answer = self._answers.get(address.kind)
        if request.method not in _READS or answer is None:
            raise Unsupported(
                f"{address.repository or 'this mirror'} is mirrored, not hosted: push to the "
                "registry itself"
            )
        facts.deadline = deadline = asyncio.timeout(ANSWER_SECONDS)
        try:
            async with deadline:
                return await answer(request, address)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise UpstreamUnreachable(
                facts.upstream, "has not answered yet; what was asked for goes on, so try again"
            ) from None

    def find_open(self, digest: Digest) -> StoredBlob | None:
        """A stored blob that is open already, and still what it was."""
        return self._proxy.find_open(digest)

    def note_given(self, digest: Digest, client: str) -> None:
        """The whole of a stored blob has gone to this client."""
        self._proxy.suspicions.note_given(digest, client)

    def _address(self, request: web.BaseRequest, facts: Facts) -> Address:
        """Raises MirrorError; `facts` then tell the upstream as far as it was understood."""
        address = self._addresses.get(request.raw_path)
        if address is None:
            namespaces = request.query.getall("ns", ())
            route = self._directory.route(request.rel_url.path_safe, namespaces)
            facts.address = Address(route.kind, route.upstream)
            address = route.address()
            if len(request.raw_path) <= MAX_HOT_PATH_CHARACTERS:
                self._addresses[request.raw_path] = address
        facts.address = address
        return address

    async def _ping(self, request: web.BaseRequest, address: Address) -> web.StreamResponse:
        request[FACTS].repeat_until = inf
        return json_reply({}, base_headers(address))

    async def _manifest(self, request: web.BaseRequest, address: Address) -> web.StreamResponse:
        repository, reference = _asked(address)
        accept = request.headers.getall("Accept", ())
        manifests = self._proxy.manifests
        if request.method == "HEAD":
            reply = await manifests.head(repository, reference, accept)
        else:
            in_background = _is_in_background(request)
            reply = await manifests.get(repository, reference, accept, in_background=in_background)
        facts = request[FACTS]
        facts.cache = reply.cache
        facts.is_pull_saved = request.method == "GET" and not reply.is_pulled
        facts.repeat_until = reply.fresh_until
        facts.first_byte(self._counts)
        headers = {
            **base_headers(address),
            **manifest_headers(reply.descriptor),
            **stale_headers(reply.stale_seconds),
        }
        if is_unchanged(request, reply.descriptor.digest):
            return web.Response(status=304, headers=headers)
        if request.method == "HEAD":
            headers["Content-Length"] = str(reply.descriptor.size_bytes)
        return web.Response(body=reply.body, headers=headers)

    async def _blob(self, request: web.BaseRequest, address: Address) -> web.StreamResponse:
        repository, digest = _asked(address)
        assert isinstance(digest, Digest)  # noqa: S101 - so says the address's kind
        headers = base_headers(address)
        facts = request[FACTS]
        if request.method == "HEAD":
            head = await self._proxy.blobs.head(repository, digest)
            facts.cache = head.cache
            if head.cache is Cache.HIT:
                facts.repeat_until = inf
            return _blob_head(request, digest, head.size_bytes, headers)
        reply = await self._proxy.blobs.open(repository, digest)
        facts.cache = reply.cache
        if reply.cache is Cache.HIT:
            facts.repeat_until = inf
        try:
            if is_unchanged(request, digest):
                return web.Response(status=304, headers={**headers, **content_headers(digest)})
            response = await send_blob(request, reply, digest, headers, self._counts)
            if isinstance(reply.content, StoredReader) and _is_whole(response, facts):
                self.note_given(digest, request.remote or "")
            return response
        finally:
            if not isinstance(reply.content, bytes | PassThrough):
                await reply.content.aclose()

    async def _tags(self, request: web.BaseRequest, address: Address) -> web.StreamResponse:
        repository = _asked_repository(address)
        listing = await self._proxy.listings.tags(repository, _upstream_query(request))
        request[FACTS].cache = listing.cache
        headers = base_headers(address) | stale_headers(listing.stale_seconds)
        headers |= _link_headers(request, listing.next_query)
        headers["Content-Type"] = "application/json"
        # The list may be megabytes, and is JSON already.
        name = json.dumps(address.name).encode()
        body = b'{"name":%b,"tags":%b}\n' % (name, listing.body)
        return web.Response(body=body, headers=headers)

    async def _referrers(self, request: web.BaseRequest, address: Address) -> web.StreamResponse:
        repository, digest = _asked(address)
        assert isinstance(digest, Digest)  # noqa: S101 - so says the address's kind
        listing = await self._proxy.listings.referrers(repository, digest, _upstream_query(request))
        request[FACTS].cache = listing.cache
        headers = base_headers(address) | _referrers_headers(request, listing)
        return web.Response(body=listing.body, headers=headers)

    async def _catalog(self, request: web.BaseRequest, address: Address) -> web.StreamResponse:
        """What is cached: under its upstream's name, or, asked of one upstream, without it."""
        size = _page_size(request.query.get("n"))
        last = _last_name(request.query.get("last", ""))
        found = await self._proxy.catalog(address.upstream, last, size + 1)
        names = [each.name if address.upstream else str(each) for each in found]
        page = names[:size]
        following = None
        if page and len(page) < len(names):
            following = {"n": str(len(page)), "last": page[-1]}
        headers = base_headers(address) | _link_headers(request, following)
        return json_reply({"repositories": page}, headers)


def _is_whole(response: web.StreamResponse, facts: Facts) -> bool:
    return response.status == HTTPStatus.OK and facts.sent_bytes == response.content_length


def _is_in_background(request: web.BaseRequest) -> bool:
    """By its word: urgency 7 of `Priority` (RFC 9218 §4.1)."""
    priority = request.headers.get("Priority")
    return priority is not None and _BACKGROUND.search(priority) is not None


def _asked(address: Address) -> tuple[Repository, Reference]:
    if address.repository is None or address.reference is None:
        raise NameInvalid("this request names no content")
    return address.repository, address.reference


def _asked_repository(address: Address) -> Repository:
    if address.repository is None:
        raise NameInvalid("this request names no repository")
    return address.repository


def _blob_head(
    request: web.BaseRequest, digest: Digest, size_bytes: int | None, headers: dict[str, str]
) -> web.Response:
    headers |= {
        **content_headers(digest),
        "Accept-Ranges": "bytes",
        "Content-Type": BLOB_TYPE,
    }
    if is_unchanged(request, digest):
        return web.Response(status=304, headers=headers)
    if size_bytes is not None:
        headers["Content-Length"] = str(size_bytes)
    return web.Response(headers=headers)


def _referrers_headers(request: web.BaseRequest, listing: Listing) -> dict[str, str]:
    headers = {"Content-Type": OCI_INDEX, **stale_headers(listing.stale_seconds)}
    if listing.filters_applied is not None:
        headers[FILTERS_APPLIED] = listing.filters_applied
    return headers | _link_headers(request, listing.next_query)


def _upstream_query(request: web.BaseRequest) -> dict[str, str]:
    """What is the upstream's to understand: all but our own `ns`."""
    return {name: value for name, value in request.query.items() if name != "ns"}


def _link_headers(request: web.BaseRequest, next_query: Mapping[str, str] | None) -> dict[str, str]:
    """The way on, leading back the way the client came: same path, same `ns`."""
    if next_query is None:
        return {}
    query = dict(next_query)
    if "ns" in request.query:
        query["ns"] = request.query["ns"]
    return {"Link": f'<{request.rel_url.with_query(query)}>; rel="next"'}


def _page_size(text: str | None) -> int:
    if text is None:
        return MAX_CATALOG_PAGE
    if not text.isascii() or not text.isdigit():
        raise NameInvalid("`n` is the number of names that a page may hold")
    return min(int(text[:9]), MAX_CATALOG_PAGE)


def _last_name(text: str) -> str:
    if not text.isascii():
        raise NameInvalid("`last` is the name that a page ended with")
    return text
