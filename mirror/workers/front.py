"""A front process: takes clients' connections, and serves what it can by itself."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from socket import socket

from aiohttp import web

from mirror.config import Settings
from mirror.store.paths import Paths
from mirror.web.replies import SOFTWARE
from mirror.web.server import Server
from mirror.web.status import Page
from mirror.web.tally import Tally
from mirror.workers.files import Files
from mirror.workers.line import Line
from mirror.workers.owner import Owner
from mirror.workers.relay import Relay
from mirror.workers.teller import TELL_EVERY_SECONDS, Teller


@asynccontextmanager
async def fronting(
    settings: Settings, sockets: Sequence[socket], owner_socket: str
) -> AsyncIterator[None]:
    """Serves while the block runs; on leaving, running answers may end within the grace."""
    # Half of the memory is the owner's, for contents.
    memory_bytes = settings.cache_memory // 2 // settings.workers
    async with AsyncExitStack() as house:
        tally = Tally()
        owner = await house.enter_async_context(Owner(owner_socket))
        files = Files(Paths(settings.storage.path))
        house.push_async_callback(files.aclose)
        files.watch()
        teller = Teller(owner, tally)
        house.push_async_callback(teller.aclose)
        relay = Relay(owner, files, tally, memory_bytes // 2)
        server = Server(relay, _Pages(relay, teller), tally, memory_bytes // 2)
        house.push_async_callback(lambda: server.aclose(settings.shutdown_grace))
        line = Line(owner, files.readers, server.forget_repeats)
        house.push_async_callback(line.aclose)
        line.open()
        await server.open(sockets)
        teller.open()
        yield


class _Pages:
    """The mirror is alive where its front is; anything else the owner knows."""

    def __init__(self, relay: Relay, teller: Teller) -> None:
        self._relay = relay
        self._teller = teller
        self.is_draining = False
        self.pages: Mapping[str, Page] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
        }

    async def _healthz(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(text="alive\n", headers=SOFTWARE)

    async def _readyz(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.is_draining:
            return web.Response(status=503, text="draining\n", headers=SOFTWARE)
        return await self._relay.page(request)

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        """The sum, once the other fronts have told what they counted before this was asked."""
        await self._teller.tell()
        await asyncio.sleep(2 * TELL_EVERY_SECONDS)
        return await self._relay.page(request)
