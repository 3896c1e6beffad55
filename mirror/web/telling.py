"""A blob for a front process: where its bytes are and how far they may be read, in place of the
bytes. The front sends them by sendfile; nothing is copied from process to process.
"""

import os

from aiohttp import web

from mirror.byteranges import ByteRange
from mirror.downloads.reader import BlobReader, StoredReader
from mirror.errors import MirrorError, StorageFailed
from mirror.names import Digest
from mirror.web.request import FACTS
from mirror.web.told import FAILED_LINE, NO_FILE_LINE, TOLD, ToldFile, tell

MAX_REASON_BYTES = 1000


async def tell_blob(
    request: web.BaseRequest,
    reader: BlobReader,
    digest: Digest,
    part: ByteRange | None,
    size_bytes: int | None,
    headers: dict[str, str],
    *,
    completes: bool,
) -> web.StreamResponse:
    """The whole (200), or one range (206); the lines go out as `readable` says.

    Raises MirrorError before the headers are out; after them the last line tells what happened.
    """
    facts = request[FACTS]
    status, start, end = 200, 0, size_bytes
    if part is not None and size_bytes is not None:
        status, start, end = 206, part.start, part.end
        headers["Content-Range"] = part.content_range(size_bytes)
    if end == start:
        await reader.readable(start, None, completes=True)
    inode = os.fstat(reader.file.fileno()).st_ino
    is_stored = isinstance(reader, StoredReader)
    is_whole = part is None
    file = ToldFile(
        str(digest), inode, is_stored, start, end, is_whole=is_whole, completes=completes
    )
    response = web.StreamResponse(status=status, headers={**headers, TOLD: tell(facts, file)})
    response.enable_chunked_encoding()
    facts.answers()
    facts.status = status
    await response.prepare(request)
    try:
        while end is None or start < end:
            reach = await reader.readable(start, end, completes=completes)
            if reach == start:
                break
            await response.write(b"%d\n" % reach)
            start = reach
        reader.hand_over()
    except MirrorError as error:
        reason = error.message.replace("\n", " ").encode(errors="backslashreplace")
        mark = NO_FILE_LINE if isinstance(error, StorageFailed) else FAILED_LINE
        await response.write(b"%b%b\n" % (mark, reason[:MAX_REASON_BYTES]))
    return response
