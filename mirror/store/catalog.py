"""Which repositories are known, by a tag or a content, in pages: the index's statements."""

from collections.abc import Iterator

from sqlalchemy import Select, Table, func, select, union
from sqlalchemy.engine import Connection

from mirror.names import Repository
from mirror.store.schema import links, tags


def repositories_of(
    connection: Connection, upstream: str, after: str, limit: int
) -> list[Repository]:
    """Of one upstream, those whose name follows `after`, in the order of their names."""
    return [
        Repository(upstream, row.repository)
        for row in connection.execute(_ask_names(upstream, after, limit))
    ]


def repositories_of_all(connection: Connection, after: str, limit: int) -> list[Repository]:
    """The same of every upstream, whose name then stands before a `/` and the repository's: in
    `after`, too.
    """
    found: list[Repository] = []
    for upstream in sorted(_upstreams(connection), key="{}/".format):
        prefix = f"{upstream}/"
        if after.startswith(prefix) or after < prefix:
            name = after.removeprefix(prefix) if after.startswith(prefix) else ""
            found += repositories_of(connection, upstream, name, limit - len(found))
    return found


def _ask_names(upstream: str, after: str, limit: int) -> Select[tuple[str]]:
    """Each table's part is cut before they are put together, so that no more of it is read."""

    def of(table: Table) -> Select[tuple[str]]:
        names = (
            select(table.c.repository)
            .where(table.c.upstream == upstream, table.c.repository > after)
            .distinct()
            .order_by(table.c.repository)
            .limit(limit)
        )
        return select(names.subquery().c.repository)

    known = union(of(links), of(tags)).subquery()
    return select(known.c.repository).order_by(known.c.repository).limit(limit)


def _upstreams(connection: Connection) -> set[str]:
    return {upstream for table in (links, tags) for upstream in _upstreams_in(connection, table)}


def _upstreams_in(connection: Connection, table: Table) -> Iterator[str]:
    """One step for each, since each has many rows."""
    upstream: str | None = ""
    column = table.c.upstream
    while (
        upstream := connection.scalar(select(func.min(column)).where(column > upstream))
    ) is not None:
        yield upstream
