"""The lines of front processes: each keeps one to the owner for as long as both run. Over it a
front is told when what it has answered may not be given again, and says that it has heard; and it
tells which blobs it reads. What it told ends with the line.
"""

import asyncio
import json
from contextlib import suppress
from typing import Any

from aiohttp import WSMsgType, web

from mirror.downloads.pulse import Pulse
from mirror.names import Digest
from mirror.store.readers import ReadCount, Readers
from mirror.web.repeats import REPEAT_SECONDS

# After so long nothing is left of what may not be given again, whoever has not heard.
HEAR_SECONDS = REPEAT_SECONDS
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class Fronts:
    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._lines: set[_Line] = set()
        # How often answers were to be forgotten so far.
        self._generation = 0

    async def hear(self, request: web.BaseRequest) -> web.WebSocketResponse:
        """One front, until it hangs up, or ends."""
        socket = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE_BYTES)
        await socket.prepare(request)
        line = _Line(request, socket, self._readers)
        self._lines.add(line)
        try:
            # It may have missed one while it had no line.
            await line.tell(self._generation)
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    line.take(json.loads(message.data))
        finally:
            self._lines.discard(line)
            line.end()
        return socket

    async def forget_repeats(self) -> None:
        """Over once no front gives an answer any more that it was given before."""
        self._generation += 1
        told = [line.forget(self._generation) for line in self._lines]
        with suppress(TimeoutError):
            async with asyncio.timeout(HEAR_SECONDS):
                await asyncio.gather(*told)

    def hang_up(self) -> None:
        for line in self._lines:
            line.hang_up()


class _Line:
    def __init__(
        self, request: web.BaseRequest, socket: web.WebSocketResponse, readers: Readers
    ) -> None:
        self._request = request
        self._socket = socket
        self._readers = readers
        self._read: dict[str, ReadCount] = {}
        self._heard = 0
        self._has_ended = False
        self._pulse = Pulse()

    async def tell(self, generation: int) -> None:
        """Raises ConnectionError."""
        await self._socket.send_json({"forget": generation})

    async def forget(self, generation: int) -> None:
        """Over once the front has forgotten, or is gone, and all that it knew with it."""
        with suppress(ConnectionError):
            await self.tell(generation)
        while self._heard < generation and not self._has_ended:
            await self._pulse.wait()

    def take(self, told: dict[str, Any]) -> None:
        """What the front says. Raises KeyError, MirrorError."""
        if "forgotten" in told:
            self._heard = told["forgotten"]
            self._pulse.beat()
            return
        for digest in told["begun"]:
            count = self._read[digest] = self._readers.of(Digest.parse(digest))
            count.begin()
        for digest in told["ended"]:
            self._read.pop(digest).end()

    def end(self) -> None:
        while self._read:
            self._read.popitem()[1].end()
        self._has_ended = True
        self._pulse.beat()

    def hang_up(self) -> None:
        if self._request.transport is not None:
            self._request.transport.close()
