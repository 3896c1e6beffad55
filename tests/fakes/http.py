"""A small HTTP/1.1 server that can also do wrong, byte by byte."""

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
from http import HTTPStatus

from multidict import CIMultiDict

from tests.fakes.delivery import BEFORE_HEADERS, Answer, Delivery, Hold
from tests.fakes.seen import Journal, Seen, read_request

HOLD_POLL_SECONDS = 0.02
RESET_WHEN_CLOSED = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time at all


class HungUp(Exception):
    """The client has gone away."""


class HttpServer(Journal):
    """Listens on one address; a subclass says what is answered, in `respond`."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        super().__init__()
        self.host = host
        self.port = 0
        self.connections_accepted = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._talks: dict[asyncio.Task[object], asyncio.StreamWriter] = {}
        self._failures: list[Exception] = []

    def respond(self, seen: Seen) -> tuple[Answer, Delivery]:
        raise NotImplementedError

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.authority}"

    async def start(self) -> None:
        """Listens; after a stop, on the same port as before."""
        self._server = await asyncio.start_server(
            self._talk, self.host, self.port, ssl=self._tls, backlog=512
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes the listener and every connection; later callers are refused."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for _ in range(3):  # connections just accepted come to their handler
            await asyncio.sleep(0)
        talks = dict(self._talks)
        for task, writer in talks.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*talks, return_exceptions=True)
        for writer in talks.values():
            await _closed(writer)
        await server.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._server is None:
            writer.transport.abort()
            return
        self._talks[task] = writer
        self.connections_accepted += 1
        writer.transport.set_write_buffer_limits(high=1)  # drain() means: handed over
        try:
            while await self._serve_one(reader, writer):
                pass
            writer.close()
            # Whoever is cancelled while waiting takes the wait of all others along.
            await asyncio.shield(_closed(writer))
        except (OSError, asyncio.CancelledError):
            pass  # by `stop`; start_server's own callback (3.11) chokes on a cancelled task
        except Exception as error:  # shown at the end of the test, not lost in a log
            self._failures.append(error)
        finally:
            writer.transport.abort()
            del self._talks[task]

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False when the connection is to be closed."""
        seen = await read_request(reader)
        if seen is None:
            return False
        self._note(seen)
        try:
            answer, delivery = self.respond(seen)
            await _Exchange(self, seen, answer, delivery, reader, writer).run()
        except (HungUp, OSError):
            seen.hung_up = True
            return False
        finally:
            self._note_end(seen)
        asked_to_close = seen.headers.get("Connection", "").lower() == "close"
        wrong_on_the_wire = delivery.length_delta != 0 or delivery.length == "untold"
        return not (asked_to_close or wrong_on_the_wire or delivery.end)


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class _Exchange:
    """One answer on its way out."""

    def __init__(
        self,
        server: HttpServer,
        seen: Seen,
        answer: Answer,
        delivery: Delivery,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._server, self._seen, self._answer = server, seen, answer
        self._delivery, self._reader, self._writer = delivery, reader, writer
        self._body = memoryview(b"" if seen.method == "HEAD" else answer.body)
        self._at = BEFORE_HEADERS

    async def run(self) -> None:
        if self._delivery.delay_seconds:
            await asyncio.sleep(self._delivery.delay_seconds)
        if not await self._goes_on():
            return
        self._seen.status = self._answer.status
        self._writer.write(self._head())
        await self._writer.drain()
        self._at = 0
        while await self._goes_on() and self._at < len(self._body):
            await self._send_piece()
        is_chunked = self._delivery.length == "chunked" and self._seen.method != "HEAD"
        if is_chunked and self._delivery.end is None:
            self._writer.write(b"0\r\n\r\n")
            await self._writer.drain()

    async def _goes_on(self) -> bool:
        """Waits where the answer is held up here; False where it ends before its time."""
        if self._at < len(self._body) and self._reader.at_eof():
            raise HungUp
        for hold in self._delivery.holds:
            if hold.at_bytes == self._at:
                await self._wait_for(hold)
        end = self._delivery.end
        if end is None or self._at < min(end.at_bytes, len(self._body)):
            return True
        if end.reset:
            await self._reset()
        return False

    async def _send_piece(self) -> None:
        limits = [self._at + self._delivery.piece_bytes, len(self._body)]
        limits += [hold.at_bytes for hold in self._delivery.holds if hold.at_bytes > self._at]
        if self._delivery.end is not None:
            limits.append(self._delivery.end.at_bytes)
        piece = self._body[self._at : min(limits)]
        if self._delivery.length == "chunked":
            self._writer.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
        else:
            self._writer.write(piece)
        before = self._seen.bytes_sent
        waiting = self._writer.transport.get_write_buffer_size()
        self._seen.bytes_sent += max(0, len(piece) - waiting)
        await self._writer.drain()
        self._seen.bytes_sent = before + len(piece)
        self._at += len(piece)
        self._server._stir()
        if self._delivery.bytes_per_second:
            await asyncio.sleep(len(piece) / self._delivery.bytes_per_second)

    async def _wait_for(self, hold: Hold) -> None:
        self._seen.held = True
        hold.reached.set()
        self._server._stir()
        while not hold.opened.is_set():
            if self._reader.at_eof():
                raise HungUp
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOLD_POLL_SECONDS):
                    await hold.opened.wait()
        self._seen.held = False

    async def _reset(self) -> None:
        """Sends RST, but only when the other side has got what was sent before."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        for _ in range(200):
            if sock.fileno() < 0:
                raise HungUp
            unsent = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
            if not any(unsent):
                break
            await asyncio.sleep(0.005)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_WHEN_CLOSED)
        self._writer.transport.abort()

    def _head(self) -> bytes:
        status = self._answer.status
        headers = CIMultiDict(self._answer.headers)
        if self._delivery.length == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif self._delivery.length == "untold":
            headers["Connection"] = "close"
        elif status != HTTPStatus.NOT_MODIFIED:
            headers["Content-Length"] = str(len(self._answer.body) + self._delivery.length_delta)
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unheard Of"
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
