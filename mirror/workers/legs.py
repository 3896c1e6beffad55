"""A blob's bytes as the owner gives them to a front process: as many legs as it takes.

A leg is one answer of the owner: lines that tell how far a file may be read, or the bytes. Where
the owner ends in the middle of one, the next begins where that one has ended.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from math import inf

import aiohttp
from aiohttp import hdrs, web

from mirror.errors import StorageFailed
from mirror.store.handles import StoredBlob
from mirror.web.replies import WRITE_BYTES
from mirror.web.slices import SLICE_BYTES, SLICE_SECONDS, send_slice
from mirror.web.told import FAILED_LINE, NO_FILE_LINE, ToldFile
from mirror.workers.owner import OwnerFailed, OwnerLost

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/")

NoteSent = Callable[[int, bool], None]


@dataclass(frozen=True, slots=True)
class Leg:
    """`told` and `blob` are None where the answer's body is the bytes themselves."""

    answer: aiohttp.ClientResponse
    told: ToldFile | None
    blob: StoredBlob | None

    def span(self) -> tuple[int, int | None]:
        """The bytes of the blob that it gives, for an answer in several parts those of the answer;
        the end is None where nobody knows it yet.
        """
        if self.told is not None:
            return self.told.start, self.told.end
        match = _CONTENT_RANGE.match(self.answer.headers.get(hdrs.CONTENT_RANGE, ""))
        if match is not None:
            return int(match[1]), int(match[2]) + 1
        return 0, self.answer.content_length

    @property
    def is_in_parts(self) -> bool:
        return self.answer.content_type.startswith("multipart/")

    def close(self) -> None:
        """May be called twice."""
        self.answer.close()
        if self.blob is not None:
            self.blob.close()


async def send_leg(
    request: web.BaseRequest,
    response: web.StreamResponse,
    leg: Leg,
    start: int,
    end: int | None,
    note_sent: NoteSent,
) -> None:
    """What the leg gives of [start, end); `note_sent` is told of each piece, and whether sendfile
    sent it. Raises OwnerLost, OwnerFailed, OSError, StorageFailed.
    """
    limit = inf if end is None else end
    gives_more = leg.span()[1] != end
    if leg.blob is None:
        async for piece in _pieces(leg.answer):
            rest = piece if start + len(piece) <= limit else piece[: int(limit) - start]
            await response.write(rest)
            start += len(rest)
            note_sent(len(rest), False)
            if gives_more and start >= limit:
                return
        return
    async for reach in _reaches(leg.answer):
        while start < min(reach, limit):
            count = int(min(reach - start, limit - start, SLICE_BYTES))
            async with asyncio.timeout(SLICE_SECONDS):
                sent, by_sendfile = await send_slice(request, response, leg.blob.file, start, count)
            if not sent:
                raise StorageFailed("a blob's file is shorter than it was")
            start += sent
            note_sent(sent, by_sendfile)
        if gives_more and start >= limit:
            return


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while piece := await _read(lambda: answer.content.read(WRITE_BYTES)):
        yield piece


async def _reaches(answer: aiohttp.ClientResponse) -> AsyncIterator[int]:
    while line := await _read(answer.content.readline):
        if line.startswith(FAILED_LINE):
            raise OwnerFailed(_reason(line))
        if line.startswith(NO_FILE_LINE):
            raise StorageFailed(_reason(line))
        yield int(line)


def _reason(line: bytes) -> str:
    return line[1:].decode(errors="replace").strip()


async def _read(read: Callable[[], Awaitable[bytes]]) -> bytes:
    try:
        return await read()
    except (aiohttp.ClientError, ConnectionError) as error:
        raise OwnerLost(repr(error)) from error
