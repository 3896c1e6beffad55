"""Bytes of a file into a client's socket, as fast as it takes them.

The event loop's own sendfile leaves the selector and joins it again for each piece that a socket
takes, which costs more than the piece: a quarter of all that a crowd at one blob costs. This one
stays until it is done.
"""

import asyncio
import os
from typing import BinaryIO


async def send_file(transport: asyncio.Transport, file: BinaryIO, start: int, count: int) -> int:
    """How many of `count` bytes were sent: less only where the file has ended. Nothing is read from
    the client meanwhile.

    Raises OSError; asyncio.SendfileNotAvailableError where nothing was sent: not from this file
    system, not to this client, or it has hung up.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop) or transport.get_write_buffer_size():
        return await loop.sendfile(transport, file, start, count, fallback=False)
    sending = _Sending(transport, file, start, count)
    sending.send_more()
    if not sending.is_over.done():
        await sending.wait(loop)
    if sending.error is None:
        return sending.sent_bytes
    if sending.sent_bytes:
        raise sending.error
    raise asyncio.SendfileNotAvailableError(str(sending.error)) from sending.error


class _Sending:
    def __init__(
        self, transport: asyncio.Transport, file: BinaryIO, start: int, count: int
    ) -> None:
        self.sent_bytes = 0
        self.error: OSError | None = None
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport = transport
        self._out = transport.get_extra_info("socket")
        self._file = file.fileno()
        self._start = start
        self._count = count

    async def wait(self, loop: asyncio.SelectorEventLoop) -> None:
        """Who closes the transport meanwhile cancels whoever waits here, too."""
        is_read = self._transport.is_reading()
        if is_read:
            self._transport.pause_reading()
        # In private, since the loop lets nobody else write where a transport may.
        loop._add_writer(self._out.fileno(), self.send_more)  # type: ignore[attr-defined]
        try:
            await self.is_over
        finally:
            # Of a socket that is closed the number may be another one's by now.
            if (out := self._out.fileno()) >= 0:
                loop._remove_writer(out)  # type: ignore[attr-defined]
            if is_read and not self._transport.is_closing():
                self._transport.resume_reading()

    def send_more(self) -> None:
        """What the socket has room for."""
        if self.is_over.done():
            return
        start, count = self._start + self.sent_bytes, self._count - self.sent_bytes
        try:
            sent_bytes = os.sendfile(self._out.fileno(), self._file, start, count)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.error = error
            self.is_over.set_result(None)
            return
        self.sent_bytes += sent_bytes
        if not sent_bytes or self.sent_bytes == self._count:
            self.is_over.set_result(None)
