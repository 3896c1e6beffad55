"""What is known about the blobs, in SQL: who may read them, what tags point to, remembered lists.

Never on the path of a warm request: what is hot lies in memory above this room. Times are
wall-clock seconds, since they outlive the process.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Select, Table, delete, literal, select, update
from sqlalchemy.engine import Connection, Row

from mirror.allowance import RememberedAllowance
from mirror.names import Digest, Repository, Tag
from mirror.store.catalog import repositories_of, repositories_of_all
from mirror.store.database import Database
from mirror.store.links import (
    Link,
    ask,
    ask_sources,
    digests_of,
    link_of,
    note,
    row_of,
    sources_of,
)
from mirror.store.needs import add_blob
from mirror.store.ranks import (
    MAX_DIGESTS_ASKED,
    MAY_GO,
    Ranked,
    Uses,
    ask_least_worth,
    ask_uses,
    note_used,
    ranked_of,
    used_more,
)
from mirror.store.remembered import (
    RememberedListing,
    RememberedTag,
    ask_listing,
    ask_tag,
    drop_old_listings,
    drop_tag,
    listing_of,
    row_of_listing,
    row_of_tag,
    tag_of,
    upsert_into,
)
from mirror.store.schema import (
    allowances,
    blobs,
    listings,
    tables,
    tags,
    totals,
)
from mirror.store.sqlite import InMemory

T = TypeVar("T")


class Index:
    """One database (see database.py) and what is asked of it. Methods raise StorageFailed."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._read = database.read
        self._scan = database.scan
        self._write = database.write

    @classmethod
    async def open(
        cls,
        path: Path,
        count_error: Callable[[], None] = lambda: None,
        doubt: Callable[[], None] = lambda: None,
    ) -> Self:
        """Creates or migrates the tables. For `doubt` see Database. Raises IndexTooNew,
        StorageFailed.
        """
        return cls(await Database.open(path, count_error, doubt))

    @classmethod
    async def in_memory(
        cls, memory: InMemory, count_error: Callable[[], None] = lambda: None
    ) -> Self:
        """On a database that outlives it. Raises IndexTooNew, StorageFailed."""
        return cls(await Database.in_memory(memory, count_error))

    @property
    def memory(self) -> InMemory | None:
        """Where it is, if not in a file."""
        return self.database.memory

    @property
    def has_failed(self) -> bool:
        """Whether a question ever failed."""
        return self.database.has_failed

    async def aclose(self) -> None:
        await self.database.aclose()

    async def check_writable(self) -> None:
        """Full or not; closes a file that can only be read. Raises StorageFailed."""
        await self.database.check_writable()

    async def usage(self) -> tuple[int, int]:
        """(blobs, bytes) stored, at the same cost whatever their number."""
        return await self._total(select(totals))

    async def pinned_usage(self) -> tuple[int, int]:
        """(blobs, bytes) of those that never go."""
        return await self._total(select(totals).where(totals.c.pinned.is_(True)))

    async def ping(self) -> None:
        """Each table can be read."""

        def ask(connection: Connection) -> None:
            for table in tables.sorted_tables:
                connection.execute(select(literal(1)).select_from(table).limit(1)).all()

        await self._read(ask)

    async def add_blob(
        self, digest: Digest, size_bytes: int, now: float, rank: float = 0.0
    ) -> bool:
        """Its bytes have just been verified; pinned where a pin needs it. Whether it is new."""
        values = {
            "digest": str(digest),
            "of": str(digest),
            "size_bytes": size_bytes,
            "created_at": now,
            "checked_at": now,
            "used_at": now,
            "rank": rank,
        }
        return await self._write(
            lambda connection: connection.execute(add_blob(), values).rowcount == 1
        )

    async def blob_size(self, digest: Digest) -> int | None:
        """In bytes; None: no such blob is known."""
        query = select(blobs.c.size_bytes).where(blobs.c.digest == str(digest))
        return await self._first(query, lambda row: int(row.size_bytes))

    async def forget_blob(self, digest: Digest) -> int | None:
        """Its size, in bytes, where it was known."""
        forget = delete(blobs).where(blobs.c.digest == str(digest)).returning(blobs.c.size_bytes)
        return await self._write(lambda connection: connection.execute(forget).scalar())

    async def forget_blobs(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those of them that were known; never what is pinned. At most MAX_DIGESTS_ASKED."""
        among = blobs.c.digest.in_([str(digest) for digest in digests])
        forget = delete(blobs).where(among, MAY_GO).returning(blobs.c.digest)
        return await self._write(lambda connection: digests_of(connection.execute(forget)))

    async def least_worth(self, limit: int, after: Ranked | None = None) -> list[Ranked]:
        """Blobs that may go, the next one first."""
        query = ask_least_worth(limit, after)
        return await self._read(lambda connection: ranked_of(connection.execute(query)))

    async def lowest_rank(self) -> float:
        """0 where there are no blobs."""
        found = await self.least_worth(1)
        return found[0].rank if found else 0.0

    async def note_uses(self, uses: Mapping[Digest, Uses], floor: float) -> None:
        """All in one transaction."""
        digests = list(uses)
        now = max((use.last_at for use in uses.values()), default=0.0)

        def change(connection: Connection) -> None:
            for first in range(0, len(digests), MAX_DIGESTS_ASKED):
                some = digests[first : first + MAX_DIGESTS_ASKED]
                rows = connection.execute(ask_uses(some, now))
                if used := used_more(rows, uses, floor):
                    connection.execute(note_used(), used)

        await self._write(change)

    async def blobs_to_check(self, checked_before: float, limit: int) -> list[Digest]:
        """The longest unchecked first."""
        query = select(blobs.c.digest).where(blobs.c.checked_at < checked_before)
        query = query.order_by(blobs.c.checked_at).limit(limit)
        return await self._read(lambda connection: digests_of(connection.execute(query)))

    async def note_checked(self, digests: Iterable[Digest], now: float) -> None:
        among = blobs.c.digest.in_([str(digest) for digest in digests])
        checked = update(blobs).where(among).values(checked_at=now)
        await self._write(lambda connection: connection.execute(checked))

    async def link(self, repository: Repository, found: Iterable[Link]) -> None:
        """What was found out about contents of `repository`."""
        rows = [row_of(repository, link) for link in found]
        if rows:
            await self._write(lambda connection: connection.execute(note(), rows))

    async def linked(self, repository: Repository, digests: Sequence[Digest]) -> list[Link]:
        """What is known of these contents under `repository`."""
        queries = list(ask(repository, digests))
        return await self._read(
            lambda connection: [
                link_of(row) for query in queries for row in connection.execute(query)
            ]
        )

    async def sources(self, digest: Digest) -> set[str]:
        """The upstreams from which the content is known to come."""
        query = ask_sources(digest)
        return await self._read(lambda connection: sources_of(connection.execute(query)))

    async def set_tag(self, repository: Repository, tag: Tag, remembered: RememberedTag) -> None:
        await self._upsert(tags, [row_of_tag(repository, tag, remembered)])

    async def tag(self, repository: Repository, tag: Tag) -> RememberedTag | None:
        return await self._first(ask_tag(repository, tag), tag_of)

    async def drop_tag(self, repository: Repository, tag: Tag) -> None:
        await self._write(lambda connection: connection.execute(drop_tag(repository, tag)))

    async def set_listing(
        self, repository: Repository, question: str, remembered: RememberedListing
    ) -> None:
        values = row_of_listing(repository, question, remembered)

        def change(connection: Connection) -> None:
            connection.execute(upsert_into(listings), values)
            connection.execute(drop_old_listings())

        await self._write(change)

    async def listing(self, repository: Repository, question: str) -> RememberedListing | None:
        return await self._first(ask_listing(repository, question), listing_of)

    async def set_allowances(self, remembered: Iterable[RememberedAllowance]) -> None:
        await self._upsert(allowances, [asdict(each) for each in remembered])

    async def allowances(self) -> list[RememberedAllowance]:
        query = select(allowances)
        return await self._read(
            lambda connection: [RememberedAllowance(*row) for row in connection.execute(query)]
        )

    async def repositories(self, upstream: str | None, after: str, limit: int) -> list[Repository]:
        """Those of one upstream, or of all: see catalog.py."""

        def ask(connection: Connection) -> list[Repository]:
            if upstream is None:
                return repositories_of_all(connection, after, limit)
            return repositories_of(connection, upstream, after, limit)

        return await self._scan(ask)

    async def _total(self, query: Select[Any]) -> tuple[int, int]:
        def ask(connection: Connection) -> tuple[int, int]:
            rows = connection.execute(query).all()
            return sum(int(row.blobs) for row in rows), sum(int(row.size_bytes) for row in rows)

        return await self._read(ask)

    async def _first(self, query: Select[Any], understand: Callable[[Row[Any]], T]) -> T | None:
        def ask(connection: Connection) -> T | None:
            row: Row[Any] | None = connection.execute(query).first()
            return None if row is None else understand(row)

        return await self._read(ask)

    async def _upsert(self, table: Table, rows: list[dict[str, object]]) -> None:
        if rows:
            await self._write(lambda connection: connection.execute(upsert_into(table), rows))
