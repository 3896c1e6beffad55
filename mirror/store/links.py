"""Who holds which content: the statements of the index about its links."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Insert, Select, or_, select, true
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Row

from mirror.manifest import Descriptor
from mirror.names import Digest, Repository
from mirror.store.schema import links

# Of one statement; SQLite takes 32,766 parameters (SQLITE_MAX_VARIABLE_NUMBER).
MAX_DIGESTS_ASKED = 1_000


@dataclass(frozen=True, slots=True)
class Link:
    """A content as a repository holds it, by the upstream's own word (`proven`), or as a manifest
    of the repository merely names it.
    """

    descriptor: Descriptor
    proven: bool


def note() -> Insert:
    """For rows of `row_of`. What was proven stays as it is when a manifest names it again."""
    statement = insert(links)
    new = statement.excluded
    return statement.on_conflict_do_update(
        [links.c.upstream, links.c.repository, links.c.digest],
        set_={
            "media_type": new.media_type,
            "size_bytes": new.size_bytes,
            "proven": or_(new.proven, links.c.proven),
        },
        where=or_(new.proven, links.c.proven.is_not(true())),
    )


def row_of(repository: Repository, link: Link) -> dict[str, object]:
    return {
        "upstream": repository.upstream,
        "repository": repository.name,
        "digest": str(link.descriptor.digest),
        "media_type": link.descriptor.media_type,
        "size_bytes": link.descriptor.size_bytes,
        "proven": link.proven,
    }


def ask(repository: Repository, digests: Sequence[Digest]) -> Iterator[Select[Any]]:
    """Rows for `link_of`."""
    under_the_name = select(
        links.c.digest, links.c.media_type, links.c.size_bytes, links.c.proven
    ).where(links.c.upstream == repository.upstream, links.c.repository == repository.name)
    for first in range(0, len(digests), MAX_DIGESTS_ASKED):
        some = [str(digest) for digest in digests[first : first + MAX_DIGESTS_ASKED]]
        yield under_the_name.where(links.c.digest.in_(some))


def link_of(row: Row[Any]) -> Link:
    size_bytes = None if row.size_bytes is None else int(row.size_bytes)
    descriptor = Descriptor(Digest.parse(row.digest), str(row.media_type), size_bytes)
    return Link(descriptor, bool(row.proven))


def digests_of(rows: Iterable[Row[Any]]) -> list[Digest]:
    """Of rows that have one. Raises DigestInvalid."""
    return [Digest.parse(row.digest) for row in rows]


def ask_sources(digest: Digest) -> Select[Any]:
    """Rows for `sources_of`."""
    query = select(links.c.upstream, links.c.proven).where(links.c.digest == str(digest))
    return query.distinct()


def sources_of(rows: Iterable[Row[Any]]) -> set[str]:
    """The upstreams that are proven to hold the content in some repository. Where older versions
    alone noted it, and under one upstream only, it came from there.
    """
    found = {(row.upstream, row.proven) for row in rows}
    proven = {upstream for upstream, is_proven in found if is_proven}
    older = {upstream for upstream, is_proven in found if is_proven is None}
    return proven or (older if len(older) == 1 else set())
