"""What downloads left in staging when they broke off: kept for a while, since the next one of the
same digest goes on from there; dropped first where there is no room.
"""

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mirror.errors import DigestInvalid
from mirror.names import Digest
from mirror.store.paths import Paths, data_in, progress_in

# A download that nobody has gone on with for so long is dropped.
ABANDONED_SECONDS = 7 * 86400
BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are (stat(2))


@dataclass(frozen=True, slots=True)
class _Left:
    """`left_at` is wall-clock time, which outlives the process."""

    size_bytes: int
    left_at: float


class Leftovers:
    """Begun downloads that nobody goes on with at present, the oldest first. All that does not say
    otherwise may be called from any thread, and blocks.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._left: dict[Digest, _Left] = {}
        # Of an earlier process; `settle` each once the index knows it.
        self.committed: list[Digest] = []
        # Of no use to anybody; there is none once it was opened to serve.
        self.useless: list[Path] = []
        # Held while one is dropped: whoever wants to go on with it waits, and finds it gone.
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """On the disk. Does not block."""
        return sum(each.size_bytes for each in list(self._left.values()))

    @property
    def count(self) -> int:
        """Does not block."""
        return len(self._left)

    def open(self) -> None:
        """Takes stock; to be called while nobody writes there. Raises OSError."""
        for folder in sorted(self._paths.staging.glob("*/*"), key=_changed_at):
            digest = _digest_of(folder.parent.name, folder.name)
            if digest is None or not folder.is_dir():
                self.useless.append(folder)
            elif self._was_committed(digest):
                self.committed.append(digest)
            elif not self._is_worth_going_on_with(digest):
                self.useless.append(folder)
            else:
                self.add(digest)
        self.useless += [path for path in self._paths.staging.iterdir() if path.is_file()]

    def drop_useless(self) -> None:
        """Raises OSError."""
        while self.useless:
            path = self.useless.pop()
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def older(self, before: float) -> dict[Digest, int]:
        """Those that nobody has gone on with since then: their bytes on the disk."""
        with self._lock:
            return {
                digest: each.size_bytes
                for digest, each in self._left.items()
                if each.left_at < before
            }

    def add(self, digest: Digest) -> None:
        """A download has left it. Raises OSError."""
        found = data_in(self._paths.staged(digest)).stat()
        with self._lock:
            self._left[digest] = _Left(found.st_blocks * BLOCK_BYTES, found.st_mtime)

    def claim(self, digest: Digest) -> None:
        """A download goes on with it, or begins."""
        with self._lock:
            self._left.pop(digest, None)

    async def drop(self, wanted_bytes: int) -> int:
        """As many as it takes; how many bytes that freed."""
        return await asyncio.to_thread(self._drop, wanted_bytes)

    async def drop_abandoned(self) -> None:
        """What nobody will go on with."""
        before = time.time() - ABANDONED_SECONDS
        if any(each.left_at < before for each in self._left.values()):
            await self.drop_older(before)

    async def drop_older(self, before: float) -> int:
        """What nobody has gone on with since then; how many bytes that freed."""
        return await asyncio.to_thread(self._drop_older, before)

    def _drop(self, wanted_bytes: int) -> int:
        freed_bytes = 0
        while freed_bytes < wanted_bytes and self._left:
            freed_bytes += self._drop_one(lambda: next(iter(self._left), None))
        return freed_bytes

    def _drop_older(self, before: float) -> int:
        def older() -> Digest | None:
            found = (digest for digest, each in self._left.items() if each.left_at < before)
            return next(found, None)

        freed_bytes = 0
        while any(each.left_at < before for each in self._left.copy().values()):
            freed_bytes += self._drop_one(older)
        return freed_bytes

    def _drop_one(self, choose: Callable[[], Digest | None]) -> int:
        with self._lock:
            digest = choose()
            if digest is None:
                return 0
            shutil.rmtree(self._paths.staged(digest), ignore_errors=True)
            return self._left.pop(digest).size_bytes

    def settle(self, digest: Digest) -> None:
        """The index knows what was committed."""
        shutil.rmtree(self._paths.staged(digest), ignore_errors=True)

    def _was_committed(self, digest: Digest) -> bool:
        """A moment before the end, so that the index may not know it."""
        is_moved = not data_in(self._paths.staged(digest)).exists()
        return is_moved and self._paths.blob(digest).is_file()

    def _is_worth_going_on_with(self, digest: Digest) -> bool:
        folder = self._paths.staged(digest)
        try:
            data_in(folder).stat()
            found = progress_in(folder).stat()
        except FileNotFoundError:
            return False
        return found.st_size > 0 and found.st_mtime > time.time() - ABANDONED_SECONDS


def _changed_at(path: "os.PathLike[str]") -> float:
    return os.stat(path).st_mtime


def _digest_of(algorithm: str, name: str) -> Digest | None:
    try:
        return Digest.parse(f"{algorithm}:{name}")
    except DigestInvalid:
        return None
