"""The index's database: a file in WAL mode, or its stand-in in memory, and its failures."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any, Self, TypeVar

import structlog
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from mirror.errors import MirrorError, StorageFailed
from mirror.store.schema import VERSION, migrate
from mirror.store.sqlite import InMemory
from mirror.threads import in_thread

# Each with a connection of its own: one changes, others read meanwhile.
_THREADS = 4
# How long one change waits for another program, such as a shell, and for how long the others then
# do not.
BUSY_MILLISECONDS = 1000
LOCKED_SECONDS = 5.0
# What a row holds that nobody here wrote.
_NONSENSE = (MirrorError, TypeError, ValueError)
# An index that fails does so many times a second.
TOLD_EVERY_SECONDS = 60

_log = structlog.get_logger()

T = TypeVar("T")


class Database:
    """A transaction is a function of the connection, and one way to a thread, whatever it asks:
    with a way for each step of SQLite's the event loop did hardly anything else for a blob.

    With the tables of this version, once it is open. `count_error` is told of each failure,
    `doubt` of the first, in a thread.
    """

    def __init__(
        self,
        engine: Engine,
        threads: int,
        count_error: Callable[[], None],
        doubt: Callable[[], None] = lambda: None,
        memory: InMemory | None = None,
    ) -> None:
        self.memory = memory
        self._engine = engine
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="index")
        self._count_error = count_error
        self._doubt = doubt
        self._told_at: float | None = None
        self.has_failed = False
        self._writing = asyncio.Lock()
        self._is_locked_until = -inf

    @classmethod
    async def open(
        cls, path: Path, count_error: Callable[[], None], doubt: Callable[[], None]
    ) -> Self:
        """Creates or migrates the tables. Raises IndexTooNew, StorageFailed."""
        engine = await asyncio.to_thread(_engine_at, path)
        database = cls(engine, _THREADS, count_error, doubt)
        await database._read_or_close(migrate)
        return database

    @classmethod
    async def in_memory(cls, memory: InMemory, count_error: Callable[[], None]) -> Self:
        """`memory` outlives it. Raises IndexTooNew, StorageFailed."""
        database = cls(await asyncio.to_thread(_engine_in, memory), 1, count_error, memory=memory)
        await database._read_or_close(migrate)
        return database

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)

    async def read(self, ask: Callable[[Connection], T]) -> T:
        """What `ask` makes of one transaction, within which rows are to be understood. Raises
        StorageFailed.
        """
        try:
            return await in_thread(self._threads, self._transact, ask)
        except (SQLAlchemyError, *_NONSENSE) as error:
            await self._note_error(error)
            raise StorageFailed(
                f"this mirror's index fails: {type(error).__name__}; its operator should look"
            ) from error

    async def write(self, change: Callable[[Connection], T]) -> T:
        """The same for changes, one after the other, so that they never wait for each other's lock.
        While somebody else holds that, no more than one of them waits for it. Raises StorageFailed.
        """
        async with self._writing:
            if time.monotonic() < self._is_locked_until:
                raise StorageFailed("this mirror's index is locked by another program")
            try:
                return await self.read(change)
            except StorageFailed as failed:
                if _is_locked(failed):
                    self._is_locked_until = time.monotonic() + LOCKED_SECONDS
                raise

    async def check_writable(self) -> None:
        """Full or not; closes a file that can only be read. Raises StorageFailed."""
        await self._read_or_close(_try_to_write)

    async def _read_or_close(self, ask: Callable[[Connection], None]) -> None:
        """Raises StorageFailed, and what else `ask` does."""
        try:
            await self.read(ask)
        except BaseException:
            await self.aclose()
            raise

    def _transact(self, ask: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return ask(connection)

    def _close(self) -> None:
        self._threads.shutdown()
        self._engine.dispose()

    async def _note_error(self, error: Exception) -> None:
        self._count_error()
        if not self.has_failed:
            self.has_failed = True
            await asyncio.to_thread(self._doubt)
        now = time.monotonic()
        if self._told_at is None or now - self._told_at >= TOLD_EVERY_SECONDS:
            self._told_at = now
            cause = getattr(error, "orig", None) or error
            _log.error("the index fails", error=f"{type(cause).__name__}: {cause}"[:200])


def _is_locked(failed: StorageFailed) -> bool:
    cause = getattr(failed.__cause__, "orig", None)
    code = getattr(cause, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _try_to_write(connection: Connection) -> None:
    connection.execute(text("BEGIN IMMEDIATE"))
    # To a file that can only be read, SQLite says no as late as here.
    connection.execute(text(f"PRAGMA user_version = {VERSION}"))
    connection.rollback()


def _engine_at(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)))
    event.listen(engine, "connect", _tune)
    return engine


def _engine_in(memory: InMemory) -> Engine:
    """With one connection: nothing takes long there, and transactions stay apart."""
    return create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(memory.uri, uri=True, check_same_thread=False),
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
    )


def _tune(connection: Any, _record: object) -> None:
    """WAL lets readers go on beside a writer; NORMAL loses at most the last commits in a power cut,
    which cost an upstream question, never a wrong answer.
    """
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        f"busy_timeout = {BUSY_MILLISECONDS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
