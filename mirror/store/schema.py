"""The tables of the index, and how an older file becomes a newer one."""

from collections.abc import Callable, Sequence

from sqlalchemy import (
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
)

# (upstream, repository) is known to hold digest. The size is null where only a HEAD without a
# length told of it.
links = Table(
    "links",
    tables,
    Column("upstream", String, primary_key=True),
    Column("repository", String, primary_key=True),
    Column("digest", String, primary_key=True),
    Column("media_type", String, nullable=False),
    Column("size_bytes", Integer),
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


class IndexTooNew(Exception):
    """The index was written by a later version of the mirror."""


def _create_all(connection: Connection) -> None:
    tables.create_all(connection)


# Step n brings a file of version n to version n + 1.
_STEPS: Sequence[Callable[[Connection], None]] = (_create_all,)


def migrate(connection: Connection) -> None:
    """Brings the file to this version, in the caller's transaction. Raises IndexTooNew."""
    version = connection.execute(text("PRAGMA user_version")).scalar_one()
    if version > len(_STEPS):
        raise IndexTooNew(f"the index is of version {version}; this mirror knows {len(_STEPS)}")
    if version == len(_STEPS):
        return  # nothing is written, so that a full disk does not keep the mirror from serving
    for step in _STEPS[version:]:
        step(connection)
    connection.execute(text(f"PRAGMA user_version = {len(_STEPS)}"))
