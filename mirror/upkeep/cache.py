"""What the commands work on: the rooms below, as they were put together."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mirror.addressing import Directory
from mirror.names import Digest
from mirror.proxy.proxy import Proxy
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.index import Index
from mirror.store.inspection import Inspection
from mirror.store.inventory import Inventory
from mirror.store.pins import Pins
from mirror.store.usage import Usage
from mirror.upkeep.lines import Refused
from mirror.upkeep.naming import ImageName


async def _nobody_answers() -> None:
    pass


@dataclass
class Cache:
    """`forgotten` is told when answers that were given may not be given again, and sees to it."""

    store: BlobStore
    index: Index
    inventory: Inventory
    usage: Usage
    eviction: Eviction
    inspection: Inspection
    pins: Pins
    proxy: Proxy
    directory: Directory
    forgotten: Callable[[], Awaitable[None]] = _nobody_answers
    # What looks at all first and then removes: one after the other.
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def root_of(self, name: ImageName) -> Digest | None:
        """The manifest that it is, be that here or not; None: never heard of. Raises
        StorageFailed.
        """
        repository, reference = name.repository, name.reference
        if isinstance(reference, Digest):
            return reference if await self.index.linked(repository, [reference]) else None
        tag = await self.index.tag(repository, reference)
        return tag.digest if tag is not None else None

    def check_writable(self) -> None:
        """Raises Refused."""
        if self.index.memory is not None:
            raise Refused("the disk takes no writes, so that nothing can be removed or pinned")
