"""A front's line to the owner, over which it hears what it may not answer again."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import structlog

from mirror.workers.owner import RETRY_SECONDS, Owner, OwnerLost

_log = structlog.get_logger()


class Line:
    """Owns one task, from `open` to `aclose`. While the owner is away there is no line, and
    nothing to be heard; where it breaks for another reason, it stands again `RETRY_SECONDS` later,
    with what was said meanwhile.
    """

    def __init__(self, owner: Owner, forget_repeats: Callable[[], Awaitable[None]]) -> None:
        self._owner = owner
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
                    await self._listen(socket)
            except OwnerLost as lost:
                _log.debug("there is no line to the owner", reason=str(lost))
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Until it breaks."""
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                generation = json.loads(message.data)["forget"]
                await self._forget_repeats()
                await socket.send_json({"forgotten": generation})
