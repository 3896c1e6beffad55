"""The client's end of a connection."""

import asyncio

READ_AHEAD_BYTES = 64 * 1024


class Wire(asyncio.Protocol):
    """Bytes as they come; unlike StreamReader it still has them after a reset."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.lost = False
        self.error: Exception | None = None
        self.transport: asyncio.Transport | None = None
        self._news = asyncio.Event()
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._news.set()
        if self.transport and len(self.buffer) > READ_AHEAD_BYTES and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.error = True, exc
        self._news.set()

    async def more(self) -> bool:
        """Waits for further bytes; False when none will come."""
        if self.lost:
            return False
        self._news.clear()
        if self._paused and self.transport:
            self._paused = False
            self.transport.resume_reading()
        await self._news.wait()
        return True

    async def some(self, limit: int) -> bytes:
        while not self.buffer and await self.more():
            pass
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return data

    async def until(self, mark: bytes) -> bytes | None:
        while mark not in self.buffer:
            if not await self.more():
                return None
        end = self.buffer.index(mark) + len(mark)
        data = bytes(self.buffer[:end])
        del self.buffer[:end]
        return data
