"""An index that is missing or damaged is made anew before the mirror serves: from its backup, else
from what can still be read of it; then it is compared with the blobs that are there.

What cannot be recovered costs a question to the upstream, never a download: blobs that no
repository is known to hold are served again once the upstream has said who holds them.
"""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy.exc import DBAPIError

from mirror.errors import StorageFailed
from mirror.store import soundness, sqlite, standin
from mirror.store.blobs import BlobStore
from mirror.store.disk import is_refusal, put
from mirror.store.index import Index
from mirror.store.paths import Paths, new
from mirror.store.salvage import salvage, set_aside
from mirror.store.schema import VERSION, IndexTooNew, migrate_file, tables
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
    """The index, recovered where that is necessary; in memory where the disk takes no writes.
    `close_index` it. One line in the log says what does not work.

    Raises IndexTooNew, StorageFailed, OSError.
    """
    reason = store.folder.refusal
    try:
        await recover(store)
        with suppress(OSError):  # a disk that takes nothing does not change the index either
            await asyncio.to_thread(soundness.forget, store.paths)
        doubt = partial(_doubt, store.paths)
        index = await Index.open(store.paths.index, count_error, doubt)
        if reason is not None:
            await index.check_writable()
        with suppress(OSError):
            await asyncio.to_thread(soundness.note_open, store.paths)
    except (StorageFailed, OSError) as error:
        if not _is_refusal(error, is_writable=reason is None):
            raise
        reason = reason or str(error)
        index = await _in_memory(store, count_error)
    if reason is not None:
        _log.error(
            "the disk takes no writes; what is here is served, the rest comes from the upstream "
            "and is not kept; blobs are stored again once it does",
            path=str(store.paths.root),
            reason=reason,
            index="in memory until the end" if index.memory else "on the disk",
        )
    return index


async def close_index(index: Index, store: BlobStore) -> None:
    """What was held in memory is written down, where the disk takes writes by now."""
    await index.aclose()
    if index.memory is None and not index.has_failed:
        with suppress(OSError):
            await asyncio.to_thread(soundness.note_closed, store.paths)
    if index.memory is not None:
        try:
            await standin.write_back(index.memory, store.folder)
        finally:
            await asyncio.to_thread(index.memory.close)


def _doubt(paths: Paths) -> None:
    """The next start looks at the index, however this process ends."""
    with suppress(OSError):
        soundness.forget(paths)


async def _in_memory(store: BlobStore, count_error: Callable[[], None]) -> Index:
    memory = await asyncio.to_thread(standin.made_of, store)
    try:
        return await Index.in_memory(memory, count_error)
    except BaseException:
        await asyncio.to_thread(memory.close)
        raise


def _is_refusal(error: Exception, *, is_writable: bool) -> bool:
    """By what lies at the bottom of it."""
    cause = error.__cause__ or error
    cause = getattr(cause, "orig", None) or cause
    if isinstance(cause, sqlite3.Error):
        return sqlite.is_refusal(cause, is_writable=is_writable)
    return is_refusal(cause)


def _recover(store: BlobStore) -> Recovered | None:
    """The new file is whole before the damaged one leaves its place."""
    path = store.paths.index
    cause = _cause(store)
    if cause is None:
        return None
    fresh = new(path)
    sqlite.remove(fresh)
    source, lost_rows = _fill(fresh, store.paths.backup, path)
    with sqlite.opened(fresh) as connection:
        connection.execute("BEGIN")
        found = take_stock(connection, store)
        connection.execute("COMMIT")
    aside = set_aside(store.paths)
    put(fresh, path)
    return Recovered(cause, source, aside, found, lost_rows)


def _cause(store: BlobStore) -> str | None:
    """Why the index has to be made anew. What is not the file's fault (a disk that is away, say) is
    left to `Index.open` to tell. Raises OSError.
    """
    path = store.paths.index
    if not path.exists():
        return "it is missing" if store.holds_any() or store.paths.backup.exists() else None
    if not path.is_file():
        return "it is no file"
    try:
        look = sqlite.wrong_with_files if soundness.is_noted(store.paths) else sqlite.damage_of
        if (damage := look(path)) is not None:
            return damage
        with sqlite.opened(path) as connection:
            is_empty = not sqlite.version_of(connection)
    except sqlite3.Error as error:
        return str(error) if sqlite.is_damage(error) else None
    if is_empty:
        return "it is empty" if store.holds_any() else None
    return _wrong_with_tables(path)


def _wrong_with_tables(path: Path) -> str | None:
    """A sound file may hold something else, or not all that it should."""
    try:
        migrate_file(path)
        with sqlite.opened(path) as connection:
            for table in tables.sorted_tables:
                names = ", ".join(f'"{column.name}"' for column in table.columns)
                connection.execute(f"SELECT {names} FROM {table.name} LIMIT 1")  # noqa: S608 - ours
    except IndexTooNew:
        return None  # refused by `Index.open`
    except DBAPIError as error:
        return str(error.orig) if _is_about_the_file(error.orig) else None
    except sqlite3.Error as error:
        return str(error) if _is_about_the_file(error) else None
    return None


def _is_about_the_file(error: BaseException | None) -> bool:
    """Rather than about the moment."""
    if not isinstance(error, sqlite3.Error):
        return False
    return error.sqlite_errorcode == sqlite3.SQLITE_ERROR or sqlite.is_damage(error)


def _fill(fresh: Path, backup: Path, damaged: Path) -> tuple[str, int]:
    """Makes the new file from the best there is: (what that was, rows lost)."""
    if _is_good(backup):
        shutil.copyfile(backup, fresh)
        migrate_file(fresh)
        return "backup", 0
    migrate_file(fresh)
    if not damaged.is_file():
        return "blobs", 0
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
