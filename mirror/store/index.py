"""What is known about the blobs, in SQL: who may read them, what tags point to, remembered lists.

Never on the path of a warm request: what is hot lies in memory above this room. Times are
wall-clock seconds, since they outlive the process.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Insert, Select, Table, delete, event, func, literal, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL, Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mirror.errors import StorageFailed
from mirror.manifest import Descriptor
from mirror.names import Digest, Repository, Tag
from mirror.store.schema import blobs, links, listings, migrate, tags

# Clients choose the questions (n, last, artifactType); the newest answers are enough for an outage.
MAX_LISTINGS = 2_000


@dataclass(frozen=True, slots=True)
class RememberedTag:
    digest: Digest
    checked_at: float


@dataclass(frozen=True, slots=True)
class RememberedListing:
    body: bytes
    headers: dict[str, str]
    checked_at: float


class Index:
    """One SQLite file in WAL mode. Methods raise StorageFailed."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Creates or migrates the tables. Raises IndexTooNew, StorageFailed."""
        index = cls(await asyncio.to_thread(_engine_at, path))
        try:
            async with index._begin() as connection:
                await connection.run_sync(migrate)
        except BaseException:
            await index.aclose()
            raise
        return index

    async def aclose(self) -> None:
        await self._engine.dispose()

    async def usage(self) -> tuple[int, int]:
        """(blobs, bytes) stored."""
        total_bytes = func.coalesce(func.sum(blobs.c.size_bytes), 0)
        row = await self._first(select(func.count().label("blobs"), total_bytes.label("bytes")))
        return (int(row.blobs), int(row.bytes)) if row else (0, 0)

    async def ping(self) -> None:
        """Answers, and that is all."""
        await self._first(select(literal(1)))

    async def add_blob(self, digest: Digest, size_bytes: int, now: float) -> bool:
        """Whether it is new."""
        values = {"digest": str(digest), "size_bytes": size_bytes, "created_at": now}
        async with self._begin() as connection:
            added = await connection.execute(insert(blobs).on_conflict_do_nothing(), values)
            return added.rowcount == 1

    async def link(self, repository: Repository, held: Iterable[Descriptor]) -> None:
        """`repository` is known to hold these contents."""
        rows = [
            _key(repository)
            | {
                "digest": str(descriptor.digest),
                "media_type": descriptor.media_type,
                "size_bytes": descriptor.size_bytes,
            }
            for descriptor in held
        ]
        await self._upsert(links, rows)

    async def linked(self, repository: Repository, digest: Digest) -> Descriptor | None:
        row = await self._first(
            select(links.c.media_type, links.c.size_bytes).where(
                links.c.upstream == repository.upstream,
                links.c.repository == repository.name,
                links.c.digest == str(digest),
            )
        )
        return Descriptor(digest, row.media_type, row.size_bytes) if row else None

    async def set_tag(self, repository: Repository, tag: Tag, remembered: RememberedTag) -> None:
        values = _key(repository) | {
            "tag": str(tag),
            "digest": str(remembered.digest),
            "checked_at": remembered.checked_at,
        }
        await self._upsert(tags, [values])

    async def tag(self, repository: Repository, tag: Tag) -> RememberedTag | None:
        row = await self._first(
            select(tags.c.digest, tags.c.checked_at).where(*_is_tag(repository, tag))
        )
        return RememberedTag(Digest.parse(row.digest), row.checked_at) if row else None

    async def drop_tag(self, repository: Repository, tag: Tag) -> None:
        async with self._begin() as connection:
            await connection.execute(delete(tags).where(*_is_tag(repository, tag)))

    async def set_listing(
        self, repository: Repository, question: str, remembered: RememberedListing
    ) -> None:
        values = _key(repository) | {
            "question": question,
            "body": remembered.body,
            "headers": json.dumps(remembered.headers),
            "checked_at": remembered.checked_at,
        }
        newest = select(listings.c.checked_at).order_by(listings.c.checked_at.desc())
        floor = newest.offset(MAX_LISTINGS).limit(1).scalar_subquery()
        async with self._begin() as connection:
            await connection.execute(_upsert_into(listings), values)
            await connection.execute(delete(listings).where(listings.c.checked_at <= floor))

    async def listing(self, repository: Repository, question: str) -> RememberedListing | None:
        row = await self._first(
            select(listings.c.body, listings.c.headers, listings.c.checked_at).where(
                listings.c.upstream == repository.upstream,
                listings.c.repository == repository.name,
                listings.c.question == question,
            )
        )
        if row is None:
            return None
        return RememberedListing(row.body, json.loads(row.headers), row.checked_at)

    async def repositories(self, upstream: str | None) -> list[Repository]:
        """Every repository of which a tag or a content is known, in the order of their names."""
        of_links = select(links.c.upstream, links.c.repository)
        known = of_links.union(select(tags.c.upstream, tags.c.repository)).subquery()
        query = select(known).order_by(known.c.upstream + "/" + known.c.repository)
        if upstream is not None:
            query = query.where(known.c.upstream == upstream)
        async with self._begin() as connection:
            rows = await connection.execute(query)
            return [Repository(row.upstream, row.repository) for row in rows]

    async def _first(self, query: Select[Any]) -> Row[Any] | None:
        async with self._begin() as connection:
            row: Row[Any] | None = (await connection.execute(query)).first()
            return row

    async def _upsert(self, table: Table, rows: list[dict[str, object]]) -> None:
        if not rows:
            return
        async with self._begin() as connection:
            await connection.execute(_upsert_into(table), rows)

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageFailed(
                f"this mirror's index fails: {type(error).__name__}; its operator should look"
            ) from error


def _engine_at(path: Path) -> AsyncEngine:
    engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(path)))
    event.listen(engine.sync_engine, "connect", _tune)
    return engine


def _upsert_into(table: Table) -> Insert:
    statement = insert(table)
    keys = [column.name for column in table.primary_key]
    updated = {
        column.name: statement.excluded[column.name]
        for column in table.columns
        if column.name not in keys
    }
    return statement.on_conflict_do_update(keys, set_=updated)


def _key(repository: Repository) -> dict[str, object]:
    return {"upstream": repository.upstream, "repository": repository.name}


def _is_tag(repository: Repository, tag: Tag) -> tuple[Any, ...]:
    return (
        tags.c.upstream == repository.upstream,
        tags.c.repository == repository.name,
        tags.c.tag == str(tag),
    )


def _tune(connection: Any, _record: object) -> None:
    """WAL lets readers go on beside a writer; NORMAL loses at most the last commits in a power cut,
    which cost an upstream question, never a wrong answer.
    """
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "busy_timeout = 5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
