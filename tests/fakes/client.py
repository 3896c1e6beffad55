"""A client that reads as slowly, and tells as exactly how it ended, as a test needs."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from multidict import CIMultiDict

from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.http import RESET_WHEN_CLOSED
from tests.fakes.wire import Wire

PIECE_BYTES = 256 * 1024

Ended = Literal[
    "open",  # not read to its end
    "complete",
    "short",  # FIN before the end of headers or body
    "reset",
    "stalled",  # nothing more came within the time given
]


@dataclass
class RawResponse:
    """An answer as far as it came; status 0 if not even the headers did."""

    status: int = 0
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""
    ended: Ended = "open"


class RawStream:
    """One answer, read by hand."""

    def __init__(self, wire: Wire, method: str) -> None:
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.ended: Ended = "open"
        self._wire = wire
        self._method = method
        self._framing: Literal["length", "chunked", "close"] = "close"
        self._left = 0

    async def begin(self) -> None:
        """Reads the headers."""
        head = await self._wire.until(b"\r\n\r\n")
        if head is None:
            self.ended = "reset" if self._wire.error else "short"
            return
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.status = int(first.split(" ")[1])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers.add(name, value.strip())
        self._choose_framing()

    def _choose_framing(self) -> None:
        if self._method == "HEAD" or self.status in (204, 304):
            self.ended = "complete"
        elif "Content-Length" in self.headers:
            self._framing, self._left = "length", int(self.headers["Content-Length"])
            self.ended = "open" if self._left else "complete"
        elif self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            self._framing = "chunked"

    async def read(self, limit: int = PIECE_BYTES) -> bytes:
        """Some bytes of the body; b"" at the end, and then `ended` says which end."""
        if self.ended != "open":
            return b""
        if self._framing == "chunked" and self._left == 0 and not await self._next_chunk():
            return b""
        if self._framing != "close":
            limit = min(limit, self._left)
        data = await self._wire.some(limit)
        if not data:
            return self._lost()
        self._left -= len(data)
        if self._framing == "length" and self._left == 0:
            self.ended = "complete"
        if self._framing == "chunked" and self._left == 0:
            await self._wire.until(b"\r\n")
        return data

    async def _next_chunk(self) -> bool:
        line = await self._wire.until(b"\r\n")
        if line is None:
            self._lost()
            return False
        self._left = int(line, 16)
        if self._left == 0:
            self.ended = "complete"
        return self._left > 0

    def _lost(self) -> bytes:
        if self._wire.error:
            self.ended = "reset"
        else:
            self.ended = "complete" if self._framing == "close" else "short"
        return b""

    def hang_up(self, *, reset: bool = False) -> None:
        """Leaves at once, with FIN or with RST."""
        transport = self._wire.transport
        if transport is None:
            return
        if reset:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_WHEN_CLOSED)
        transport.abort()


@contextlib.asynccontextmanager
async def raw_open(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
    receive_buffer_bytes: int | None = None,
) -> AsyncIterator[RawStream]:
    """Sends a request and reads the headers of its answer; the body is for the caller to read."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in (parts.hostname or "") else socket.AF_INET
    sock = socket.socket(family)
    sock.setblocking(False)
    if receive_buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    try:
        await loop.sock_connect(sock, (parts.hostname, parts.port))
        name = parts.hostname if tls else None
        transport, wire = await loop.create_connection(
            Wire, sock=sock, ssl=tls, server_hostname=name
        )
    except BaseException:
        sock.close()
        raise
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = CIMultiDict({"Host": parts.netloc, "Connection": "close"})
        lines.update(headers or {})
        head = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in lines.items()), "", ""]
        transport.write("\r\n".join(head).encode("latin-1"))
        stream = RawStream(wire, method)
        await stream.begin()
        yield stream
    finally:
        transport.abort()
        while not wire.lost:
            await wire.more()


async def raw_get(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    read_until: int | None = None,
    bytes_per_second: float | None = None,
    receive_buffer_bytes: int | None = None,
    tls: ssl.SSLContext | None = None,
    seconds: float = DEADLINE_SECONDS,
) -> RawResponse:
    """The answer, read to its end, to `read_until` bytes, or for so many seconds."""
    response = RawResponse()
    body = bytearray()
    piece = PIECE_BYTES if bytes_per_second is None else max(1, int(bytes_per_second / 20))
    try:
        async with (
            asyncio.timeout(seconds),
            raw_open(
                url,
                headers,
                method=method,
                tls=tls,
                receive_buffer_bytes=receive_buffer_bytes,
            ) as stream,
        ):
            response.status, response.headers = stream.status, stream.headers
            while read_until is None or len(body) < read_until:
                limit = piece if read_until is None else min(piece, read_until - len(body))
                data = await stream.read(limit)
                if not data:
                    break
                body += data
                if bytes_per_second is not None:
                    await asyncio.sleep(len(data) / bytes_per_second)
            response.ended = stream.ended
    except TimeoutError:
        response.ended = "stalled"
    response.body = bytes(body)
    return response


async def slow_get(
    url: str,
    bytes_per_second: float,
    headers: Mapping[str, str] | None = None,
    *,
    read_until: int | None = None,
    tls: ssl.SSLContext | None = None,
    seconds: float = DEADLINE_SECONDS,
) -> RawResponse:
    """Like `raw_get`, at a client's pace and with a small receive buffer, so that TCP waits."""
    return await raw_get(
        url,
        headers,
        read_until=read_until,
        bytes_per_second=bytes_per_second,
        receive_buffer_bytes=16 * 1024,
        tls=tls,
        seconds=seconds,
    )
