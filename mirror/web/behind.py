"""The server behind front processes: it answers those, over a socket of this machine, and tells
them what they log and count.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from mirror.errors import ShuttingDown
from mirror.store.readers import Readers
from mirror.web.answering import Answers, answer
from mirror.web.fronts import Fronts
from mirror.web.request import FACTS, Facts
from mirror.web.status import Status
from mirror.web.told import BY_FILE, COUNTS, LINE, READS_FILES, TOLD, tell

CLOSING_SECONDS = 1
# A client's headers and the front's own.
MAX_HEADER_BYTES = 128 * 1024
# Fronts keep their connections; who has gone is known at once.
KEEPALIVE_SECONDS = 3600
MAX_COUNTS_BYTES = 16 * 1024 * 1024


class BehindServer:
    """Listens once opened. `take_counts` gets what fronts counted, `readers` what they read."""

    def __init__(
        self,
        registry: Answers,
        status: Status,
        take_counts: Callable[[Any], None],
        readers: Readers,
    ) -> None:
        self._registry = registry
        self._status = status
        self._take_counts = take_counts
        self._connections = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            auto_decompress=False,
        )
        self._fronts = Fronts(readers)
        self._listeners: list[asyncio.Server] = []

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Unix sockets; they are the server's from now on."""
        loop = asyncio.get_running_loop()
        for each in sockets:
            self._listeners.append(await loop.create_unix_server(self._connections, sock=each))

    async def aclose(self, grace_seconds: float) -> None:
        """The fronts have ended, or end with this: what still runs may end within the grace."""
        self._status.is_draining = True
        for listener in self._listeners:
            listener.close()
        self._fronts.hang_up()
        self._connections.pre_shutdown()
        await self._connections.shutdown(max(grace_seconds, CLOSING_SECONDS))

    async def forget_repeats(self) -> None:
        """Those are the fronts'."""
        await self._fronts.forget_repeats()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if COUNTS in request.headers:
            return await self._counts(request)
        if LINE in request.headers:
            return await self._fronts.hear(request)
        page = self._status.pages.get(request.path)
        if page is not None and request.method in ("GET", "HEAD"):
            return await page(request)
        facts = request[FACTS] = Facts()
        request[READS_FILES] = BY_FILE in request.headers
        response = await answer(request, facts, self._serve)
        if not response.prepared:
            response.headers[TOLD] = tell(facts)
        return response

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._status.is_draining:
            raise ShuttingDown("this mirror is shutting down")
        return await self._registry.handle(request)

    async def _counts(self, request: web.BaseRequest) -> web.Response:
        body = await request.content.read(MAX_COUNTS_BYTES)
        while not request.content.at_eof() and len(body) < MAX_COUNTS_BYTES:
            body += await request.content.read(MAX_COUNTS_BYTES)
        self._take_counts(json.loads(body))
        return web.Response(status=204)
