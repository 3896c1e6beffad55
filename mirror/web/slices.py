"""Bytes of a file to a client, a slice at a time: by sendfile, or copied where that cannot be
used.
"""

import asyncio
import os
from typing import BinaryIO

from aiohttp import web

from mirror.store.disk import storage_failed
from mirror.web.sendfile import send_file

# One sendfile at most; a client that takes longer than the time-out for it has gone or is hostile.
SLICE_BYTES = 8 * 1024 * 1024
SLICE_SECONDS = 1800
# Where sendfile cannot be used, this much is in memory for each client.
COPY_BYTES = 256 * 1024


async def send_slice(
    request: web.BaseRequest,
    response: web.StreamResponse,
    file: BinaryIO,
    start: int,
    count: int,
) -> tuple[int, bool]:
    """How many bytes were sent, 0 where the file has ended; and whether by sendfile.

    Raises StorageFailed, OSError.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has hung up")
    try:
        if not response.chunked:
            return await send_file(transport, file, start, count), True
    except asyncio.SendfileNotAvailableError:
        pass  # not on this file system, not to this client, or the client has hung up
    count = min(count, COPY_BYTES)
    try:
        data = await asyncio.to_thread(os.pread, file.fileno(), count, start)
    except OSError as error:
        raise storage_failed(error) from error
    await response.write(data)
    return len(data), False
