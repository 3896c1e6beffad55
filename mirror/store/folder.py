"""The folder of a cache: held by one process, with a disk that takes writes, or does not."""

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

from mirror.errors import StorageFailed
from mirror.store.disk import is_refusal, storage_failed
from mirror.store.leftovers import Leftovers
from mirror.store.paths import Paths

# What downloads leave free: of the disk, a hundredth at most.
MAX_RESERVE_BYTES = 64 * 1024 * 1024


class FolderInUse(Exception):
    """Another process serves from this folder."""


class Folder:
    """Ours from `open` to `aclose`. Coroutines do their work in a thread.

    `noted` is told after each write whether the disk took it, from any thread.
    """

    def __init__(self, path: Path, noted: Callable[[bool], None]) -> None:
        self.paths = Paths(path)
        self.is_writable = True
        # Why the disk took nothing when the folder was opened.
        self.refusal: str | None = None
        self._noted = noted
        self.leftovers = Leftovers(self.paths)
        self._locks: list[int] = []
        self._is_furnished = False

    async def open(self, *, tidies: bool = True) -> None:
        """Makes the folders, takes the lock, drops what is of no use in staging. A disk that takes
        no writes may be read all the same: `refusal` says why.

        Raises FolderInUse, OSError.
        """
        await asyncio.to_thread(self._open, tidies)

    async def aclose(self) -> None:
        locks, self._locks = self._locks, []
        await asyncio.to_thread(_close_all, locks)

    def note_written(self, is_taken: bool) -> None:
        self.is_writable = is_taken
        self._noted(is_taken)

    async def check_writable(self) -> None:
        """Raises StorageFailed."""
        await asyncio.to_thread(self._check_writable)

    def room_bytes(self, min_free_bytes: int | None = None) -> int:
        """What downloads may fill: all that is free but a reserve, by itself a small one for the
        index. Less than 0 where not even that is free. Blocking. Raises StorageFailed.
        """
        try:
            disk = os.statvfs(self.paths.root)
        except OSError as error:
            raise storage_failed(error) from error
        if min_free_bytes is None:
            min_free_bytes = min(MAX_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 100)
        return disk.f_bavail * disk.f_frsize - min_free_bytes

    def furnish(self) -> None:
        """Makes the folders, once: as soon as the disk takes them. Blocking. Raises OSError."""
        if not self._is_furnished:
            for folder in (self.paths.blobs, self.paths.staging):
                folder.mkdir(parents=True, exist_ok=True)
            self._is_furnished = True

    def _open(self, tidies: bool) -> None:
        try:
            self.furnish()
        except OSError as error:
            if not is_refusal(error) or not self.paths.root.is_dir():
                raise
        self._locks = _locked(self.paths)
        try:
            self._tidy(tidies)
        except OSError:
            _close_all(self._locks)
            self._locks = []
            raise

    def _tidy(self, drops_useless: bool) -> None:
        """As far as the disk takes it. Raises OSError."""
        try:
            self.leftovers.open()
            if drops_useless:
                self.leftovers.drop_useless()
        except OSError as error:
            if not is_refusal(error) and self.paths.staging.exists():
                raise
        try:
            self._check_writable()
        except StorageFailed as error:
            self.refusal = error.message

    def _check_writable(self) -> None:
        try:
            self.furnish()
            with TemporaryFile(dir=self.paths.staging) as file:
                file.write(b"ready?")
        except OSError as error:
            self.note_written(False)
            raise storage_failed(error) from error
        self.note_written(True)


def _locked(paths: Paths) -> list[int]:
    """What is held while the folder is in use: the folder, where its file system has locks for
    folders, and a file in it, unless there is none and the disk takes none.

    Raises FolderInUse, OSError.
    """
    held = [os.open(paths.root, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        _lock(held[0], is_needed=False)
        held += _lock_file(paths.lock)
        for descriptor in held[1:]:
            _lock(descriptor, is_needed=True)
    except BaseException as error:
        _close_all(held)
        if isinstance(error, BlockingIOError):
            raise FolderInUse(str(paths.root)) from None
        raise
    return held


def _lock(descriptor: int, *, is_needed: bool) -> None:
    """Raises BlockingIOError; OSError where it `is_needed`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if is_needed or isinstance(error, BlockingIOError):
            raise


def _lock_file(path: Path) -> list[int]:
    """Opened for reading where the disk takes no writes; none, if it is not there either.

    Raises OSError.
    """
    try:
        return [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)]
    except OSError as error:
        if not is_refusal(error):
            raise
    try:
        return [os.open(path, os.O_RDONLY)]
    except FileNotFoundError:
        return []


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
