"""HTTP to one upstream: connection pools, time-outs, redirects. Knows nothing of registries.

Redirects are followed here and not by aiohttp, since each hop is judged: the Authorization goes to
the endpoint's own origin only, HTTPS never becomes HTTP, and no hop leads further inwards than the
endpoint itself lies (see addresses.py). Beyond a proxy, names are the proxy's to resolve and to
judge; addresses are judged here.
"""

import asyncio
import time
from collections.abc import Mapping
from enum import Enum

import aiohttp
from cachetools import TTLCache
from yarl import URL

from mirror import __version__
from mirror.egress import ForwardProxy
from mirror.errors import UpstreamBroken, UpstreamError
from mirror.metrics import Metrics
from mirror.names import shown
from mirror.upstream.addresses import (
    BoundedResolver,
    Names,
    Reach,
    literal_reach,
)
from mirror.upstream.body import next_piece
from mirror.upstream.circuits import Trial
from mirror.upstream.definition import Upstream
from mirror.upstream.endings import answer_within
from mirror.upstream.failures import error_of_exchange, failure_of
from mirror.upstream.tunnels import Connector
from mirror.weburls import has_host, parse_url

MAX_REDIRECTS = 5
# Signed URLs and tokens make long lines; aiohttp's own default is 8,190.
MAX_HEADER_LINE_BYTES = 32 * 1024
REACH_TTL_SECONDS = 300
# For an answer's head, in idle time-outs: 1xx answers without end are no silence.
HEAD_IDLE_TIMEOUTS = 2
# For a manifest, a token, a list; a blob may take as long as it likes.
CONTROL_BODY_SECONDS = 300
ERROR_BODY_LIMIT_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BLOB_BUFFER_BYTES = 1024 * 1024
_CONTROL_BUFFER_BYTES = 64 * 1024


class Pool(Enum):
    """Separate connections, so that manifests and tokens never wait behind blobs."""

    CONTROL = "control"
    BLOBS = "blobs"


# Of the connections to one host: a third is never used for blobs.
CONTROL_SHARE = 1 / 3


def connections_of(upstream: Upstream, pool: Pool) -> int:
    """To one host, at most. Who waits here for a slow one may wait for too long."""
    control = max(1, round(upstream.max_connections * CONTROL_SHARE))
    return control if pool is Pool.CONTROL else max(1, upstream.max_connections - control)


class Transport:
    def __init__(self, upstream: Upstream, metrics: Metrics) -> None:
        self._upstream = upstream
        self._metrics = metrics
        self._names = Names(upstream.connect_timeout_seconds)
        self._sessions: dict[tuple[Pool, Reach | None], aiohttp.ClientSession] = {}
        self._reaches: TTLCache[str, Reach] = TTLCache(64, REACH_TTL_SECONDS)

    async def send(
        self,
        method: str,
        url: URL,
        kind: str,
        pool: Pool = Pool.CONTROL,
        headers: Mapping[str, str] | None = None,
        *,
        follow: bool = True,
        trial: Trial | None = None,
    ) -> aiohttp.ClientResponse:
        """The answer with its body unread; the caller releases or closes it.

        `url` is at one of the endpoints, or a realm; `trial` is told how it did. Raises
        UpstreamUnreachable, UpstreamBroken.
        """
        origin, limit = url.origin(), None
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        for hops in range(MAX_REDIRECTS + 1):
            try:
                response = await self._hop(method, url, kind, pool, sent, limit)
            except UpstreamError as error:
                if trial is not None:
                    trial.failed(failure_of(error, is_redirected=hops > 0), error)
                raise
            if response.status not in _REDIRECTS or not follow:
                if trial is not None:
                    trial.answered(response.status, self._failed_answer(response))
                return response
            await self.drain(response)
            url = self._target(url, response.headers.get("Location"))
            if url.origin() == origin:
                limit = None
            else:
                sent.pop("Authorization", None)
                limit = await self._limit_of(origin, url)
        raise UpstreamBroken(self._upstream.name, f"redirects more than {MAX_REDIRECTS} times")

    def error_of(self, error: Exception, url: URL) -> UpstreamError:
        """What a failed exchange with `url` means."""
        return error_of_exchange(self._upstream.name, error, url)

    async def aclose(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def read(self, response: aiohttp.ClientResponse, kind: str, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamBroken beyond the limit, and for a body that is encoded
        though identity was asked for: nothing is ever decoded here.
        """
        name = self._upstream.name
        body = bytearray()
        try:
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            if encoding != "identity":
                raise UpstreamBroken(name, f"sent a {kind} encoded as {shown(encoding)}")
            async with asyncio.timeout(CONTROL_BODY_SECONDS):
                while chunk := await next_piece(response.content):
                    self._metrics.upstream_received(name, kind, len(chunk))
                    body += chunk
                    if len(body) > limit_bytes:
                        raise UpstreamBroken(name, f"sent a {kind} of over {limit_bytes} bytes")
        except (aiohttp.ClientError, OSError) as error:
            raise self.error_of(error, response.url) from error
        finally:
            response.release()
        return bytes(body)

    async def drain(self, response: aiohttp.ClientResponse) -> bytes:
        """An error's body as far as it is of use; the connection can then be used again."""
        try:
            return await self.read(response, "error", ERROR_BODY_LIMIT_BYTES)
        except UpstreamError:
            return b""

    async def _hop(
        self,
        method: str,
        url: URL,
        kind: str,
        pool: Pool,
        headers: Mapping[str, str],
        limit: Reach | None,
    ) -> aiohttp.ClientResponse:
        started = time.monotonic()
        status = 0
        proxy = self._upstream.egress.proxy_for(url)
        login = _login_at(proxy)
        try:
            response = await self._session(pool, None if proxy else limit).request(
                method,
                url,
                # Within HTTPS, the proxy sees what asks for the tunnel alone.
                headers=headers if url.scheme == "https" else {**headers, **login},
                proxy=proxy.url if proxy else None,
                proxy_headers=login,
                allow_redirects=False,
                ssl=self._upstream.tls or True,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=self._upstream.connect_timeout_seconds,
                    sock_read=self._upstream.idle_timeout_seconds,
                ),
            )
            status = response.status
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self.error_of(error, url) from error
        finally:
            seconds = time.monotonic() - started
            self._metrics.upstream_answered(self._upstream.name, kind, method, status, seconds)
        return response

    def _failed_answer(self, response: aiohttp.ClientResponse) -> UpstreamError:
        """What a 5xx is called in the log."""
        host = response.url.host or "?"
        return UpstreamBroken(
            self._upstream.name, f"{host} answered {response.status}", answered=response.status
        )

    def _target(self, url: URL, location: str | None) -> URL:
        """Location as sent: a signature does not survive being quoted again."""
        try:
            target = url.join(parse_url(location or "", encoded=True))
            usable = bool(location) and has_host(target) and target.scheme in ("http", "https")
        except ValueError:
            usable, target = False, url
        if not usable:
            told = shown((location or "").partition("?")[0])  # what is behind it may be signed
            raise UpstreamBroken(self._upstream.name, f"redirects to {told}")
        if url.scheme == "https" and target.scheme != "https":
            raise UpstreamBroken(
                self._upstream.name, f"redirects from HTTPS to plain HTTP at {target.host}"
            )
        # Who the mirror is, nobody says but its operator: yarl and aiohttp would log in with it.
        return target.with_user(None)

    async def _limit_of(self, origin: URL, target: URL) -> Reach:
        """How far inwards a redirect from `origin` may lead. Raises UpstreamBroken where `target`
        says that it is further.
        """
        limit = min(await self._reach(origin), Reach.LOOPBACK)
        literal = literal_reach(target.host or "")
        if literal is not None and literal > limit:
            raise UpstreamBroken(
                self._upstream.name,
                f"redirects to {target.host}, an address that a redirect may not reach",
            )
        return limit

    async def _reach(self, origin: URL) -> Reach:
        host = origin.host or ""
        if self._upstream.egress.proxy_for(origin) is not None:
            return literal_reach(host) or Reach.PUBLIC
        reach = self._reaches.get(host)
        if reach is None:
            try:
                reach = self._reaches[host] = await self._names.reach_of(host)
            except OSError as error:
                raise self.error_of(error, origin) from error
        return reach

    def _session(self, pool: Pool, limit: Reach | None) -> aiohttp.ClientSession:
        key = (pool, limit)
        if key not in self._sessions:
            is_paced = self._upstream.max_bytes_per_second is not None
            is_large = pool is Pool.BLOBS and not is_paced  # what lies there has come too soon
            buffer_bytes = _BLOB_BUFFER_BYTES if is_large else _CONTROL_BUFFER_BYTES
            self._sessions[key] = aiohttp.ClientSession(
                connector=Connector(
                    limit=0,
                    limit_per_host=connections_of(self._upstream, pool),
                    resolver=BoundedResolver(self._names, limit),
                ),
                response_class=answer_within(
                    HEAD_IDLE_TIMEOUTS * self._upstream.idle_timeout_seconds
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                requote_redirect_url=False,
                read_bufsize=buffer_bytes,
                max_line_size=MAX_HEADER_LINE_BYTES,
                max_field_size=MAX_HEADER_LINE_BYTES,
                headers={"User-Agent": f"mirror/{__version__}"},
            )
        return self._sessions[key]


def _login_at(proxy: ForwardProxy | None) -> dict[str, str]:
    """RFC 9110 §11.7.1."""
    if proxy is None or proxy.login is None:
        return {}
    return {"Proxy-Authorization": aiohttp.encode_basic_auth(*proxy.login)}
