"""An answer with a blob's bytes in it: by sendfile from a file that may still be growing, past the
disk where that fails, and cut short where the rest does not come.
"""

import asyncio
import errno
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from aiohttp import HttpVersion11, web

from mirror.byteranges import ByteRange
from mirror.downloads.passthrough import PassThrough
from mirror.downloads.reader import BlobReader, StoredReader
from mirror.errors import MirrorError, StorageFailed, UpstreamBroken
from mirror.manifest import BLOB_TYPE
from mirror.metrics import Cache
from mirror.names import Digest
from mirror.web.counts import Counts
from mirror.web.request import FACTS, FilePart
from mirror.web.slices import SLICE_BYTES, SLICE_SECONDS, send_slice
from mirror.web.told import READS_FILES, STREAMED, TOLD, tell


class Sender:
    def __init__(
        self,
        request: web.BaseRequest,
        content: bytes | BlobReader | PassThrough,
        direct: PassThrough,
        counts: Counts,
    ) -> None:
        self._request = request
        self._content = content
        self._direct = direct
        self._begun: AsyncGenerator[bytes | memoryview, None] | None = None
        self._counts = counts
        self._facts = request[FACTS]

    async def send_one(
        self,
        digest: Digest,
        part: ByteRange | None,
        size_bytes: int | None,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        """The whole (200), or one range (206)."""
        status, start, end = 200, 0, size_bytes
        if part is not None and size_bytes is not None:
            status, start, end = 206, part.start, part.end
            headers["Content-Range"] = part.content_range(size_bytes)
        if isinstance(self._content, bytes):
            self._facts.first_byte(self._counts)
            return web.Response(status=status, headers=headers, body=self._content[start:end])
        response = web.StreamResponse(status=status, headers=headers)
        if end is None:
            if self._request.version < HttpVersion11:
                raise UpstreamBroken(self._facts.upstream, "tells no size; HTTP/1.0 needs one")
            response.enable_chunked_encoding()
        else:
            response.content_length = end - start
        if end == start and not isinstance(self._content, PassThrough):
            # Nothing could be held back of it.
            await self._content.readable(start, None, completes=True)
        if isinstance(self._content, StoredReader) and end is not None:
            self._facts.file = FilePart(digest, start, end - start, is_whole=part is None)
        completes = part is None or may_complete(part)
        async with self._begin(start, end, completes=completes):
            await self._prepare(response)
            async with _cut_short_on_error(self):
                await self._send(response, start, end, completes=completes)
        return response

    async def send_parts(
        self, parts: Sequence[ByteRange], size_bytes: int, headers: dict[str, str]
    ) -> web.StreamResponse:
        """`multipart/byteranges` (RFC 9110 §14.6), in the order asked: lazy pullers count on it."""
        boundary = secrets.token_hex(16)
        heads = [_part_head(boundary, part, size_bytes) for part in parts]
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
        response = web.StreamResponse(status=206, headers=headers)
        response.content_length = (
            sum(map(len, heads)) + sum(part.length for part in parts) + len(tail)
        )
        is_whole = sum(part.length for part in parts) == size_bytes
        first, completes = parts[0], [is_whole or may_complete(part) for part in parts]
        async with self._begin(first.start, first.end, completes=completes[0]):
            await self._prepare(response)
            async with _cut_short_on_error(self):
                for head, part, waits in zip(heads, parts, completes, strict=True):
                    await self._write(response, head)
                    if isinstance(self._content, bytes):
                        await self._write(response, self._content[part.start : part.end])
                    else:
                        await self._send(response, part.start, part.end, completes=waits)
                await self._write(response, tail)
        return response

    def cut_short(self, error: BaseException) -> None:
        """Ends the connection, the promised length outstanding: by FIN, so that containerd
        resumes.
        """
        self._facts.cut_short = True
        self._facts.error = self._told(error)
        if self._request.transport is not None:
            self._request.transport.close()

    def _told(self, error: BaseException) -> str:
        if isinstance(error, MirrorError):
            return error.message
        if not isinstance(error, asyncio.CancelledError):
            return repr(error)
        transport = self._request.transport
        has_hung_up = transport is None or transport.is_closing()
        return "the client has hung up" if has_hung_up else "this mirror is shutting down"

    @asynccontextmanager
    async def _begin(self, start: int, end: int | None, *, completes: bool) -> AsyncIterator[None]:
        """Past the disk, nothing is promised before the upstream answers. Raises UpstreamError."""
        if not isinstance(self._content, PassThrough):
            yield
            return
        async with self._content.begun(start, end, completes=completes) as self._begun:
            yield

    async def _prepare(self, response: web.StreamResponse) -> None:
        self._facts.answers()
        self._facts.first_byte(self._counts)
        self._facts.status = response.status
        if READS_FILES in self._request:
            response.headers[TOLD] = tell(self._facts)
            response.headers[STREAMED] = "1"
        await response.prepare(self._request)

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        await response.write(data)
        self._facts.sent_bytes += len(data)

    async def _send(
        self, response: web.StreamResponse, start: int, end: int | None, *, completes: bool
    ) -> None:
        """[start, end) of what is not in memory; past the disk from where that fails."""
        sent_before = self._facts.sent_bytes
        if not isinstance(self._content, bytes | PassThrough):
            try:
                await self._copy(self._content, response, start, end, completes=completes)
                return
            except StorageFailed:
                self._content.doubt()
                start += self._facts.sent_bytes - sent_before
                self._facts.file = None
                self._facts.cache = Cache.UNSTORED
            except OSError as error:
                if error.errno == errno.EIO:  # nobody tells how much of the slice went out
                    self._content.doubt()
                raise
        begun, self._begun = self._begun, None
        coming = begun or self._direct.chunks(start, end, completes=completes)
        async with aclosing(coming) as chunks:
            async for chunk in chunks:
                if chunk:  # a copy, since a slow client's transport keeps what it was given
                    await self._write(response, bytes(chunk))

    async def _copy(
        self,
        reader: BlobReader,
        response: web.StreamResponse,
        start: int,
        end: int | None,
        *,
        completes: bool,
    ) -> None:
        """Raises StorageFailed where the file does not give what it should; what was sent before is
        counted.
        """
        while end is None or start < end:
            reach = await reader.readable(start, end, completes=completes)
            if reach == start:
                break
            while start < reach:
                count = min(reach - start, SLICE_BYTES)
                async with asyncio.timeout(SLICE_SECONDS):
                    sent, is_by_sendfile = await send_slice(
                        self._request, response, reader.file, start, count
                    )
                if not is_by_sendfile:
                    self._facts.file = None
                start += sent
                self._facts.sent_bytes += sent
                if not sent:
                    raise StorageFailed("a blob's file is shorter than it was")


class _cut_short_on_error:
    """Once headers are out an error cannot be told: the connection's early end has to."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        self._sender.cut_short(error)
        return isinstance(error, MirrorError | OSError | TimeoutError)


def may_complete(part: ByteRange) -> bool:
    """Whoever reads to the end from anywhere could complete a wrong blob with it, and whoever reads
    from the start might have asked for all. Another closed range, as lazy pullers ask for, does not
    wait: they check what they read.
    """
    return part.open_ended or part.start == 0


def _part_head(boundary: str, part: ByteRange, size_bytes: int) -> bytes:
    return (
        f"\r\n--{boundary}\r\nContent-Type: {BLOB_TYPE}\r\n"
        f"Content-Range: {part.content_range(size_bytes)}\r\n\r\n"
    ).encode()
