"""What arrivals have written and the disk may not have yet, kept within bounds.

Left alone, the system gathers a share of all memory before it writes any of it, then stalls whoever
writes next; a layer of gigabytes waits for all of that at its end. So the disk is made to begin in
time, with the arrival that has most to be written. Where it falls behind nevertheless, so do the
upstreams: their connections are not read on before it has caught up.
"""

import asyncio
from collections import Counter
from concurrent.futures import Executor

from mirror.downloads.pulse import Pulse
from mirror.store.staging import StagedBlob
from mirror.threads import in_thread

# Of all arrivals together. Most layers are smaller: they wait for the disk once, when all is there.
BEGIN_BYTES = 256 * 1024 * 1024
MAX_UNSYNCED_BYTES = 2 * BEGIN_BYTES


class Writeback:
    """One for all arrivals. Each lets go before its files are closed or renamed."""

    def __init__(self, writers: Executor, syncs: Executor) -> None:
        """Threads that write, and those that wait for the disk."""
        self._writers = writers
        self._syncs = syncs
        self._unsynced: Counter[StagedBlob] = Counter()
        self._total_bytes = 0
        self._pulse = Pulse()
        self._syncing: StagedBlob | None = None
        self._task: asyncio.Task[None] | None = None

    async def write(self, staged: StagedBlob, offset: int, data: memoryview) -> None:
        """Once there is room for it. Raises OSError."""
        while self._total_bytes >= MAX_UNSYNCED_BYTES:
            await self._pulse.wait()
        await in_thread(self._writers, staged.write, offset, data)
        self._unsynced[staged] += len(data)
        self._total_bytes += len(data)
        if self._total_bytes >= BEGIN_BYTES and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._catch_up(), name="writeback")

    async def let_go(self, staged: StagedBlob) -> None:
        """What it has written is no longer waited for; nor is it in a thread's hands."""
        self._note_synced(staged, self._unsynced[staged])
        while self._syncing is staged:
            await self._pulse.wait()

    async def aclose(self) -> None:
        """Once all arrivals have let go."""
        if self._task is not None:
            await self._task

    async def _catch_up(self) -> None:
        try:
            while self._total_bytes >= BEGIN_BYTES:
                ((staged, written_bytes),) = self._unsynced.most_common(1)
                self._syncing = staged
                await in_thread(self._syncs, staged.sync)
                self._syncing = None
                self._note_synced(staged, written_bytes)
        finally:
            self._task = None

    def _note_synced(self, staged: StagedBlob, written_bytes: int) -> None:
        """But for what was written since, or let go of."""
        synced_bytes = min(written_bytes, self._unsynced[staged])
        self._total_bytes -= synced_bytes
        self._unsynced[staged] -= synced_bytes
        if not self._unsynced[staged]:
            del self._unsynced[staged]
        self._pulse.beat()
