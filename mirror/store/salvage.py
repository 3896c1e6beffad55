"""A damaged index: what can still be read out of it, and where it goes. Blocking."""

import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Boolean, Float, Integer, LargeBinary, Table

from mirror.errors import MirrorError
from mirror.names import Digest, Repository, Tag
from mirror.store import sqlite
from mirror.store.paths import Paths
from mirror.store.schema import tables, totals

Row = dict[str, Any]

# How far behind the last row that could be read the search for the next one goes on, at most.
MAX_JUMP_ROWS = 1 << 24
BATCH_ROWS = 1000


def salvage(damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> int:
    """Copies every row that can be read and makes sense; returns how many may be lost.

    `fresh` has the tables of this version, a damaged file of an older one has fewer columns.
    """
    lost = 0
    for table in tables.sorted_tables:
        if table is totals:
            continue  # counted again by whoever takes stock
        columns = _columns(damaged, table.name)
        kept = [column.name for column in table.columns if column.name in columns]
        if not kept:
            continue
        into = f"INSERT OR REPLACE INTO {table.name} ({_quoted(kept)}) "
        into += f"VALUES ({', '.join(f':{name}' for name in kept)})"
        for row in _readable(damaged, table.name, kept):
            if isinstance(row, int):
                lost += row
            elif _makes_sense(table, row):
                fresh.execute(into, row)
            else:
                lost += 1
    return lost


def set_aside(paths: Paths) -> str | None:
    """For the operator to look at, under the name that is returned; None: there is nothing.

    Raises OSError.
    """
    seconds = int(time.time())
    while (aside := paths.damaged_index(seconds)).exists():
        seconds += 1
    return aside.name if sqlite.move(paths.index, aside) else None


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    try:
        return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    except sqlite3.DatabaseError:
        return set()


def _readable(
    connection: sqlite3.Connection, table: str, columns: list[str]
) -> Iterator[Row | int]:
    """The rows in their order; in the place of those that cannot be read, how many there may have
    been.
    """
    query = f"SELECT rowid, {_quoted(columns)} FROM {table} NOT INDEXED "  # noqa: S608 - our names
    query += f"WHERE rowid > ? ORDER BY rowid LIMIT {BATCH_ROWS}"
    tried = read = 0
    jump = 1
    while jump <= MAX_JUMP_ROWS:
        try:
            rows = read
            for rowid, *values in connection.execute(query, [tried]):
                if jump > 1 and rowid > read + 1:
                    yield rowid - read - 1
                tried, read, jump = rowid, rowid, 1
                yield dict(zip(columns, values, strict=True))
            if read == rows:
                break
        except sqlite3.DatabaseError:
            tried, jump = tried + jump, jump * 2
    if jump > 1:
        yield max(_last_row(connection, table) - read, 1)


def _quoted(columns: list[str]) -> str:
    """Some are words of SQL."""
    return ", ".join(f'"{name}"' for name in columns)


def _last_row(connection: sqlite3.Connection, table: str) -> int:
    """0 where not even that can be read."""
    try:
        return connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0  # noqa: S608
    except sqlite3.DatabaseError:
        return 0


def _makes_sense(table: Table, row: Row) -> bool:
    """Damaged pages may still look like pages."""
    try:
        _parse(row)
    except (MirrorError, ValueError):
        return False
    return all(
        _is_of_type(table.columns[name].type, value)
        or (value is None and table.columns[name].nullable)
        for name, value in row.items()
    )


def _parse(row: Row) -> None:
    """Raises MirrorError, ValueError."""
    if "digest" in row:
        Digest.parse(str(row["digest"]))
    if "repository" in row:
        Repository.parse(str(row["upstream"]), str(row["repository"]))
    if "tag" in row:
        Tag.parse(str(row["tag"]))
    if "headers" in row:
        json.loads(str(row["headers"]))


def _is_of_type(kind: object, value: object) -> bool:
    if isinstance(kind, Float):
        return isinstance(value, float | int)
    if isinstance(kind, Integer | Boolean):
        return isinstance(value, int)
    return isinstance(value, bytes if isinstance(kind, LargeBinary) else str)
