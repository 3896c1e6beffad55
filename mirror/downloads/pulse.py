"""A condition without a lock: whoever waits is woken by the next beat, then looks for itself."""

import asyncio


class Pulse:
    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def beat(self) -> None:
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    async def wait(self) -> None:
        """Until the next beat. What was true before must be looked at before waiting: between that
        look and this call nothing else runs.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._next)
