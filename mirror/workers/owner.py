"""The process that owns the folder, as a front process asks it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from mirror.errors import NameInvalid, UpstreamUnreachable
from mirror.web.told import COUNTS, LINE, TOLD, pid_in

# Between two attempts to reach it.
RETRY_SECONDS = 0.1
# For what was counted, to be heard.
TELL_WITHIN_SECONDS = 5.0
READ_BYTES = 256 * 1024
# Who hangs up does not wait for the other's farewell.
_LINE_TIMEOUT = aiohttp.ClientWSTimeout(ws_close=0.1)
_HOST = "http://owner"


class OwnerLost(Exception):
    """It ended before an answer, or in the middle of one."""


class OwnerFailed(Exception):
    """It says that the rest of a blob cannot be had."""


class Owner:
    """While it is started again its socket goes on taking connections, so that asking waits."""

    def __init__(self, socket_path: str) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket_path, limit=0, keepalive_timeout=3000),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            read_bufsize=READ_BYTES,
            max_line_size=READ_BYTES,
            max_field_size=READ_BYTES,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def ask(
        self, method: str, target: str, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """The answer, whose body is still to come; the caller closes it. `target` begins with a
        slash. Raises NameInvalid; OwnerLost, after a moment, so that it may be asked again at once.
        """
        url = URL(_HOST + target, encoded=True)
        try:
            return await self._session.request(method, url, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            await asyncio.sleep(RETRY_SECONDS)
            raise OwnerLost(repr(error)) from error
        except ValueError:
            raise NameInvalid("this request is not ASCII") from None

    async def check_ended(self, answer: aiohttp.ClientResponse) -> None:
        """Of an answer whose bytes broke off: whether who gave it has ended since. Raises
        OwnerFailed where it goes on serving, and so had its reason; OwnerLost.
        """
        told = answer.headers.get(TOLD)
        if told is None:
            return
        now = await self.ask("HEAD", "/v2/", {})
        now.close()
        if pid_in(now.headers[TOLD]) == pid_in(told):
            raise OwnerFailed("the upstream broke off, or sent other bytes than were asked for")

    async def tell_counts(self, told: Mapping[str, Any]) -> None:
        """Raises OwnerLost."""
        data, headers = json.dumps(told), {COUNTS: "1"}
        try:
            async with (
                asyncio.timeout(TELL_WITHIN_SECONDS),
                self._session.post(_HOST, data=data, headers=headers) as answer,
            ):
                answer.raise_for_status()
        except (aiohttp.ClientError, OSError) as error:
            raise OwnerLost(repr(error)) from error

    @asynccontextmanager
    async def line(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """See web/fronts.py. Raises OwnerLost."""
        try:
            async with self._session.ws_connect(
                _HOST, headers={LINE: "1"}, timeout=_LINE_TIMEOUT
            ) as socket:
                yield socket
        except (aiohttp.ClientError, OSError) as error:
            raise OwnerLost(repr(error)) from error


def unanswered() -> UpstreamUnreachable:
    """What a client is told when it has waited long enough."""
    return UpstreamUnreachable(
        "this mirror", "has not answered yet; what was asked for goes on, so try again"
    )


async def whole(answer: aiohttp.ClientResponse) -> bytes:
    """Its body. Raises OwnerLost."""
    try:
        return await answer.read()
    except (aiohttp.ClientError, OSError) as error:
        raise OwnerLost(str(error)) from error
