"""The index's file as SQLite sees it, without asking what is in it. All functions block."""

import errno
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mirror.store.disk import put
from mirror.store.paths import with_companions

_HEADER = b"SQLite format 3\0"
_JOURNAL_MODE = slice(18, 20)
# Codes of SQLite that say something about the file, not about the moment.
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNREADABLE = frozenset(
    {
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
    }
)
# Codes that tell of a disk that takes no writes.
_REFUSED = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
BUSY_SECONDS = 5.0


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A file that is there, without transactions that begin by themselves. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    with closing(connection):
        yield connection


@contextmanager
def opened_as_it_is(path: Path) -> Iterator[sqlite3.Connection]:
    """Only read, and without what lies beside it. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        yield connection


def damage_of(path: Path) -> str | None:
    """What is wrong with the file, as far as SQLite can tell from its structure; None: nothing.

    0.2 s for 100,000 blobs and as many links. Raises sqlite3.Error for what is not the file's
    fault, OSError.
    """
    if (wrong := wrong_with_files(path)) is not None:
        return wrong
    try:
        with opened(path) as connection:
            (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return str(error)
    return None if told == "ok" else str(told).splitlines()[-1]


def wrong_with_files(path: Path) -> str | None:
    """What SQLite would overlook, or not tell apart from a disk that is away; None: nothing.

    Raises OSError.
    """
    *companions, _ = with_companions(path)
    for beside in companions:
        if beside.exists() and not stat.S_ISREG(beside.stat().st_mode):
            return f"its {beside.name.removeprefix(path.name)} is no file"
    try:
        with path.open("rb") as file:
            start = file.read(len(_HEADER))
    except IsADirectoryError:
        return "it is no file"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "its disk does not give it"
    return None if start in (b"", _HEADER) else "it does not begin as one"


def is_damage(error: sqlite3.Error) -> bool:
    """By SQLite's result codes, the lowest byte of which is the primary one."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGED or code in _UNREADABLE


def is_refusal(error: sqlite3.Error, *, is_writable: bool) -> bool:
    """Whether its disk takes no writes. SQLite says no more than that it cannot open a file when it
    cannot make what belongs beside it: that counts unless the disk `is_writable`.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in _REFUSED or (code == sqlite3.SQLITE_CANTOPEN and not is_writable)


class InMemory:
    """A database that is there while this is open; others of this process find it at `uri`. It may
    be used and closed in any thread.
    """

    def __init__(self) -> None:
        self.uri = f"file:/mirror-{secrets.token_hex(16)}?vfs=memdb"
        self.connection = sqlite3.connect(
            self.uri, uri=True, isolation_level=None, check_same_thread=False
        )
        self.connection.execute("PRAGMA temp_store = MEMORY")

    def close(self) -> None:
        self.connection.close()


def load(path: Path, into: sqlite3.Connection) -> None:
    """Copies a file without writing anything beside it. A log that a killed process has left is
    read where SQLite can do so, and passed over elsewhere. Raises sqlite3.Error.
    """
    try:
        _load(f"{path.absolute().as_uri()}?mode=ro", into)
    except sqlite3.OperationalError:
        _load(f"{path.absolute().as_uri()}?mode=ro&immutable=1", into)


def _load(uri: str, into: sqlite3.Connection) -> None:
    """All of it or nothing. Raises sqlite3.Error, also for what is not sound."""
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
        pages = bytearray(connection.serialize())
    pages[_JOURNAL_MODE] = b"\1\1"  # there is no WAL in memory
    with closing(sqlite3.connect(":memory:")) as loaded:
        loaded.deserialize(bytes(pages))
        (told,) = loaded.execute("PRAGMA quick_check(1)").fetchone()
        if told != "ok":
            raise sqlite3.DatabaseError(told)
        loaded.backup(into)


def version_of(connection: sqlite3.Connection) -> int:
    """0: an empty file. Raises sqlite3.Error."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def move(path: Path, to: Path) -> bool:
    """With what SQLite keeps beside it; whether there was anything. Raises OSError."""
    pairs = zip(with_companions(path), with_companions(to), strict=True)
    there = [(each, target) for each, target in pairs if os.path.lexists(each)]
    for each, target in there:
        each.rename(target)
    return bool(there)


def remove(path: Path) -> None:
    """With what SQLite keeps beside it, whatever of it is there. Raises OSError."""
    for each in with_companions(path):
        each.unlink(missing_ok=True)


def replace(path: Path, whole: Path) -> None:
    """Puts a file that is whole in the place of one that nobody has open. What lies beside the old
    one is written into it, so that it may go first: the new one must never be read with it.

    Raises OSError.
    """
    if path.exists():
        with suppress(sqlite3.Error), opened(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    *companions, _ = with_companions(path)
    for each in companions:
        each.unlink(missing_ok=True)
    put(whole, path)
