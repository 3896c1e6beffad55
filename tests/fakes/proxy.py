"""A forward proxy for tests: tunnels for CONNECT, and requests that name the whole URL."""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from yarl import URL

PIECE_BYTES = 64 * 1024
MUMBLE_SECONDS = 0.05


class FakeProxy:
    """On a free port of 127.0.0.1, open while its `async with` block runs.

    It alone knows the names it is given, with their ports, as a site's proxy alone knows those of
    the internet; they stand for ports of 127.0.0.1. `login` is the Proxy-Authorization it wants;
    `refuses_with` a status for every request; `mumbles` is repeated in place of an answer. `asked`
    are first lines.
    """

    def __init__(self, names: Mapping[str, int], login: str | None = None) -> None:
        self.asked: list[str] = []
        self.refuses_with: int | None = None
        self.mumbles: bytes | None = None
        self.names = dict(names)
        self._login = login
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            with suppress(OSError, EOFError):
                await self._exchange(reader, writer)
        finally:
            writer.close()
            self._clients.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().rstrip().split("\r\n")
        self.asked.append(first)
        method, target, _ = first.split(" ")
        while self.mumbles is not None:
            writer.write(self.mumbles)
            await writer.drain()
            await asyncio.sleep(MUMBLE_SECONDS)
        if status := self._refusal(lines):
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
            return
        is_tunnel = method == "CONNECT"
        url = URL(f"https://{target}" if is_tunnel else target)
        port = self.names[f"{url.host}:{url.port}"]
        behind, upstream = await asyncio.open_connection("127.0.0.1", port)
        if is_tunnel:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            upstream.write(_passed_on(method, url, lines))
        try:
            await _until_one_ends(_copy(reader, upstream), _copy(behind, writer))
        finally:
            upstream.close()

    def _refusal(self, lines: list[str]) -> int | None:
        is_wanted = self._login is None or f"Proxy-Authorization: {self._login}" in lines
        return self.refuses_with if is_wanted else 407


def _passed_on(method: str, url: URL, lines: list[str]) -> bytes:
    """In origin form, on a connection of its own."""
    kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
    head = [f"{method} {url.raw_path_qs} HTTP/1.1", *kept, "Connection: close", "", ""]
    return "\r\n".join(head).encode()


async def _until_one_ends(*copies: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(copy) for copy in copies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(PIECE_BYTES):
        sink.write(data)
        await sink.drain()
