"""Connections to a mirror on which a test writes its bytes by hand."""

import asyncio
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.fakes.client import RawStream
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.wire import Wire


async def connect(
    url: str, local: str = "127.0.0.1", receive_buffer_bytes: int | None = None
) -> tuple[asyncio.Transport, Wire]:
    """A connection from that address, which the caller closes. Raises OSError."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((local, 0))
    if receive_buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", int(url.rpartition(":")[2])))
    return await loop.create_connection(Wire, sock=sock)


@asynccontextmanager
async def connected(
    url: str, local: str = "127.0.0.1", receive_buffer_bytes: int | None = None
) -> AsyncIterator[tuple[asyncio.Transport, Wire]]:
    """The same, closed in the end."""
    transport, wire = await connect(url, local, receive_buffer_bytes)
    try:
        yield transport, wire
    finally:
        transport.abort()
        while await wire.more():
            pass


async def has_arrived(transport: asyncio.Transport) -> bool:
    """Whether anything lies there unread, for one that has paused."""
    sock = transport.get_extra_info("socket")
    return bool(select.select([sock.fileno()], [], [], 0)[0])


async def answer_of(wire: Wire) -> tuple[RawStream, bytes]:
    """The next answer on it, and its whole body; for GET, not for HEAD."""
    stream, body = RawStream(wire, "GET"), b""
    async with asyncio.timeout(DEADLINE_SECONDS):
        await stream.begin()
        while piece := await stream.read():
            body += piece
    return stream, body
