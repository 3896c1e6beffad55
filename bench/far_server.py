"""A registry far away, on loopback: each request waits before it is answered, and each connection
has a rate of its own. It serves the folder of `content.py`, with ranges.

python -m bench.far_server PORT ROOT ACCESS_LOG BUSY LATENCY_SECONDS BYTES_PER_SECOND

The file BUSY is there while any request is being answered.
"""

import asyncio
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.content import MANIFEST_TYPE

# One write; at 20 MB/s there is one every 3 ms.
PIECE_BYTES = 64 * 1024
# What a connection that was late may send at once to make up for it.
MAX_LATE_SECONDS = 0.05
# Little waits in the kernel, so that what is logged as sent was received, or nearly.
SEND_BUFFER_BYTES = 128 * 1024
_PATH = re.compile(r"/v2/[\w/.-]+/(manifests|blobs)/(sha256:|t-)([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class FarServer:
    def __init__(
        self,
        root: Path,
        access_log: Path,
        busy: Path,
        latency_seconds: float,
        bytes_per_second: float,
    ) -> None:
        self._root = root
        self._busy = busy
        self._answering = 0
        self._log = access_log.open("a", buffering=1)
        self._latency_seconds = latency_seconds
        self._bytes_per_second = bytes_per_second

    async def serve(self, port: int) -> None:
        server = await asyncio.start_server(self._talk, "127.0.0.1", port, backlog=512)
        async with server:
            await server.serve_forever()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        writer.transport.set_write_buffer_limits(high=0)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                with self._counted():
                    await asyncio.sleep(self._latency_seconds)
                    await self._answer(head, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._answering += 1
        self._busy.touch()
        try:
            yield
        finally:
            self._answering -= 1
            if not self._answering:
                self._busy.unlink()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        method, path, _ = head.partition("\r\n")[0].split(" ")
        path = path.partition("?")[0]
        found = _PATH.fullmatch(path)
        file = self._root / path.lstrip("/")
        if found is None or not file.is_file():
            status = "200 OK" if path == "/v2/" else "404 Not Found"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            return
        size = file.stat().st_size
        wanted = _RANGE.search(head)
        start = int(wanted[1]) if wanted else 0
        end = min(int(wanted[2]) + 1, size) if wanted and wanted[2] else size
        media_type = MANIFEST_TYPE if found[1] == "manifests" else "application/octet-stream"
        lines = [
            f"HTTP/1.1 {'206 Partial Content' if wanted else '200 OK'}",
            f"Content-Length: {end - start}",
            f"Content-Range: bytes {start}-{end - 1}/{size}",
            f"Content-Type: {media_type}",
            f"Docker-Content-Digest: sha256:{found[3]}",
        ]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        sent = _Sent()
        try:
            if method == "GET":
                await self._send(writer, file, start, end, sent)
        finally:
            self._log.write(f"{method} {path} {206 if wanted else 200} {sent.count}\n")

    async def _send(
        self, writer: asyncio.StreamWriter, file: Path, start: int, end: int, sent: "_Sent"
    ) -> None:
        """[start, end) at the rate of one connection, counted as it goes."""
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        with file.open("rb", buffering=0) as opened:
            while start < end:
                piece = os.pread(opened.fileno(), min(PIECE_BYTES, end - start), start)
                start += len(piece)
                due_at = max(due_at, loop.time() - MAX_LATE_SECONDS)
                due_at += len(piece) / self._bytes_per_second
                writer.write(piece)
                await writer.drain()
                sent.count += len(piece)
                await asyncio.sleep(max(0.0, due_at - loop.time()))


@dataclass
class _Sent:
    count: int = 0


if __name__ == "__main__":
    port, root, log, busy, latency, rate = sys.argv[1:]
    files = (Path(root), Path(log), Path(busy))
    asyncio.run(FarServer(*files, float(latency), float(rate)).serve(int(port)))
