"""What a front process has counted, told to the owner from time to time."""

import asyncio

import structlog

from mirror.threads import unbroken
from mirror.web.tally import Tally, add
from mirror.workers.owner import Owner, OwnerLost

TELL_EVERY_SECONDS = 0.1

_log = structlog.get_logger()


class Teller:
    """Owns one task, from `open` to `aclose`."""

    def __init__(self, owner: Owner, tally: Tally) -> None:
        self._owner = owner
        self._tally = tally
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    def open(self) -> None:
        self._task = asyncio.create_task(self._run())  # noqa: TID251 - see aclose

    async def aclose(self) -> None:
        """Tells the last of it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.tell()

    async def tell(self) -> None:
        """Now; later, where the owner does not hear it. What was taken out of the tally is told
        though the asker goes away.
        """
        await unbroken(self._tell())

    async def _tell(self) -> None:
        async with self._turn:
            told = self._tally.take()
            if told is None:
                return
            try:
                await self._owner.tell_counts(told)
            except OwnerLost as lost:
                _log.debug("counts wait for the owner", reason=str(lost))
                add(told, self._tally, self._tally.given)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_SECONDS)
            await self.tell()
