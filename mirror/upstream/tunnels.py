"""Connections, those that begin at a proxy within a time: aiohttp has none for what a proxy answers
before the tunnel stands, which may be nothing, or 1xx for ever.
"""

import asyncio
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

# To the proxy, from there to the host, and what is agreed with that: in connect time-outs.
TUNNEL_CONNECT_TIMEOUTS = 3


class Connector(aiohttp.TCPConnector):
    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's
    ) -> "ResponseHandler":
        """Raises TimeoutError, which aiohttp tells as one of connecting."""
        seconds = None
        if req.proxy is not None and timeout.sock_connect is not None:
            seconds = TUNNEL_CONNECT_TIMEOUTS * timeout.sock_connect
        async with asyncio.timeout(seconds):
            return await super()._create_connection(req, traces, timeout)
