"""The tables of the index, and how an older file becomes a newer one."""

from collections.abc import Callable, Sequence

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    text,
)

tables = MetaData()

blobs = Table(
    "blobs",
    tables,
    Column("digest", String, primary_key=True),
    Column("size_bytes", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    # When its bytes were last seen to have the digest; 0: not known.
    Column("checked_at", Float, nullable=False, server_default="0", index=True),
)

# (upstream, repository) holds digest (proven: fetched under that name, or its upstream said so), or
# a manifest of it merely names it; proven is null where an older version did not tell which.
# The size is null where only a HEAD without a length told of it.
links = Table(
    "links",
    tables,
    Column("upstream", String, primary_key=True),
    Column("repository", String, primary_key=True),
    Column("digest", String, primary_key=True, index=True),
    Column("media_type", String, nullable=False),
    Column("size_bytes", Integer),
    Column("proven", Boolean),
)

tags = Table(
    "tags",
    tables,
    Column("upstream", String, primary_key=True),
    Column("repository", String, primary_key=True),
    Column("tag", String, primary_key=True),
    Column("digest", String, nullable=False),
    Column("checked_at", Float, nullable=False),
)

# Remembered answers to tags/list and referrers, by what was asked of the upstream.
listings = Table(
    "listings",
    tables,
    Column("upstream", String, primary_key=True),
    Column("repository", String, primary_key=True),
    Column("question", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("headers", String, nullable=False),
    Column("checked_at", Float, nullable=False, index=True),
)


# What an upstream lets an account (or the bare address, `anonymous`) pull at one endpoint.
allowances = Table(
    "allowances",
    tables,
    Column("upstream", String, primary_key=True),
    Column("endpoint", String, primary_key=True),
    Column("account", String, primary_key=True),
    Column("limit", Integer),
    Column("remaining", Integer),
    Column("window_seconds", Integer),
    Column("source", String, nullable=False),
    Column("heard_at", Float, nullable=False),
    Column("window_ends_at", Float, nullable=False),
    Column("rests_until", Float, nullable=False),
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


# The first step brings a file of version 1 to version 2, and so on; a new file gets all tables at
# once.
_STEPS: Sequence[Callable[[Connection], None]] = (_add_checked_at, _add_proven, _add_allowances)
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
        tables.create_all(connection)
    else:
        for step in _STEPS[version - 1 :]:
            step(connection)
    connection.execute(text(f"PRAGMA user_version = {VERSION}"))
