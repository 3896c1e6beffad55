"""The body of a blob's answer, received straight into two blocks of memory of our own.

aiohttp hands out each piece of a body as an object of its own, copied out of the one that the
socket was read into. Where the length is known, another protocol takes the connection for as long
as the body lasts: the socket, or TLS, fills one block while the reader writes the other one to the
disk. Then aiohttp has its connection back, ready for the next request.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable

import aiohttp

from mirror.upstream.pace import IsUrgent, Pace, Portion

# A connection begins with two small blocks. Where they are full whenever the disk is ready for them
# it gets larger ones: fewer, longer writes make a near upstream twice as fast.
FIRST_BLOCK_BYTES = 256 * 1024
MAX_BLOCK_BYTES = 4 * 1024 * 1024
# What comes within this time is handed out together, as far as it fits: a far upstream sends many
# small pieces, and each costs a way to the disk.
GATHER_SECONDS = 0.01
# What all connections together may take beyond their first blocks.
MAX_GROWN_BYTES = 48 * 1024 * 1024
# What is kept of it while no body wants it.
MAX_SPARE_BYTES = 16 * 1024 * 1024

NO_HTTP = "the body goes on with what is no HTTP"


class Blocks:
    """The memory that all bodies share. A block that cannot be had larger stays as it is; one that
    is given back is kept for the next body, since fresh memory costs as much as filling it.
    """

    def __init__(self) -> None:
        self._grown_bytes = 0
        self._spare: defaultdict[int, list[memoryview]] = defaultdict(list)
        self._spare_bytes = 0

    def of(self, size_bytes: int) -> memoryview:
        """With anything in it."""
        if spare := self._spare.get(size_bytes):
            self._spare_bytes -= size_bytes
            return spare.pop()
        return memoryview(bytearray(size_bytes))

    def larger(self, block: memoryview) -> memoryview:
        """Twice the size, or the same block, which nobody may use any more."""
        size_bytes = len(block)
        may_grow = self._grown_bytes + size_bytes <= MAX_GROWN_BYTES
        if size_bytes >= MAX_BLOCK_BYTES or not may_grow:
            return block
        self._grown_bytes += size_bytes
        larger = self.of(2 * size_bytes)
        self._keep(block)
        return larger

    def give_back(self, block: memoryview) -> None:
        """Its growth is free for others. Nobody may use it any more."""
        self._grown_bytes -= max(0, len(block) - FIRST_BLOCK_BYTES)
        self._keep(block)

    def _keep(self, block: memoryview) -> None:
        if len(block) >= FIRST_BLOCK_BYTES and self._spare_bytes + len(block) <= MAX_SPARE_BYTES:
            self._spare[len(block)].append(block)
            self._spare_bytes += len(block)


def fills_its_block(chunk: bytes | memoryview) -> bool:
    """Whether more would have come had there been room: the upstream sends faster than the reader
    takes it.
    """
    return isinstance(chunk, memoryview) and chunk.nbytes == memoryview(chunk.obj).nbytes


async def read_body(
    response: aiohttp.ClientResponse,
    idle_timeout_seconds: float,
    blocks: Blocks,
    pace: Pace,
    is_urgent: IsUrgent,
) -> AsyncGenerator[bytes | memoryview, None]:
    """Each piece is good until the next one is asked for. For the last two see pace.py.

    Raises aiohttp.ClientError, or OSError (TimeoutError when nothing came for
    `idle_timeout_seconds`), once all that arrived has been handed out.
    """
    connection = response.connection
    handler = connection.protocol if connection is not None else None
    transport = handler.transport if handler is not None else None
    if handler is None or transport is None or not _ends_by_length(response):
        while chunk := await _next_chunk(response, idle_timeout_seconds):
            yield chunk
            pace.charge(len(chunk))
            await pace.take(1, is_urgent)
        return
    early = _taken_from(response.content)
    pace.charge(len(early))
    if response.content.is_eof():  # that was all of it, and aiohttp has its connection back
        yield early
        return
    handler.pause_reading()  # which ends its time-out too
    # Whoever still takes an earlier answer out of its buffer lets the handler read on, though this
    # connection is not theirs any more: not while it says that its own buffers are full.
    handler._buffer_paused = True
    missing_bytes = (response.content_length or 0) - response.content.total_bytes
    portion = Portion(pace, is_urgent)
    receiver = Receiver(transport, missing_bytes, handler.connection_lost, blocks, portion)
    try:
        if early:
            yield early
        while (block := await receiver.next_block(idle_timeout_seconds)) is not None:
            yield block
    finally:
        receiver.close()
        transport.set_protocol(handler)
        handler._buffer_paused = False
        if receiver.missing_bytes == 0:
            response.content.feed_eof()


async def _next_chunk(response: aiohttp.ClientResponse, idle_timeout_seconds: float) -> bytes:
    """b"" at the end. What goes on without a byte of the body is idle, too: a chunk's extension."""
    try:
        async with asyncio.timeout(idle_timeout_seconds):
            return await next_piece(response.content)
    except (aiohttp.ClientError, OSError):
        if early := _taken_from(response.content):
            return early
        raise


async def next_piece(content: aiohttp.StreamReader) -> bytes:
    """What has come of a body, waited for; b"" at its end. Raises aiohttp.ClientError, OSError."""
    try:
        return await content.readany()
    except RuntimeError as error:
        # So aiohttp says that it closed the connection over what is no HTTP: a chunk, say.
        raise aiohttp.ClientPayloadError(NO_HTTP) from error


def _taken_from(content: aiohttp.StreamReader) -> bytes:
    """What lies there. Asked in public, aiohttp gives nothing of it once the connection broke."""
    return content._read_nowait(-1)


def _ends_by_length(response: aiohttp.ClientResponse) -> bool:
    return response.content_length is not None and "Transfer-Encoding" not in response.headers


class Receiver(asyncio.BufferedProtocol):
    """Takes `missing_bytes` from a connection, not one more, and reads no further ahead than one
    block.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        missing_bytes: int,
        on_lost: Callable[[Exception | None], None],
        blocks: Blocks,
        portion: Portion,
    ) -> None:
        size_bytes = min(FIRST_BLOCK_BYTES, missing_bytes)
        self.missing_bytes = missing_bytes
        self._blocks = blocks
        self._portion = portion
        self._filling, self._handed_out = blocks.of(size_bytes), blocks.of(size_bytes)
        self._filled_bytes = 0
        self._news: asyncio.Future[None] | None = None
        self._is_gathering = False
        self._handed_out_at = 0.0
        self._error: Exception | None = None
        self._transport = transport
        self._on_lost = on_lost
        transport.set_protocol(self)
        self._read_on()

    def get_buffer(self, sizehint: int) -> memoryview:
        start = self._filled_bytes
        return self._filling[start : start + min(self.missing_bytes, self._portion.left_bytes)]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled_bytes += nbytes
        self.missing_bytes -= nbytes
        self._portion.left_bytes -= nbytes
        if self._is_full:
            self._transport.pause_reading()
        if self._is_full or not self._is_gathering:
            self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = exc or aiohttp.ClientPayloadError("the body ended before its end")
        self._on_lost(exc)
        self._tell()

    async def next_block(self, idle_timeout_seconds: float) -> memoryview | None:
        """What has come, waited for if need be; None at the end of the body."""
        if not self._filled_bytes and not self.missing_bytes:
            return None
        if not self._filled_bytes and self._error is None and not self._portion.left_bytes:
            await self._portion.wait(self._room_bytes)
            self._transport.resume_reading()
        if not self._filled_bytes and self._error is None:
            await self._wait(idle_timeout_seconds)
        if self._error is None:
            await self._gather()
        if not self._filled_bytes and self._error is not None:
            raise self._error
        self._handed_out_at = asyncio.get_running_loop().time()
        block = self._filling[: self._filled_bytes]
        is_full = self._filled_bytes == len(self._filling)
        self._filling, self._handed_out = self._handed_out, self._filling
        self._filled_bytes = 0
        if self.missing_bytes:
            if is_full and len(self._filling) <= len(self._handed_out):
                self._filling = self._blocks.larger(self._filling)
            self._read_on()
        return block

    @property
    def _room_bytes(self) -> int:
        """What could be read now."""
        return min(self.missing_bytes, len(self._filling) - self._filled_bytes)

    @property
    def _is_full(self) -> bool:
        """Or nothing more is to come for now."""
        return not self._room_bytes or not self._portion.left_bytes

    def _read_on(self) -> None:
        """As far as the pace allows at once."""
        self._portion.top_up(self._room_bytes)
        if self._portion.left_bytes:
            self._transport.resume_reading()

    async def _wait(self, seconds: float) -> None:
        """For news. Raises TimeoutError."""
        self._news = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(seconds):
            await self._news

    async def _gather(self) -> None:
        """Until the block is full, if the last one was handed out a moment ago."""
        now = asyncio.get_running_loop().time()
        seconds = self._handed_out_at + GATHER_SECONDS - now
        if self._is_full or seconds <= 0:
            return
        self._is_gathering = True
        try:
            await self._wait(seconds)
        except TimeoutError:
            pass
        finally:
            self._is_gathering = False

    def close(self) -> None:
        """What was handed out is no longer in use."""
        self._portion.close()
        for block in (self._filling, self._handed_out):
            self._blocks.give_back(block)

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
