"""A condition without a lock: whoever waits is woken by the next beat, then looks for itself."""

import asyncio

# A hundred followers of a fast download are not woken for every piece of it: what arrives within
# this time is told together.
GATHER_SECONDS = 0.005


class Pulse:
    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None
        self._last_beat = 0.0
        self._soon: asyncio.TimerHandle | None = None

    def beat(self) -> None:
        """Wakes whoever waits, now."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._next is not None:
            self._last_beat = asyncio.get_running_loop().time()
            self._next.set_result(None)
            self._next = None

    def beat_soon(self) -> None:
        """Now, if the last beat was a while ago; else together with what follows."""
        if self._soon is not None or self._next is None:
            return
        loop = asyncio.get_running_loop()
        due_at = self._last_beat + GATHER_SECONDS
        if due_at <= loop.time():
            self.beat()
        else:
            self._soon = loop.call_at(due_at, self.beat)

    async def wait(self) -> None:
        """Until the next beat. What was true before must be looked at before waiting: between that
        look and this call nothing else runs.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._next)
