"""Writing behind: while one batch of chunks is written, the next one is read."""

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

# With what is being written and what aiohttp buffers, about four times this per connection.
MAX_WAITING_BYTES = 1024 * 1024

# Writes chunks that follow one another from an offset. Raises OSError.
Write = Callable[[int, list[bytes]], Coroutine[Any, Any, None]]


class Writer:
    """One answer's chunks, from `begin` on: all before `position` were put in, those before
    `written` are known to be in the file.

    Leaving the block writes what is waiting, also when the answer broke: what came of it counts.
    The tasks belong to the group given.
    """

    def __init__(self, begin: int, write: Write, tasks: asyncio.TaskGroup) -> None:
        self.position = begin
        self.written = begin
        self._write = write
        self._tasks = tasks
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._running: asyncio.Task[None] | None = None

    async def put(self, chunk: bytes) -> None:
        """Waits only when a batch is full while the one before it is not written yet."""
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        self.position += len(chunk)
        if self._running is None or self._running.done():
            self._running = self._tasks.create_task(self._write_waiting())
        elif self._waiting_bytes >= MAX_WAITING_BYTES:
            await self._running

    async def _write_waiting(self) -> None:
        """Until nothing is: what comes meanwhile must not wait for the answer to go on."""
        while self._waiting:
            batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
            await self._write(self.written, batch)
            self.written += sum(map(len, batch))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running is not None and not isinstance(error, asyncio.CancelledError):
            await self._running
