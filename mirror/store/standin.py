"""An index in memory, for a disk that took no writes when the mirror was started: what the file
held, and, at the end, a file again.
"""

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path

import structlog
from sqlalchemy.exc import DBAPIError

from mirror.errors import StorageFailed
from mirror.store import sqlite
from mirror.store.blobs import BlobStore
from mirror.store.folder import Folder
from mirror.store.paths import Paths, new
from mirror.store.salvage import salvage, set_aside
from mirror.store.schema import migrate_memory
from mirror.store.sqlite import InMemory
from mirror.store.stocktaking import take_stock

_log = structlog.get_logger()


def made_of(store: BlobStore) -> InMemory:
    """What the file holds, else its backup, and the blobs that are there. Blocking.

    Raises OSError, IndexTooNew, StorageFailed.
    """
    with suppress(OSError):  # room that a recovery took in vain
        sqlite.remove(new(store.paths.index))
    memory = InMemory()
    try:
        _fill(memory, store)
    except BaseException as error:
        memory.close()
        if isinstance(error, (sqlite3.Error, DBAPIError)):
            raise StorageFailed(
                f"this mirror's index fails: {error}; its operator should look"
            ) from error
        raise
    return memory


async def write_back(memory: InMemory, folder: Folder) -> None:
    """Puts what nobody uses any more in the place of the file, where the disk takes it by now. One
    line in the log says whether it did.
    """
    try:
        await folder.check_writable()
        await asyncio.to_thread(_write, memory.connection, folder.paths)
    except (StorageFailed, OSError, sqlite3.Error) as error:
        _log.error("the index in memory is lost: it could not be written down", error=str(error))
    else:
        _log.info("the index in memory is on the disk again")


def _fill(memory: InMemory, store: BlobStore) -> None:
    is_loaded = any(
        _load(path, memory.connection) for path in (store.paths.index, store.paths.backup)
    )
    migrate_memory(memory.uri)
    memory.connection.execute("BEGIN")
    if not is_loaded:
        _salvage(store.paths.index, memory.connection)
    take_stock(memory.connection, store)
    memory.connection.execute("COMMIT")


def _load(path: Path, into: sqlite3.Connection) -> bool:
    """Whether there was anything to be read. What is not sound leaves nothing behind."""
    try:
        sqlite.load(path, into)
        return sqlite.version_of(into) > 0
    except sqlite3.Error:
        return False


def _salvage(path: Path, into: sqlite3.Connection) -> None:
    """At the end it makes way for what is in memory."""
    with suppress(sqlite3.DatabaseError), sqlite.opened_as_it_is(path) as damaged:
        salvage(damaged, into)


def _write(memory: sqlite3.Connection, paths: Paths) -> None:
    """Beside the old file, which is in its place until the new one is whole."""
    fresh = new(paths.index)
    sqlite.remove(fresh)
    try:
        # Not to where the memory's own files are.
        memory.execute("VACUUM INTO ?", [f"{fresh.absolute().as_uri()}?vfs=unix"])
        if paths.index.exists() and sqlite.damage_of(paths.index) is not None:
            set_aside(paths)
        sqlite.replace(paths.index, fresh)
    finally:
        sqlite.remove(fresh)
