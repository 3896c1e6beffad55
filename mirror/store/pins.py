"""Images that the operator keeps: what they need is never evicted, whenever it arrives.

A pin by tag follows its tag. Before what a pin needs is looked up for the last time, it is known in
memory: a manifest that arrives meanwhile is either seen, or adds what it names behind the pin.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.engine import Connection

from mirror.errors import StorageFailed
from mirror.names import Digest, Repository, Tag
from mirror.store.anatomy import needs_of, read_named
from mirror.store.blobs import BlobStore
from mirror.store.index import Index
from mirror.store.links import digests_of
from mirror.store.needs import (
    ask_needs,
    ask_who_needs,
    drop_needs,
    drop_pin,
    mark,
    need_of,
    note_needs,
    note_pin,
)
from mirror.store.schema import needs, pins
from mirror.threads import unbroken

Reference = Tag | Digest

T = TypeVar("T")


class Pins:
    """What they are and need lies in memory as well, so that it costs nothing to ask."""

    def __init__(self, store: BlobStore, index: Index) -> None:
        self._database = index.database
        self._named = partial(read_named, store)
        self._pins: dict[tuple[Repository, str], Digest] = {}
        self._needed: set[Digest] = set()
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """An index that fails knows no pins, and evicts nothing either."""
        with suppress(StorageFailed):
            await self.load()

    def pinned(self, repository: Repository, reference: Reference) -> Digest | None:
        """What is pinned under this very name."""
        return self._pins.get((repository, str(reference)))

    def names_of(self, repository: Repository, digest: Digest) -> list[str]:
        """Under which names of the repository this manifest is pinned."""
        pinned = self._pins.items()
        return [name for (where, name), is_ in pinned if where == repository and is_ == digest]

    def names_in(self, repository: Repository) -> list[str]:
        return sorted(name for where, name in self._pins if where == repository)

    async def needed_by(self, repository: Repository, reference: Reference) -> set[Digest]:
        """By one pin, here or not. Raises StorageFailed."""
        query = ask_needs(repository, str(reference))
        return set(
            await self._database.read(lambda connection: digests_of(connection.execute(query)))
        )

    @property
    def needed(self) -> frozenset[Digest]:
        """By all pins together, here or not."""
        return frozenset(self._needed)

    async def pin(self, repository: Repository, reference: Reference, digest: Digest) -> None:
        """Raises ManifestDamaged, StorageFailed."""
        async with self._changing:
            await unbroken(self._pin(repository, str(reference), digest))

    async def unpin(self, repository: Repository, reference: Reference) -> bool:
        """Whether it was pinned. Raises StorageFailed."""
        name = str(reference)

        def change(connection: Connection) -> bool:
            dropped = connection.execute(drop_pin(repository, name))
            needed = digests_of(connection.execute(drop_needs(repository, name)))
            for statement in mark(needed):
                connection.execute(statement)
            return dropped.rowcount > 0

        async with self._changing:
            return await unbroken(self._change(change))

    async def note_tag(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        """The tag points there now. Raises StorageFailed."""
        if self.pinned(repository, tag) not in (None, digest):
            async with self._changing:
                if self.pinned(repository, tag) not in (None, digest):
                    await unbroken(self._pin(repository, str(tag), digest))

    async def note_manifest(self, digest: Digest, named: Collection[Digest]) -> None:
        """It is here now, and names these. Raises StorageFailed."""
        if digest not in self._needed:
            return

        def change(connection: Connection) -> bool:
            rows = [
                need_of(Repository(row.upstream, row.repository), row.reference, each)
                for row in connection.execute(ask_who_needs(digest)).all()
                for each in named
            ]
            if rows:
                connection.execute(note_needs(), rows)
            for statement in mark(named):
                connection.execute(statement)
            return bool(rows)

        async def note() -> None:
            if await self._database.write(change):
                self._needed.update(named)

        async with self._changing:
            await unbroken(note())

    async def _pin(self, repository: Repository, name: str, digest: Digest) -> None:
        """All at once, so that there is never half a pin; and what was pinned under the name before
        stays where this cannot be written.
        """
        wanted: set[Digest] = set()
        while new := await asyncio.to_thread(needs_of, digest, self._named) - wanted:
            self._needed |= new  # a manifest of these that arrives from now on waits for our lock
            wanted |= new
        pin = need_of(repository, name, digest)

        def change(connection: Connection) -> None:
            connection.execute(note_pin(), pin | {"pinned_at": time.time()})
            before = digests_of(connection.execute(drop_needs(repository, name)))
            connection.execute(note_needs(), [need_of(repository, name, each) for each in wanted])
            for statement in mark(wanted.union(before)):
                connection.execute(statement)

        await self._change(change)

    async def _change(self, change: Callable[[Connection], T]) -> T:
        """In memory as well; not to be cancelled in between. Raises StorageFailed."""
        made = await self._database.write(change)
        await self.load()
        return made

    async def load(self) -> None:
        """Again; whoever removes something must not go by an index that failed once. Raises
        StorageFailed.
        """
        self._pins, self._needed = await self._database.scan(_all_pins)


def _all_pins(connection: Connection) -> tuple[dict[tuple[Repository, str], Digest], set[Digest]]:
    """And all that they need."""
    known = {
        (Repository(row.upstream, row.repository), str(row.reference)): Digest.parse(row.digest)
        for row in connection.execute(select(pins))
    }
    distinct = select(needs.c.digest).distinct()
    return known, set(digests_of(connection.execute(distinct)))
