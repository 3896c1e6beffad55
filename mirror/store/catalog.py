"""Which repositories are known, by a tag or a content, in pages: the index's statements."""

from collections.abc import Iterator

from sqlalchemy import ColumnElement, Select, Table, func, literal, select
from sqlalchemy.engine import Connection

from mirror.names import Repository
from mirror.store.schema import links, tags


def repositories_of(
    connection: Connection, upstream: str, after: str, limit: int
) -> list[Repository]:
    """Of one upstream, those whose name follows `after`, in the order of their names."""
    return [
        Repository(upstream, row.name)
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
    """One step for each, since each has many rows."""
    first = select(_name_after(upstream, literal(after)).label("name"), literal(1).label("count"))
    names = first.cte("names", recursive=True)
    following = _name_after(upstream, names.c.name)
    names = names.union_all(
        select(following, names.c["count"] + 1).where(
            names.c.name.is_not(None), names.c["count"] < limit
        )
    )
    return select(names.c.name).where(names.c.name.is_not(None)).limit(limit)


def _name_after(upstream: str, name: ColumnElement[str]) -> ColumnElement[str]:
    """The next one in either table; null behind the last."""
    linked, tagged = (
        select(func.min(table.c.repository))
        .where(table.c.upstream == upstream, table.c.repository > name)
        .scalar_subquery()
        for table in (links, tags)
    )
    # Of a null and a name, SQLite's lesser one is null.
    return func.min(func.coalesce(linked, tagged), func.coalesce(tagged, linked))


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
