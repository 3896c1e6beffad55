"""Everything that the index knows, a page at a time, for whoever looks after the cache; and how it
forgets an image. Other questions go on in between. Methods raise StorageFailed.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, false, or_, select, tuple_
from sqlalchemy.engine import Connection, Row

from mirror.manifest import is_manifest_type
from mirror.names import Digest, Repository, Tag
from mirror.store.index import Index
from mirror.store.links import MAX_DIGESTS_ASKED, Link, link_of
from mirror.store.schema import blobs, links, tags

# What lies between two turns of the event loop: some milliseconds.
PAGE_ROWS = 1_000
# Older versions did not tell.
_MAY_HOLD = links.c.proven.is_not(false())


@dataclass(frozen=True, slots=True)
class Known:
    """A stored blob; `used_at` is wall-clock time."""

    size_bytes: int
    used_at: float
    uses: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class Tagged:
    repository: Repository
    tag: Tag
    digest: Digest


class Inventory:
    def __init__(self, index: Index) -> None:
        self._database = index.database

    async def blobs(self) -> AsyncIterator[dict[Digest, Known]]:
        """In the order of their digests."""
        query = select(blobs)
        async for rows in self._pages(query, [blobs.c.digest]):
            yield {Digest.parse(row.digest): _known_of(row) for row in rows}

    async def known(self, digests: Iterable[Digest]) -> dict[Digest, Known]:
        """Those of them that are stored."""
        found: dict[Digest, Known] = {}
        everyone = [str(digest) for digest in digests]
        for first in range(0, len(everyone), MAX_DIGESTS_ASKED):
            some = everyone[first : first + MAX_DIGESTS_ASKED]
            rows = await self._rows(select(blobs).where(blobs.c.digest.in_(some)))
            found |= {Digest.parse(row.digest): _known_of(row) for row in rows}
        return found

    async def tags(self) -> AsyncIterator[list[Tagged]]:
        key = [tags.c.upstream, tags.c.repository, tags.c.tag]
        async for rows in self._pages(select(tags), key):
            yield [
                Tagged(
                    Repository(row.upstream, row.repository),
                    Tag(row.tag),
                    Digest.parse(row.digest),
                )
                for row in rows
            ]

    async def manifests(self) -> AsyncIterator[list[tuple[Repository, Digest]]]:
        """Those that are stored, under each repository that holds them, by all that is known."""
        key = [links.c.upstream, links.c.repository, links.c.digest]
        is_stored = select(blobs.c.digest).where(blobs.c.digest == links.c.digest).exists()
        is_likely = or_(links.c.media_type.like("%.manifest.%"), links.c.media_type.like("%index%"))
        query = select(*key, links.c.media_type).where(_MAY_HOLD, is_likely, is_stored)
        async for rows in self._pages(query, key):
            yield [
                (Repository(row.upstream, row.repository), Digest.parse(row.digest))
                for row in rows
                if is_manifest_type(row.media_type)
            ]

    async def unlinked(self, unused_since: float) -> AsyncIterator[dict[Digest, Known]]:
        """Blobs that no repository holds or names and no tag points to, and nobody pins."""
        has_link = select(links.c.digest).where(links.c.digest == blobs.c.digest).exists()
        has_tag = blobs.c.digest.in_(select(tags.c.digest))
        query = select(blobs).where(
            blobs.c.used_at < unused_since, blobs.c.pinned.is_(False), ~has_link, ~has_tag
        )
        async for rows in self._pages(query, [blobs.c.digest]):
            yield {Digest.parse(row.digest): _known_of(row) for row in rows}

    async def holders(self, digest: Digest) -> list[tuple[Repository, Link]]:
        """Repositories that are proven to hold it."""
        query = select(links).where(links.c.digest == str(digest), links.c.proven)
        return await self._database.scan(
            lambda connection: [
                (Repository(row.upstream, row.repository), link_of(row))
                for row in connection.execute(query)
            ]
        )

    async def forget(
        self, repository: Repository, gone_tags: Sequence[Tag], unlinked: Iterable[Digest]
    ) -> None:
        """Tags, and what the repository holds or names; all in one transaction."""
        under = {"upstream": repository.upstream, "repository": repository.name}
        of_tags = [str(tag) for tag in gone_tags]
        digests = [str(digest) for digest in unlinked]

        def change(connection: Connection) -> None:
            connection.execute(delete(tags).where(*_all(tags.c, under), tags.c.tag.in_(of_tags)))
            for first in range(0, len(digests), MAX_DIGESTS_ASKED):
                some = digests[first : first + MAX_DIGESTS_ASKED]
                connection.execute(
                    delete(links).where(*_all(links.c, under), links.c.digest.in_(some))
                )

        await self._database.write(change)

    async def _pages(
        self, query: Select[Any], key: Sequence[Any]
    ) -> AsyncIterator[Sequence[Row[Any]]]:
        """By the last key that was seen, so that no transaction lasts longer than a page."""
        page = query.order_by(*key).limit(PAGE_ROWS)
        rows = await self._rows(page)
        while rows:
            yield rows
            if len(rows) < PAGE_ROWS:
                return
            last = tuple(getattr(rows[-1], column.name) for column in key)
            rows = await self._rows(page.where(tuple_(*key) > last))

    async def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        return await self._database.scan(lambda connection: connection.execute(query).all())


def _all(columns: Any, values: Mapping[str, str]) -> list[Any]:
    return [columns[name] == value for name, value in values.items()]


def _known_of(row: Row[Any]) -> Known:
    return Known(row.size_bytes, row.used_at, row.uses, bool(row.pinned))
