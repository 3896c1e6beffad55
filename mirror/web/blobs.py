"""Blobs to clients: what of one is asked for, and where it is to come from."""

from aiohttp import HttpVersion11, web

from mirror.byteranges import resolve
from mirror.downloads.passthrough import PassThrough
from mirror.downloads.reader import BlobReader
from mirror.errors import StorageFailed
from mirror.manifest import BLOB_TYPE
from mirror.metrics import Cache
from mirror.names import Digest
from mirror.proxy.blobs import BlobReply
from mirror.web.counts import Counts
from mirror.web.replies import content_headers
from mirror.web.request import FACTS
from mirror.web.sender import Sender, may_complete
from mirror.web.telling import tell_blob
from mirror.web.told import OLD_CLIENT, READS_FILES


async def send_blob(
    request: web.BaseRequest,
    reply: BlobReply,
    digest: Digest,
    headers: dict[str, str],
    counts: Counts,
) -> web.StreamResponse:
    """Answers a GET. Raises MirrorError before the headers are out; after them it cuts the
    connection short, so that the client knows, and can resume.
    """
    headers = {
        **headers,
        **content_headers(digest),
        "Accept-Ranges": "bytes",
        "Content-Type": BLOB_TYPE,
    }
    wanted = _range_header(request, digest)
    content, size_bytes = await _sized(request, reply, wanted)
    ranges = []
    if size_bytes is not None:
        ranges = resolve(wanted, size_bytes)
        reply.direct.expect(size_bytes)
    part = ranges[0] if ranges else None
    if (
        request.get(READS_FILES)
        and len(ranges) <= 1
        and not isinstance(content, bytes | PassThrough)
    ):
        completes = part is None or may_complete(part)
        return await tell_blob(
            request, content, digest, part, size_bytes, headers, completes=completes
        )
    sender = Sender(request, content, reply.direct, counts)
    if len(ranges) > 1:
        return await sender.send_parts(ranges, size_bytes or 0, headers)
    return await sender.send_one(digest, part, size_bytes, headers)


async def _sized(
    request: web.BaseRequest, reply: BlobReply, wanted: str | None
) -> tuple[bytes | BlobReader | PassThrough, int | None]:
    """The content and its size; past the disk where that fails before the size is known."""
    try:
        return reply.content, await _size_for(request, reply.content, wanted)
    except StorageFailed:
        await reply.direct.open()
        request[FACTS].cache = Cache.UNSTORED
        return reply.direct, reply.direct.size_bytes


async def _size_for(
    request: web.BaseRequest, content: bytes | BlobReader | PassThrough, wanted: str | None
) -> int | None:
    """None where only the end will tell, and the answer can begin without."""
    if isinstance(content, bytes):
        return len(content)
    if isinstance(content, PassThrough):
        return content.size_bytes
    takes_chunks = request.version >= HttpVersion11 and OLD_CLIENT not in request.headers
    if wanted is None and takes_chunks:
        return content.size()
    return await content.wait_size()


def _range_header(request: web.BaseRequest, digest: Digest) -> str | None:
    """If-Range with another ETag than ours means: the whole (RFC 9110 §13.1.5)."""
    condition = request.headers.get("If-Range")
    if condition is not None and condition.strip('"') != str(digest):
        return None
    return request.headers.get("Range")
