"""What upstreams let each account pull, kept over restarts: written behind, in small batches."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from mirror.allowance import RememberedAllowance
from mirror.proxy.spared import if_told, spared
from mirror.store.index import Index
from mirror.upstream.client import UpstreamClient

# At most this long is forgotten by a kill; at most so often is the index written to.
WRITE_EVERY_SECONDS = 1.0


class Ledger:
    """Owns one task, from `open` to `aclose`."""

    def __init__(self, clients: Mapping[str, UpstreamClient], index: Index) -> None:
        self._clients = clients
        self._index = index
        # By upstream, endpoint and account: what the index did not take goes with the next changes.
        self._unwritten: dict[tuple[str, str, str], RememberedAllowance] = {}
        self._changed, self._closing = asyncio.Event(), asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Tells the clients what is remembered. An index that fails remembers nothing."""
        remembered = await if_told(self._index.allowances()) or []
        for client in self._clients.values():
            client.ratelimits.recall(each for each in remembered if each.upstream == client.name)
            client.ratelimits.on_change = self._changed.set
        self._writer = asyncio.get_running_loop().create_task(self._write_behind(), name="ledger")

    async def aclose(self) -> None:
        """Writes what is left to write."""
        self._closing.set()
        self._changed.set()
        if self._writer is not None:
            await self._writer

    async def _write_behind(self) -> None:
        while not self._closing.is_set():
            await self._changed.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(WRITE_EVERY_SECONDS):
                    await self._closing.wait()
            self._changed.clear()
            await self._write()
        await self._write()  # what came while the last one was under way

    async def _write(self) -> None:
        for client in self._clients.values():
            for each in client.ratelimits.take_changes():
                self._unwritten[each.upstream, each.endpoint, each.account] = each
        if self._unwritten:
            with spared("what upstreams let us pull"):
                await self._index.set_allowances(self._unwritten.values())
                self._unwritten.clear()
