"""An upstream's answers as aiohttp has them, but for two that would never end: the head has to come
in time, and the body ends with its connection.
"""

import asyncio

import aiohttp
from aiohttp.connector import Connection

from mirror.upstream.body import NO_HTTP


def answer_within(seconds: float) -> type[aiohttp.ClientResponse]:
    """Answers whose head has to be complete within this time of the request's."""

    class Answer(aiohttp.ClientResponse):
        async def start(self, connection: Connection) -> aiohttp.ClientResponse:
            async with asyncio.timeout(seconds):
                await super().start(connection)
            _end_with_connection(self.content, connection)
            return self

    return Answer


def _end_with_connection(body: aiohttp.StreamReader, connection: Connection) -> None:
    """Lets whoever waits for a body hear that its connection was closed. aiohttp tells nobody where
    it does that itself, since what goes on is no HTTP: a chunk that is none, say.
    """
    protocol = connection.protocol
    closed = protocol.closed if protocol is not None else None
    if closed is None or body.is_eof():
        return

    def end(_closed: asyncio.Future[None]) -> None:
        if body.exception() is None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError(NO_HTTP))

    def forget() -> None:
        closed.remove_done_callback(end)

    closed.remove_done_callback(_hear)  # an earlier answer's
    closed.add_done_callback(_hear)
    closed.add_done_callback(end)
    body.on_eof(forget)


def _hear(closed: "asyncio.Future[None]") -> None:
    """Whoever was to be told how a connection ended has been."""
    if not closed.cancelled():
        closed.exception()
