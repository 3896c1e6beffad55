"""One upstream registry, asked: endpoints in order, logins by challenge, answers as types or
errors.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from mirror.byteranges import parse_content_range
from mirror.errors import (
    DigestInvalid,
    Offline,
    UpstreamBroken,
    UpstreamError,
)
from mirror.manifest import ACCEPT_EVERYTHING, MANIFEST_LIMIT_BYTES, bare_type
from mirror.metrics import Metrics
from mirror.names import Digest, Reference, shown
from mirror.upstream.answers import error_of, login_error_of, most_telling
from mirror.upstream.body import Blocks, read_body
from mirror.upstream.challenge import Challenge, parse_challenges
from mirror.upstream.definition import Account, Upstream
from mirror.upstream.ratelimit import RateLimits
from mirror.upstream.tokens import ANONYMOUS, Logins
from mirror.upstream.transport import Pool, Transport

LISTING_LIMIT_BYTES = 4 * 1024 * 1024
TOKEN_LIMIT_BYTES = 64 * 1024
ERROR_BODY_LIMIT_BYTES = 64 * 1024
# ECR Public answers 400 to an expired token (aws/containers-roadmap#2835).
_REFUSES_TOKENS_WITH_400 = frozenset({"public.ecr.aws"})
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
        if bare_type(response.content_type) == "text/html":
            raise UpstreamBroken(client.name, "sent a web page in place of a blob")
        told = parse_content_range(response.headers.get("Content-Range"))
        self.is_partial = response.status == 206
        if self.is_partial and told is None:
            raise UpstreamBroken(client.name, "sent a part of a blob without saying which")
        self.start = told[0] if self.is_partial and told else 0
        whole_bytes = response.content_length if not self.is_partial else None
        self.size_bytes = told[2] if self.is_partial and told else whole_bytes

    async def chunks(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Each one is good until the next is asked for, and more arrives meanwhile.

        Raises UpstreamError when the transfer breaks or stalls, after all that arrived.
        """
        try:
            body = read_body(
                self._response, self._client.upstream.idle_timeout_seconds, self._client.blocks
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
        self.name = upstream.name
        self.transport = Transport(upstream, metrics)
        self._metrics = metrics
        self._offline = offline
        self._ratelimits = RateLimits(upstream.name, metrics)
        self._logins = Logins(upstream, self._ask_realm)

    async def aclose(self) -> None:
        await self._logins.aclose()
        await self.transport.aclose()

    async def head_manifest(self, repository_name: str, reference: Reference) -> ManifestHead:
        """Free on Docker Hub; tells nothing where HEAD is not offered, and GET has to."""
        path = f"manifests/{reference}"
        try:
            response = await self._ask("HEAD", repository_name, "manifest", path)
        except UpstreamBroken as error:
            if error.answered not in _HEAD_NOT_OFFERED:
                raise
            return ManifestHead()
        response.release()
        return ManifestHead(
            _digest_of(response), bare_type(response.content_type), response.content_length
        )

    async def get_manifest(self, repository_name: str, reference: Reference) -> ManifestAnswer:
        response = await self._ask("GET", repository_name, "manifest", f"manifests/{reference}")
        body = await self._read(response, "manifest", MANIFEST_LIMIT_BYTES)
        content_type = response.headers.get("Content-Type", "")
        return ManifestAnswer(body, content_type, _digest_of(response))

    async def head_blob(self, repository_name: str, digest: Digest) -> int | None:
        """The size, where the upstream says it. Never a download."""
        try:
            response = await self._ask("HEAD", repository_name, "blob", f"blobs/{digest}")
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
        self, repository_name: str, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobAnswer]:
        """Asks for [start, end); an upstream may answer with the whole, see `BlobAnswer.start`."""
        headers = {"Accept": "*/*"}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        response = await self._ask(
            "GET", repository_name, "blob", f"blobs/{digest}", headers, pool=Pool.BLOBS
        )
        try:
            yield BlobAnswer(self, response)
        finally:
            response.close()

    async def get_listing(
        self, repository_name: str, kind: str, path: str, query: Mapping[str, str]
    ) -> ListingAnswer:
        """`path` is `tags/list` or `referrers/<digest>`."""
        headers = {"Accept": "*/*"}
        response = await self._ask("GET", repository_name, kind, path, headers, query)
        body = await self._read(response, kind, LISTING_LIMIT_BYTES)
        return ListingAnswer(body, response.headers)

    def received(self, kind: str, received_bytes: int) -> None:
        self._metrics.upstream_received(self.name, kind, received_bytes)

    async def _ask(
        self,
        method: str,
        repository_name: str,
        kind: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        pool: Pool = Pool.CONTROL,
    ) -> aiohttp.ClientResponse:
        """A 2xx from the first endpoint that gives one."""
        if self._offline:
            raise Offline(self.name, f"this mirror is offline and does not hold {path}")
        remote_name = self.upstream.remote_name(repository_name)
        errors: list[UpstreamError] = []
        for endpoint in self.upstream.endpoints:
            url = endpoint / "v2" / remote_name / path
            if query:
                url = url.with_query(query)
            try:
                return await self._ask_endpoint(
                    method, endpoint, url, remote_name, kind, headers, pool
                )
            except UpstreamError as error:
                errors.append(error)
        raise most_telling(errors)

    async def _ask_endpoint(
        self,
        method: str,
        endpoint: URL,
        url: URL,
        remote_name: str,
        kind: str,
        headers: Mapping[str, str] | None,
        pool: Pool,
    ) -> aiohttp.ClientResponse:
        account = self._account()
        sent = dict(headers or {"Accept": ACCEPT_EVERYTHING})
        authorization = await self._logins.remembered(endpoint, remote_name, account)
        if authorization:
            sent["Authorization"] = authorization
        response = await self.transport.send(method, url, kind, pool, sent)
        if _wants_login(response, endpoint, authorization):
            await self._drain(response)
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            sent["Authorization"] = await self._logins.answer(
                endpoint,
                remote_name,
                account,
                challenges or await self._ping_challenges(endpoint),
                authorization,
            )
            response = await self.transport.send(method, url, kind, pool, sent)
        name = account.username if account else ANONYMOUS
        self._ratelimits.note(name, response.status, response.headers)
        if response.status in (200, 206):
            return response
        body = await self._drain(response)
        raise error_of(self.name, url.path, response.status, response.headers, body, name)

    def _account(self) -> Account | None:
        """The login with the most pulls left."""
        accounts = self.upstream.accounts
        if not accounts:
            return None
        return max(accounts, key=lambda each: self._ratelimits.remaining(each.username))

    async def _ping_challenges(self, endpoint: URL) -> list[Challenge]:
        """For registries that answer 401 without a challenge, as gcr.io may."""
        response = await self.transport.send("GET", endpoint / "v2/", "ping")
        await self._drain(response)
        return parse_challenges(response.headers.getall("WWW-Authenticate", []))

    async def _ask_realm(self, url: URL, authorization: str | None, account: str) -> bytes:
        headers = {"Authorization": authorization} if authorization else {}
        response = await self.transport.send("GET", url, "token", headers=headers, follow=False)
        if response.status == 200:
            return await self._read(response, "token", TOKEN_LIMIT_BYTES)
        body = await self._drain(response)
        raise login_error_of(
            self.name, url.host or "", response.status, response.headers, body, account
        )

    async def _read(self, response: aiohttp.ClientResponse, kind: str, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamBroken beyond the limit, and for a body that is encoded
        though identity was asked for: nothing is ever decoded here.
        """
        body = bytearray()
        try:
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            if encoding != "identity":
                raise UpstreamBroken(self.name, f"sent a {kind} encoded as {shown(encoding)}")
            async for chunk in response.content.iter_any():
                self.received(kind, len(chunk))
                body += chunk
                if len(body) > limit_bytes:
                    raise UpstreamBroken(self.name, f"sent a {kind} of over {limit_bytes} bytes")
        except (aiohttp.ClientError, OSError) as error:
            raise self.transport.error_of(error, response.url) from error
        finally:
            response.release()
        return bytes(body)

    async def _drain(self, response: aiohttp.ClientResponse) -> bytes:
        """An error's body as far as it is of use; the connection can then be used again."""
        try:
            return await self._read(response, "error", ERROR_BODY_LIMIT_BYTES)
        except UpstreamError:
            return b""


def _wants_login(
    response: aiohttp.ClientResponse, endpoint: URL, authorization: str | None
) -> bool:
    """Only the endpoint itself may ask for a login, not where it redirected to."""
    if response.url.origin() != endpoint.origin():
        return False
    if response.status == 400:
        return bool(authorization) and endpoint.host in _REFUSES_TOKENS_WITH_400
    return response.status == 401


def _digest_of(response: aiohttp.ClientResponse) -> Digest | None:
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None
