"""One upstream registry, asked: answers as types or errors."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import aiohttp

from mirror.byteranges import parse_content_range
from mirror.errors import (
    DigestInvalid,
    Offline,
    UpstreamBroken,
    UpstreamError,
    UpstreamFailing,
)
from mirror.manifest import MANIFEST_LIMIT_BYTES, MAX_SIZE_BYTES, bare_type
from mirror.metrics import Metrics
from mirror.names import Digest, Reference
from mirror.upstream.asking import Asker, Question
from mirror.upstream.body import Blocks, read_body
from mirror.upstream.definition import Upstream
from mirror.upstream.pace import IsUrgent, Pace
from mirror.upstream.transport import Pool, Transport, connections_of

LISTING_LIMIT_BYTES = 4 * 1024 * 1024
# What an upstream that tells no size may send of a blob.
MAX_UNTOLD_BYTES = 16 * 1024**3
ENDED_EARLY = "ended a blob before its end"
T = TypeVar("T")
_HEAD_NOT_OFFERED = frozenset({400, 405, 501})
_HEAD_REFUSED = _HEAD_NOT_OFFERED | {401, 403}


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What HEAD told; anything may be missing."""

    digest: Digest | None = None
    media_type: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    body: bytes
    content_type: str
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class ListingAnswer:
    body: bytes
    headers: Mapping[str, str]


class BlobAnswer:
    """A blob's bytes on their way from `start`; the size is None where the upstream does not
    say.
    """

    def __init__(self, client: "UpstreamClient", response: aiohttp.ClientResponse) -> None:
        self._client = client
        self._response = response
        if _type_of(response) == "text/html":
            raise UpstreamBroken(client.name, "sent a web page in place of a blob")
        told = parse_content_range(response.headers.get("Content-Range"))
        self.is_partial = response.status == 206
        if self.is_partial and told is None:
            raise UpstreamBroken(client.name, "sent a part of a blob without saying which")
        self.start = told[0] if self.is_partial and told else 0
        self.size_bytes = told[2] if self.is_partial and told else response.content_length
        if self.size_bytes is not None and self.size_bytes > MAX_SIZE_BYTES:
            raise UpstreamBroken(client.name, f"tells {self.size_bytes} bytes of a blob")

    def close(self) -> None:
        self._response.close()

    def check_begins_at(self, start: int, *, may_be_whole: bool = True) -> None:
        """There, or at the blob's beginning. Raises UpstreamBroken."""
        if self.start != start and not (may_be_whole and self.start == 0):
            raise UpstreamBroken(self._client.name, "answered with another part than asked for")

    async def chunks(
        self, is_urgent: IsUrgent = lambda: True
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """Each one is good until the next is asked for, and more arrives meanwhile. `is_urgent`:
        whether anybody waits for it, where the upstream may send no more than so much.

        Raises UpstreamError when the transfer breaks or stalls, after all that arrived.
        """
        try:
            body = read_body(
                self._response,
                self._client.upstream.idle_timeout_seconds,
                self._client.blocks,
                self._client.pace,
                is_urgent,
            )
            async with aclosing(body):
                async for chunk in body:
                    self._client.received("blob", len(chunk))
                    yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise self._client.transport.error_of(error, self._response.url) from error


class UpstreamClient:
    """All methods raise UpstreamError; none opens a socket when `offline`."""

    def __init__(
        self, upstream: Upstream, metrics: Metrics, blocks: Blocks, *, offline: bool = False
    ) -> None:
        self.upstream = upstream
        self.blocks = blocks
        self.blob_connections = connections_of(upstream, Pool.BLOBS)
        self.pace = Pace(upstream.max_bytes_per_second)
        self.name = upstream.name
        self.transport = Transport(upstream, metrics)
        self._metrics = metrics
        self._offline = offline
        self._asker = Asker(upstream, self.transport, metrics)
        self.ratelimits = self._asker.ratelimits

    async def aclose(self) -> None:
        await self._asker.aclose()
        await self.transport.aclose()

    async def head_manifest(self, repository_name: str, reference: Reference) -> ManifestHead:
        """Free on Docker Hub; tells nothing where HEAD is not offered, and GET has to."""
        path = f"manifests/{reference}"
        try:
            response = await self._ask(Question("HEAD", repository_name, "manifest", path))
        except UpstreamBroken as error:
            if error.answered not in _HEAD_NOT_OFFERED:
                raise
            return ManifestHead()
        response.release()
        return ManifestHead(_digest_of(response), _type_of(response), _size_of_manifest(response))

    async def get_manifest(
        self,
        repository_name: str,
        reference: Reference,
        understand: Callable[[ManifestAnswer], Awaitable[T]],
    ) -> T:
        """What `understand` makes of the answer: see `_understood`."""

        async def read(response: aiohttp.ClientResponse) -> T:
            body = await self.transport.read(response, "manifest", MANIFEST_LIMIT_BYTES)
            content_type = response.headers.get("Content-Type", "")
            return await understand(ManifestAnswer(body, content_type, _digest_of(response)))

        question = Question("GET", repository_name, "manifest", f"manifests/{reference}")
        return await self._understood(question, read)

    async def head_blob(self, repository_name: str, digest: Digest) -> int | None:
        """The size, where the upstream says it. Never a download."""
        try:
            response = await self._ask(Question("HEAD", repository_name, "blob", f"blobs/{digest}"))
        except UpstreamError as error:
            if error.answered not in _HEAD_REFUSED:
                raise
            # ECR Public refuses HEAD on all blobs (distribution#4383): a range of one byte tells
            # too.
            async with self.get_blob(repository_name, digest, 0, 1) as answer:
                return answer.size_bytes
        response.release()
        return BlobAnswer(self, response).size_bytes

    @asynccontextmanager
    async def get_blob(
        self,
        repository_name: str,
        digest: Digest,
        start: int = 0,
        end: int | None = None,
        *,
        attempt: int = 0,
        is_further: bool = False,
    ) -> AsyncIterator[BlobAnswer]:
        """Asks for [start, end); an upstream may answer with the whole, see `BlobAnswer.start`.

        After `attempt` tries that brought nothing, another endpoint is the first to be asked.
        `is_further`: one connection more for what already has one.
        """
        headers = {"Accept": "*/*"}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        question = Question(
            "GET",
            repository_name,
            "blob",
            f"blobs/{digest}",
            headers,
            attempt=attempt,
            is_further=is_further,
        )
        answer = await self._ask_for_blob(question)
        try:
            yield answer
        finally:
            answer.close()

    async def _ask_for_blob(self, question: Question) -> BlobAnswer:
        """From the first endpoint that gives what may be one. Raises UpstreamError."""
        failed: UpstreamError | None = None
        for more in range(len(self.upstream.endpoints)):
            response = await self._ask(replace(question, attempt=question.attempt + more))
            try:
                return BlobAnswer(self, response)
            except UpstreamBroken as error:
                response.close()
                failed = failed or error
        assert failed is not None  # noqa: S101 - there is an endpoint
        raise failed

    def can_spare_blobs(self) -> bool:
        """Whether to ask for blobs that nobody needs yet: somebody may, and all is well."""
        return not self._offline and self._asker.can_spare_blobs()

    async def get_listing(
        self,
        repository_name: str,
        kind: str,
        path: str,
        query: Mapping[str, str],
        understand: Callable[[ListingAnswer], Awaitable[T]],
    ) -> T:
        """What `understand` makes of the answer: see `_understood`. `path` is `tags/list` or
        `referrers/<digest>`.
        """

        async def read(response: aiohttp.ClientResponse) -> T:
            body = await self.transport.read(response, kind, LISTING_LIMIT_BYTES)
            return await understand(ListingAnswer(body, response.headers))

        question = Question("GET", repository_name, kind, path, {"Accept": "*/*"}, query)
        return await self._understood(question, read)

    def received(self, kind: str, received_bytes: int) -> None:
        self._metrics.upstream_received(self.name, kind, received_bytes)

    async def _understood(
        self, question: Question, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]
    ) -> T:
        """What `read` makes of an answer. Where that raises UpstreamFailing, since the body does
        not come or is nonsense, the answer is sought at the next endpoint.
        """
        failed: UpstreamError | None = None
        for attempt in range(len(self.upstream.endpoints)):
            response = await self._ask(replace(question, attempt=attempt))
            try:
                return await read(response)
            except UpstreamFailing as error:
                failed = failed or error
        assert failed is not None  # noqa: S101 - there is an endpoint
        raise failed

    async def _ask(self, question: Question) -> aiohttp.ClientResponse:
        """A 2xx, its body unread."""
        if self._offline:
            raise Offline(self.name, f"this mirror is offline and does not hold {question.path}")
        return await self._asker.ask(question)


def _type_of(response: aiohttp.ClientResponse) -> str:
    """aiohttp's `content_type` raises whatever Python's reader of such headers does: IndexError for
    `a/b;c*0*="'`.
    """
    return bare_type(response.headers.get("Content-Type", ""))


def _size_of_manifest(response: aiohttp.ClientResponse) -> int | None:
    """None too for what nothing has."""
    told = response.content_length
    return told if told is not None and told <= MAX_SIZE_BYTES else None


def _digest_of(response: aiohttp.ClientResponse) -> Digest | None:
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None
