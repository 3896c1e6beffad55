"""The work behind one arrival: fetching what is missing, hashing what is there.

Four kinds of work; `Transfer.run` does the last one itself, and owns the tasks of the others:

- *fill* (fill.py) reads from the first byte that nobody has or fetches;
- *pieces* (pieces.py) fetch a bounded Range each, where a reader waits far ahead of fill;
- *further* connections (further.py) share what is missing with fill, where the upstream is far;
- *hash* follows like any reader, in order.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

from mirror.downloads.arrival import Arrival
from mirror.downloads.fill import CheckRoom, Fill
from mirror.downloads.further import Further
from mirror.downloads.landing import Landing
from mirror.downloads.pieces import Pieces
from mirror.downloads.shares import Shares
from mirror.downloads.writeback import Writeback
from mirror.errors import WrongBytes
from mirror.intervals import Intervals
from mirror.metrics import Metrics
from mirror.store.staging import HASH_STEP_BYTES
from mirror.threads import in_thread
from mirror.upstream.client import UpstreamClient

# Each step of the hash is a way to a thread: it waits for so much, or for the end.
LEAST_HASHED_BYTES = 1024 * 1024


class Transfer:
    def __init__(
        self,
        arrival: Arrival,
        client: UpstreamClient,
        threads: Executor,
        writeback: Writeback,
        metrics: Metrics,
        shares: Shares,
        check_room: CheckRoom,
    ) -> None:
        self._arrival = arrival
        self._client = client
        self._threads = threads
        self._metrics = metrics
        self._tasks = asyncio.TaskGroup()
        self._fetching: set[asyncio.Task[None]] = set()
        self._landing = Landing(arrival, client, writeback, metrics, shares)
        self._fill = Fill(self._landing, check_room)
        pieces = Pieces(self._landing, self._fill, self._spawn)
        self._further = Further(self._landing, self._fill, pieces, self._spawn)
        arrival.wanted = pieces.want

    async def run(self) -> None:
        """Until the blob is verified; it lies in staging. Raises MirrorError, OSError."""
        self._resume(await in_thread(self._threads, self._arrival.staged.open))
        try:
            async with self._tasks:
                self._spawn(self._fill.run())
                self._spawn(self._further.run())
                # Here, so that who cancels this ends all at once: the group's tasks hear of it
                # later, and a reader may ask for a piece in between.
                await self._until_failure(self._hash())
        except BaseExceptionGroup as failed:
            raise _first(failed) from None

    def _resume(self, there: Intervals) -> None:
        """All of what an earlier download left but its last byte: there is always something to ask
        the upstream for, which tells the size, and that it gives this blob to who wants it.
        """
        last = 0
        for start, last in there:
            self._arrival.present.add(start, last)
        self._arrival.present.remove(last - 1, last)

    def _spawn(
        self, work: Coroutine[Any, Any, None], then: Callable[[], None] = lambda: None
    ) -> None:
        """`then` is called in any case, also where the work could not even begin."""
        task = self._tasks.create_task(self._until_failure(work))
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)
        task.add_done_callback(lambda _: work.close())
        task.add_done_callback(lambda _: then())

    async def _until_failure(self, work: Coroutine[Any, Any, None]) -> None:
        """After a failure nothing may begin: the group is about to close."""
        try:
            await work
        except BaseException:
            self._landing.is_ending = True
            raise

    async def _hash(self) -> None:
        arrival = self._arrival
        position = 0
        while arrival.size_bytes is None or position < arrival.size_bytes:
            reach = min(arrival.present.reach(position), position + HASH_STEP_BYTES)
            if reach - position < LEAST_HASHED_BYTES and reach != arrival.size_bytes:
                await arrival.pulse.wait()
                continue
            await in_thread(self._threads, arrival.staged.hash, position, reach)
            position = reach
        if not arrival.staged.is_right():
            self._metrics.digest_mismatch(self._client.name)
            raise WrongBytes(
                self._client.name, f"sent bytes that are not {arrival.digest}; nothing was stored"
            )
        arrival.verify()
        self._landing.is_ending = True
        for task in self._fetching:  # a connection that lags brings nothing that is missing
            task.cancel()


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
