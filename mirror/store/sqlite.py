"""The index's file as SQLite sees it, without asking what is in it. All functions block."""

import errno
import os
import secrets
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_HEADER = b"SQLite format 3\0"
_JOURNAL_MODE = slice(18, 20)
# What SQLite keeps beside a file while it is open, and leaves there when it is killed.
COMPANIONS = ("-wal", "-shm")
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


def damage_of(path: Path) -> str | None:
    """What is wrong with the file, as far as SQLite can tell from its structure; None: nothing.

    0.13 s for 100,000 blobs and as many links, so that every start can afford it. Raises
    sqlite3.Error for what is not the file's fault, OSError.
    """
    if (wrong := _wrong_with_files(path)) is not None:
        return wrong
    try:
        with opened(path) as connection:
            (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return str(error)
    return None if told == "ok" else str(told).splitlines()[-1]


def _wrong_with_files(path: Path) -> str | None:
    """What SQLite would overlook, or not tell apart from a disk that is away."""
    for companion in COMPANIONS:
        beside = path.with_name(path.name + companion)
        if beside.exists() and not stat.S_ISREG(beside.stat().st_mode):
            return f"its {companion} is no file"
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


def in_memory() -> tuple[sqlite3.Connection, str]:
    """An empty database and the URI at which others of this process find it while it is open.
    It may be used and closed in any thread.
    """
    uri = f"file:/mirror-{secrets.token_hex(16)}?vfs=memdb"
    keeper = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    keeper.execute("PRAGMA temp_store = MEMORY")
    return keeper, uri


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
    there = [each for each in ("", *COMPANIONS) if os.path.lexists(f"{path}{each}")]
    for companion in there:
        Path(f"{path}{companion}").rename(f"{to}{companion}")
    return bool(there)


def remove(path: Path) -> None:
    """With what SQLite keeps beside it, whatever of it is there. Raises OSError."""
    for companion in ("", *COMPANIONS):
        Path(f"{path}{companion}").unlink(missing_ok=True)


def copy(path: Path, to: Path) -> None:
    """A file that nobody has open. Synced; under its name once it is whole. Raises OSError."""
    beside = to.with_name(to.name + ".new")
    shutil.copyfile(path, beside)
    put(beside, to)


def put(beside: Path, to: Path) -> None:
    """Gives a file that is whole its name, for good. Raises OSError."""
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(to)
    descriptor = os.open(to.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
