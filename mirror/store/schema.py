"""The tables of the index, and how an older file becomes a newer one."""

import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

tables = MetaData()


def _key(*names: str) -> list[Column[str]]:
    """The columns, all of them text, by which a row is found."""
    return [Column(name, String, primary_key=True) for name in names]


def _checked_at(**options: Any) -> Column[float]:
    """In wall-clock seconds."""
    return Column("checked_at", Float, nullable=False, **options)


blobs = Table(
    "blobs",
    tables,
    *_key("digest"),
    Column("size_bytes", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    # When its bytes were last seen to have the digest, as far as the scrub goes by it: what could
    # not be read has a date that brings it back soon. 0: not known.
    _checked_at(server_default="0", index=True),
    # As of when uses were last written down; blobs go in the order of `rank` (see retention.py).
    Column("used_at", Float, nullable=False, server_default="0"),
    Column("uses", Integer, nullable=False, server_default="1"),
    Column("rank", Float, nullable=False, server_default="0"),
    Column("pinned", Boolean, nullable=False, server_default="0"),
)
Index("ix_blobs_rank", blobs.c.rank, blobs.c.used_at, sqlite_where=blobs.c.pinned.is_(False))

# How many blobs there are, and their bytes: kept by triggers, so that a start need not count them.
totals = Table(
    "totals",
    tables,
    Column("pinned", Boolean, primary_key=True),
    Column("blobs", Integer, nullable=False),
    Column("size_bytes", Integer, nullable=False),
)
RECOUNT = (
    "DELETE FROM totals",
    *(
        f"INSERT INTO totals SELECT {pinned}, count(*), coalesce(sum(size_bytes), 0) FROM blobs "  # noqa: S608 - ours
        f"WHERE pinned IS {pinned}"
        for pinned in (0, 1)
    ),
)
_MORE = (
    "UPDATE totals SET blobs = blobs + 1, size_bytes = size_bytes + NEW.size_bytes "
    "WHERE pinned IS NEW.pinned;"
)
_LESS = (
    "UPDATE totals SET blobs = blobs - 1, size_bytes = size_bytes - OLD.size_bytes "
    "WHERE pinned IS OLD.pinned;"
)
_KEEP_COUNT = (
    f"CREATE TRIGGER blobs_added AFTER INSERT ON blobs BEGIN {_MORE} END",
    f"CREATE TRIGGER blobs_gone AFTER DELETE ON blobs BEGIN {_LESS} END",
    "CREATE TRIGGER blobs_changed AFTER UPDATE OF size_bytes, pinned ON blobs "
    f"BEGIN {_LESS} {_MORE} END",
)

# (upstream, repository) holds digest (proven: fetched under that name, or its upstream said so), or
# a manifest of it merely names it; proven is null where an older version did not tell which.
# The size is null where only a HEAD without a length told of it.
links = Table(
    "links",
    tables,
    *_key("upstream", "repository"),
    Column("digest", String, primary_key=True, index=True),
    Column("media_type", String, nullable=False),
    Column("size_bytes", Integer),
    Column("proven", Boolean),
)

tags = Table(
    "tags",
    tables,
    *_key("upstream", "repository", "tag"),
    Column("digest", String, nullable=False),
    _checked_at(),
)

# Remembered answers to tags/list and referrers, by what was asked of the upstream.
listings = Table(
    "listings",
    tables,
    *_key("upstream", "repository", "question"),
    Column("body", LargeBinary, nullable=False),
    Column("headers", String, nullable=False),
    _checked_at(index=True),
)


# What an upstream lets an account (or the bare address, `anonymous`) pull at one endpoint.
allowances = Table(
    "allowances",
    tables,
    *_key("upstream", "endpoint", "account"),
    Column("limit", Integer),
    Column("remaining", Integer),
    Column("window_seconds", Integer),
    Column("source", String, nullable=False),
    Column("heard_at", Float, nullable=False),
    Column("window_ends_at", Float, nullable=False),
    Column("rests_until", Float, nullable=False),
)

# Images that the operator keeps, under the names they were pinned by: `reference` is a tag, which
# may move, or a digest; `digest` is the manifest that it is.
pins = Table(
    "pins",
    tables,
    *_key("upstream", "repository", "reference"),
    Column("digest", String, nullable=False),
    Column("pinned_at", Float, nullable=False),
)

# What each of them needs, whether it is here or not: `pinned` of a blob says that it stands here.
needs = Table(
    "needs",
    tables,
    *_key("upstream", "repository", "reference"),
    Column("digest", String, primary_key=True, index=True),
)


class IndexTooNew(Exception):
    """The index was written by a later version of the mirror."""


def _add_checked_at(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE blobs ADD COLUMN checked_at FLOAT NOT NULL DEFAULT '0'"))
    connection.execute(text("CREATE INDEX ix_blobs_checked_at ON blobs (checked_at)"))


def _add_proven(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE links ADD COLUMN proven BOOLEAN"))
    connection.execute(text("CREATE INDEX ix_links_digest ON links (digest)"))


def _add_allowances(connection: Connection) -> None:
    allowances.create(connection)


def _add_rank(connection: Connection) -> None:
    for column in (
        "used_at FLOAT NOT NULL DEFAULT '0'",
        "uses INTEGER NOT NULL DEFAULT '1'",
        "rank FLOAT NOT NULL DEFAULT '0'",
        "pinned BOOLEAN NOT NULL DEFAULT '0'",
    ):
        connection.execute(text(f"ALTER TABLE blobs ADD COLUMN {column}"))
    connection.execute(text("UPDATE blobs SET used_at = created_at"))
    connection.execute(
        text("CREATE INDEX ix_blobs_rank ON blobs (rank, used_at) WHERE pinned IS 0")
    )


def _add_totals(connection: Connection) -> None:
    totals.create(connection)
    _keep_count(connection)


def _keep_count(connection: Connection) -> None:
    for statement in (*RECOUNT, *_KEEP_COUNT):
        connection.execute(text(statement))


def _add_pins(connection: Connection) -> None:
    pins.create(connection)
    needs.create(connection)


@cache
def _new_tables() -> Sequence[str]:
    """The statements that make all tables; putting them together takes longer than their work."""
    dialect = sqlite.dialect()
    in_order = tables.sorted_tables
    of_tables = [CreateTable(table, if_not_exists=True) for table in in_order]
    indexes = [index for table in in_order for index in table.indexes]
    of_indexes = [CreateIndex(index, if_not_exists=True) for index in indexes]
    return [
        *(str(each.compile(dialect=dialect)) for each in of_tables),
        *(str(each.compile(dialect=dialect)) for each in of_indexes),
    ]


# The first step brings a file of version 1 to version 2, and so on; a new file gets all tables at
# once. A step leaves what its own version had: whoever changes a table that a step creates as it
# stands above, writes the old form out in that step first.
_STEPS: Sequence[Callable[[Connection], None]] = (
    _add_checked_at,
    _add_proven,
    _add_allowances,
    _add_rank,
    _add_totals,
    _add_pins,
)
VERSION = 1 + len(_STEPS)


def migrate(connection: Connection) -> None:
    """Brings the file to this version, in the caller's transaction. Raises IndexTooNew."""
    version = connection.execute(text("PRAGMA user_version")).scalar_one()
    if version > VERSION:
        raise IndexTooNew(f"the index is of version {version}; this mirror knows {VERSION}")
    if version == VERSION:
        return  # nothing is written, so that a full disk does not keep the mirror from serving
    connection.execute(text("BEGIN IMMEDIATE"))  # the driver begins none for changes of tables
    if version == 0:
        for statement in _new_tables():
            connection.execute(text(statement))
        _keep_count(connection)
    else:
        for step in _STEPS[version - 1 :]:
            step(connection)
    connection.execute(text(f"PRAGMA user_version = {VERSION}"))


def migrate_file(path: Path) -> None:
    """Blocking. Raises IndexTooNew, DBAPIError."""
    _migrate_at(create_engine(URL.create("sqlite", database=str(path))))


def migrate_memory(uri: str) -> None:
    """Blocking. Raises IndexTooNew, DBAPIError."""
    _migrate_at(create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True)))


def _migrate_at(engine: Engine) -> None:
    try:
        with engine.begin() as connection:
            migrate(connection)
    finally:
        engine.dispose()
