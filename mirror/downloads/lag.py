"""How late this process is with everything: what an upstream's answer took besides."""

import asyncio
from typing import Self

STEP_SECONDS = 0.005


class Lag:
    """Counts from when it is made until `stop`, which leaving it calls as well."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = 0.0
        self._wait()

    def stop(self) -> float:
        """In seconds."""
        self._handle.cancel()
        return self._seconds + max(0.0, self._loop.time() - self._due_at)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    def _wait(self) -> None:
        self._due_at = self._loop.time() + STEP_SECONDS
        self._handle = self._loop.call_at(self._due_at, self._note)

    def _note(self) -> None:
        self._seconds += self._loop.time() - self._due_at
        self._wait()
