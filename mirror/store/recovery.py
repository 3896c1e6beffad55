"""An index that is missing or damaged is made anew before the mirror serves: from its backup, else
from what can still be read of it; then it is compared with the blobs that are there.

What cannot be recovered costs a question to the upstream, never a download: blobs that no
repository is known to hold are served again once the upstream has said who holds them.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError

from mirror.errors import StorageFailed
from mirror.store import filesystem, sqlite
from mirror.store.filesystem import BlobStore
from mirror.store.index import Index
from mirror.store.salvage import salvage
from mirror.store.schema import VERSION, IndexTooNew, migrate, tables
from mirror.store.stocktaking import Found, take_stock

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Recovered:
    """`source` is "backup", "damaged file" or "blobs"; `lost_rows` is an upper bound."""

    cause: str
    source: str
    set_aside: str | None
    found: Found
    lost_rows: int


async def recover(store: BlobStore) -> Recovered | None:
    """Makes sure that `Index.open` finds a sound file; None: it was sound. One line in the log says
    what was done. Raises StorageFailed, OSError.
    """
    try:
        recovered = await asyncio.to_thread(_recover, store)
    except (sqlite3.Error, DBAPIError) as error:
        raise StorageFailed(
            f"this mirror's index fails: {error}; its operator should look"
        ) from error
    if recovered is not None:
        told = {key: value for key, value in asdict(recovered).items() if key != "found"}
        _log.warning("the index was rebuilt", **told, **asdict(recovered.found))
    return recovered


async def open_index(store: BlobStore, count_error: Callable[[], None] = lambda: None) -> Index:
    """The index, recovered where that is necessary; in memory where the disk takes no writes, until
    the mirror is started again. One line in the log says what does not work.

    Raises IndexTooNew, StorageFailed, OSError.
    """
    reason = store.refusal
    try:
        await recover(store)
        index = await Index.open(store.index_path, count_error)
        if reason is not None:
            await index.check_writable()
    except (StorageFailed, OSError) as error:
        if not _is_refusal(error, is_writable=reason is None):
            raise
        reason = reason or str(error)
        keeper, uri = await asyncio.to_thread(_remembered, store)
        index = await Index.in_memory(keeper, uri, count_error)
    if reason is not None:
        _log.error(
            "the disk takes no writes; what is here is served, the rest comes from the upstream "
            "and is not kept; blobs are stored again once it does",
            path=str(store.path),
            reason=reason,
            index="in memory until a restart" if index.is_in_memory else "on the disk",
        )
    return index


def _is_refusal(error: Exception, *, is_writable: bool) -> bool:
    """By what lies at the bottom of it."""
    cause = error.__cause__ or error
    cause = getattr(cause, "orig", None) or cause
    if isinstance(cause, sqlite3.Error):
        return sqlite.is_refusal(cause, is_writable=is_writable)
    return filesystem.is_refusal(cause)


def _remembered(store: BlobStore) -> tuple[sqlite3.Connection, str]:
    """An index in memory with what the file holds, else its backup, and the blobs that are there.
    Raises OSError, IndexTooNew, StorageFailed.
    """
    with suppress(OSError):  # room that a recovery took in vain
        sqlite.remove(_fresh(store.index_path))
    keeper, uri = sqlite.in_memory()
    try:
        if not _load(store.index_path, keeper):
            _load(store.backup_path, keeper)
        _migrate_uri(uri)
        keeper.execute("BEGIN")
        take_stock(keeper, store)
        keeper.execute("COMMIT")
    except BaseException as error:
        keeper.close()
        if isinstance(error, (sqlite3.Error, DBAPIError)):
            raise StorageFailed(
                f"this mirror's index fails: {error}; its operator should look"
            ) from error
        raise
    return keeper, uri


def _load(path: Path, keeper: sqlite3.Connection) -> bool:
    """Whether there was anything to be read. What is not sound leaves nothing behind."""
    try:
        sqlite.load(path, keeper)
        return sqlite.version_of(keeper) > 0
    except sqlite3.Error:
        return False


def _fresh(index: Path) -> Path:
    return index.with_name(f"{index.name}.new")


def _recover(store: BlobStore) -> Recovered | None:
    """The new file is whole before the damaged one leaves its place."""
    path = store.index_path
    cause = _cause(store)
    if cause is None:
        return None
    fresh = _fresh(path)
    sqlite.remove(fresh)
    source, lost_rows = _fill(fresh, store.backup_path, path)
    with sqlite.opened(fresh) as connection:
        connection.execute("BEGIN")
        found = take_stock(connection, store)
        connection.execute("COMMIT")
    aside = _unused(path)
    is_moved = sqlite.move(path, aside)
    sqlite.put(fresh, path)
    return Recovered(cause, source, aside.name if is_moved else None, found, lost_rows)


def _unused(index: Path) -> Path:
    """Where to set it aside."""
    seconds = int(time.time())
    while (aside := index.with_name(f"{index.name}.damaged-{seconds}")).exists():
        seconds += 1
    return aside


def _cause(store: BlobStore) -> str | None:
    """Why the index has to be made anew. What is not the file's fault (a disk that is away, say) is
    left to `Index.open` to tell. Raises OSError.
    """
    path = store.index_path
    if not path.exists():
        return "it is missing" if store.holds_any() or store.backup_path.exists() else None
    try:
        if (damage := sqlite.damage_of(path)) is not None:
            return damage
        with sqlite.opened(path) as connection:
            is_empty = not sqlite.version_of(connection)
    except sqlite3.Error:
        return None
    if is_empty:
        return "it is empty" if store.holds_any() else None
    return _wrong_with_tables(path)


def _wrong_with_tables(path: Path) -> str | None:
    """A sound file may hold something else, or not all that it should."""
    try:
        _migrate(path)
        with sqlite.opened(path) as connection:
            for table in tables.sorted_tables:
                names = ", ".join(f'"{column.name}"' for column in table.columns)
                connection.execute(f"SELECT {names} FROM {table.name} LIMIT 1")  # noqa: S608 - ours
    except IndexTooNew:
        return None  # refused by `Index.open`
    except DBAPIError as error:
        return str(error.orig) if _is_about_tables(error.orig) else None
    except sqlite3.Error as error:
        return str(error) if _is_about_tables(error) else None
    return None


def _is_about_tables(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR


def _fill(fresh: Path, backup: Path, damaged: Path) -> tuple[str, int]:
    """Makes the new file from the best there is: (what that was, rows lost)."""
    if _is_good(backup):
        sqlite.copy(backup, fresh)
        _migrate(fresh)
        return "backup", 0
    _migrate(fresh)
    try:
        with sqlite.opened(damaged) as old, sqlite.opened(fresh) as new:
            new.execute("BEGIN")
            lost_rows = salvage(old, new)
            new.execute("COMMIT")
            (salvaged,) = new.execute("SELECT count(*) FROM links").fetchone()
    except sqlite3.DatabaseError:
        return "blobs", 0
    return ("damaged file" if salvaged else "blobs"), lost_rows


def _is_good(backup: Path) -> bool:
    try:
        if not backup.exists() or sqlite.damage_of(backup) is not None:
            return False
        with sqlite.opened(backup) as connection:
            return 0 < sqlite.version_of(connection) <= VERSION
    except (OSError, sqlite3.Error):
        return False


def _migrate(path: Path) -> None:
    _migrate_at(create_engine(URL.create("sqlite", database=str(path))))


def _migrate_uri(uri: str) -> None:
    """Raises IndexTooNew, DBAPIError."""
    _migrate_at(create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True)))


def _migrate_at(engine: Engine) -> None:
    try:
        with engine.begin() as connection:
            migrate(connection)
    finally:
        engine.dispose()
