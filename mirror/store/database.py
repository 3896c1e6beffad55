"""The index's database: a file in WAL mode, or its stand-in in memory, and its failures."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine
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
from mirror.threads import in_thread, while_wanted

# What is looked up by its key waits for its like alone: what reads many rows, and what is changed,
# have a thread each.
_LOOKUP_THREADS = 4
_THREADS = _LOOKUP_THREADS + 2
# For one of them. On a disk that hangs none comes back, and the upstream has to be asked.
LOOKUP_WAIT_SECONDS = 10.0
SCAN_WAIT_SECONDS = 30.0
# How long one change waits for another program, such as a shell, and for how long the others then
# do not.
BUSY_MILLISECONDS = 1000
LOCKED_SECONDS = 5.0
# What a row holds that nobody here wrote.
_NONSENSE = (MirrorError, OverflowError, TypeError, ValueError)
# An index that fails does so many times a second.
TOLD_EVERY_SECONDS = 60

_log = structlog.get_logger()

T = TypeVar("T")


class Database:
    """A transaction is a function of the connection: one hop to a thread, however many steps it
    takes there.

    With the tables of this version, once it is open. `count_error` is told of each failure,
    `doubt` of the first, in a thread.
    """

    def __init__(
        self,
        engine: Engine,
        count_error: Callable[[], None],
        doubt: Callable[[], None] = lambda: None,
        memory: InMemory | None = None,
    ) -> None:
        self.memory = memory
        self._engine = engine
        self._lookups = _threads(1 if memory else _LOOKUP_THREADS)
        self._scans = self._lookups if memory else _threads(1)
        self._changes = self._lookups if memory else _threads(1)
        self._count_error = count_error
        self._doubt = doubt
        self._told_at: float | None = None
        self.has_failed = False
        self._is_closed = False
        self._writing = asyncio.Lock()
        self._is_locked_until = -inf

    @classmethod
    async def open(
        cls, path: Path, count_error: Callable[[], None], doubt: Callable[[], None]
    ) -> Self:
        """Creates or migrates the tables. Raises IndexTooNew, StorageFailed."""
        engine = await asyncio.to_thread(_engine_at, path)
        database = cls(engine, count_error, doubt)
        await database._change_or_close(migrate)
        return database

    @classmethod
    async def in_memory(cls, memory: InMemory, count_error: Callable[[], None]) -> Self:
        """`memory` outlives it. Raises IndexTooNew, StorageFailed."""
        engine = await asyncio.to_thread(_engine_in, memory)
        database = cls(engine, count_error, memory=memory)
        await database._change_or_close(migrate)
        return database

    async def aclose(self) -> None:
        """What waits for a thread is answered no more."""
        self._is_closed = True
        await asyncio.to_thread(self._close)

    async def read(self, ask: Callable[[Connection], T]) -> T:
        """What `ask` makes of one transaction, within which rows are to be understood: some few,
        found by a key. Raises StorageFailed.
        """
        return await self._answered(
            while_wanted(self._lookups, LOOKUP_WAIT_SECONDS, self._transact, ask)
        )

    async def scan(self, ask: Callable[[Connection], T]) -> T:
        """The same for many rows, one such question after the other. Raises StorageFailed."""
        return await self._answered(
            while_wanted(self._scans, SCAN_WAIT_SECONDS, self._transact, ask)
        )

    async def write(self, change: Callable[[Connection], T]) -> T:
        """The same for changes, one after the other, so that they never wait for each other's lock:
        over before this returns, also when cancelled. While another program holds the lock, no more
        than one of them waits for it. Raises StorageFailed.
        """
        async with self._writing:
            if time.monotonic() < self._is_locked_until:
                raise StorageFailed("this mirror's index is locked by another program")
            try:
                return await self._answered(in_thread(self._changes, self._transact, change))
            except StorageFailed as failed:
                if _is_locked(failed):
                    self._is_locked_until = time.monotonic() + LOCKED_SECONDS
                raise

    async def check_writable(self) -> None:
        """Full or not; closes a file that can only be read. Raises StorageFailed."""
        await self._change_or_close(_try_to_write)

    async def _change_or_close(self, change: Callable[[Connection], None]) -> None:
        """Raises StorageFailed, and what else `change` does."""
        try:
            await self.write(change)
        except BaseException:
            await self.aclose()
            raise

    async def _answered(self, question: Coroutine[Any, Any, T]) -> T:
        """Raises StorageFailed."""
        if self._is_closed:
            question.close()
            raise _closed()
        try:
            return await question
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _closed() from None  # it waited for a thread
        except TimeoutError as error:
            self._tell(error)
            raise StorageFailed("this mirror's index does not answer") from error
        except (SQLAlchemyError, *_NONSENSE) as error:
            if not self.has_failed:
                self.has_failed = True
                await asyncio.to_thread(self._doubt)
            self._tell(error)
            raise StorageFailed(
                f"this mirror's index fails: {type(error).__name__}; its operator should look"
            ) from error

    def _transact(self, ask: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return ask(connection)

    def _close(self) -> None:
        for threads in (self._lookups, self._scans, self._changes):
            threads.shutdown(cancel_futures=True)
        self._engine.dispose()

    def _tell(self, error: Exception) -> None:
        self._count_error()
        now = time.monotonic()
        if self._told_at is None or now - self._told_at >= TOLD_EVERY_SECONDS:
            self._told_at = now
            cause = getattr(error, "orig", None) or error
            _log.error("the index fails", error=f"{type(cause).__name__}: {cause}"[:200])


def _closed() -> StorageFailed:
    return StorageFailed("this mirror's index is closed")


def _is_locked(failed: StorageFailed) -> bool:
    cause = getattr(failed.__cause__, "orig", None)
    code = getattr(cause, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="index")


def _try_to_write(connection: Connection) -> None:
    connection.execute(text("BEGIN IMMEDIATE"))
    # To a file that can only be read, SQLite says no as late as here.
    connection.execute(text(f"PRAGMA user_version = {VERSION}"))
    connection.rollback()


def _engine_at(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)), pool_size=_THREADS)
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
