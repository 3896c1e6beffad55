"""A copy of the index beside it, from which a damaged one is restored.

Made a minute after the start if the last one is old, every hour, and at the end, where something
has changed since.
"""

import asyncio
import os
import shutil
import sqlite3
import time
from math import inf
from pathlib import Path

import structlog

from mirror.store import sqlite
from mirror.store.blobs import BlobStore
from mirror.store.disk import put
from mirror.store.paths import log_of, new

EVERY_SECONDS = 3600.0
# A process that never lives for an hour makes copies, too.
FIRST_AFTER_SECONDS = 60.0
# The copy takes as much room as the index at most; some is left for what is on its way in.
MIN_FREE_COPIES = 2

_log = structlog.get_logger()


class IndexBackup:
    """Owns one task, from `open` to `aclose`, and makes the last copy when the index is closed."""

    def __init__(self, store: BlobStore, every_seconds: float = EVERY_SECONDS) -> None:
        self._store = store
        self._every_seconds = every_seconds
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="index backup")

    async def aclose(self) -> None:
        """A copy that is being made is finished."""
        self._closing.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def make(self) -> None:
        """Unless nothing has changed, or the disk fails. What goes wrong is logged only."""
        if not self._store.folder.is_writable:
            return
        try:
            await asyncio.to_thread(back_up, self._store.paths.index, self._store.paths.backup)
        except (OSError, sqlite3.Error) as error:
            _log.warning("the index could not be backed up", error=str(error))

    async def _run(self) -> None:
        age_seconds = await asyncio.to_thread(_age_seconds, self._store.paths.backup)
        left_seconds = max(FIRST_AFTER_SECONDS, self._every_seconds - age_seconds)
        left_seconds = min(left_seconds, self._every_seconds)
        while not self._closing.is_set():
            try:
                async with asyncio.timeout(left_seconds):
                    await self._closing.wait()
            except TimeoutError:
                await self.make()
                left_seconds = self._every_seconds


def _age_seconds(backup: Path) -> float:
    """Of the last copy; without end where there is none."""
    try:
        return time.time() - backup.stat().st_mtime
    except OSError:
        return inf


def back_up(index: Path, backup: Path) -> bool:
    """Whether there was anything new. Blocking. Raises OSError, sqlite3.Error."""
    changed_at = _changed_at(index)
    if not index.exists() or _changed_at(backup) == changed_at:
        return False
    free_bytes = shutil.disk_usage(index.parent).free
    if free_bytes < MIN_FREE_COPIES * index.stat().st_size:
        raise OSError("there is not enough room on the disk")
    beside = new(backup)
    beside.unlink(missing_ok=True)
    try:
        with sqlite.opened(index) as connection:
            if not sqlite.version_of(connection):
                return False  # somebody has just emptied it
            connection.execute("VACUUM INTO ?", [str(beside)])
        os.utime(beside, ns=(changed_at, changed_at))
        put(beside, backup)
    finally:
        beside.unlink(missing_ok=True)
    return True


def _changed_at(path: Path) -> int:
    """In nanoseconds; 0 where there is none. Opening alone makes an empty log."""
    found = [each.stat() for each in (path, log_of(path)) if each.exists()]
    return max((each.st_mtime_ns for each in found if each.st_size), default=0)
