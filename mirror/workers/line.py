"""A front's line to the owner, over which it hears what it may not answer again, and tells which
blobs it reads.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import structlog

from mirror.names import Digest
from mirror.store.readers import Readers
from mirror.workers.owner import RETRY_SECONDS, Owner, OwnerLost

# Who reads for less is not worth a word; the owner waits longer for the first one (see readers.py).
LOOK_SECONDS = 0.1

_log = structlog.get_logger()


class Line:
    """Owns one task, from `open` to `aclose`. While the owner is away there is no line, and
    nothing to be heard; where it breaks for another reason, it stands again `RETRY_SECONDS` later,
    with what was said meanwhile.
    """

    def __init__(
        self, owner: Owner, readers: Readers, forget_repeats: Callable[[], Awaitable[None]]
    ) -> None:
        self._owner = owner
        self._readers = readers
        self._forget_repeats = forget_repeats
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._run())  # noqa: TID251 - see aclose

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                async with self._owner.line() as socket:
                    await self._serve(socket)
            except OwnerLost as lost:
                _log.debug("there is no line to the owner", reason=str(lost))
            await asyncio.sleep(RETRY_SECONDS)

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Until it breaks. Raises OwnerLost."""
        told: set[Digest] = set()
        while True:
            with suppress(TimeoutError):
                message = await socket.receive(timeout=LOOK_SECONDS)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise OwnerLost("its line has ended")
                await self._forget_repeats()
                await socket.send_json({"forgotten": json.loads(message.data)["forget"]})
            told = await self._tell_read(socket, told)

    async def _tell_read(
        self, socket: aiohttp.ClientWebSocketResponse, told: set[Digest]
    ) -> set[Digest]:
        """What is read now, where the owner was told otherwise."""
        now = set(self._readers.read_now())
        if now != told:
            begun, ended = [[*map(str, each)] for each in (now - told, told - now)]
            await socket.send_json({"begun": begun, "ended": ended})
        return now
