"""What downloads left in staging when they broke off: kept for a while, since the next one of the
same digest goes on from there; dropped first where there is no room.
"""

import asyncio
import os
import shutil
import threading
import time

from mirror.errors import DigestInvalid
from mirror.names import Digest
from mirror.store.paths import Paths, data_in, progress_in

# A download that nobody has gone on with for so long is dropped at the next start.
ABANDONED_SECONDS = 7 * 86400
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are (stat(2))


class Leftovers:
    """Begun downloads that nobody goes on with at present, the oldest first. All that does not say
    otherwise may be called from any thread, and blocks.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._size_bytes: dict[Digest, int] = {}
        # Held while one is dropped: whoever wants to go on with it waits, and finds it gone.
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """On the disk. Does not block."""
        return sum(self._size_bytes.values())

    def open(self) -> None:
        """Removes what is of no use; to be called while nobody writes there. Raises OSError."""
        for folder in sorted(self._paths.staging.glob("*/*"), key=_changed_at):
            digest = _digest_of(folder.parent.name, folder.name)
            if not folder.is_dir():
                folder.unlink()
            elif digest is None or not self._is_worth_going_on_with(digest):
                shutil.rmtree(folder)
            else:
                self.add(digest)
        for path in self._paths.staging.iterdir():
            if path.is_file():
                path.unlink()

    def add(self, digest: Digest) -> None:
        """A download has left it. Raises OSError."""
        found = data_in(self._paths.staged(digest)).stat()
        with self._lock:
            self._size_bytes[digest] = found.st_blocks * _BLOCK_BYTES

    def claim(self, digest: Digest) -> None:
        """A download goes on with it, or begins."""
        with self._lock:
            self._size_bytes.pop(digest, None)

    async def drop(self, wanted_bytes: int) -> int:
        """As many as it takes; how many bytes that freed."""
        return await asyncio.to_thread(self._drop, wanted_bytes)

    def _drop(self, wanted_bytes: int) -> int:
        freed_bytes = 0
        while freed_bytes < wanted_bytes:
            with self._lock:
                if not self._size_bytes:
                    break
                digest = next(iter(self._size_bytes))
                freed_bytes += self._size_bytes.pop(digest)
                shutil.rmtree(self._paths.staged(digest), ignore_errors=True)
        return freed_bytes

    def _is_worth_going_on_with(self, digest: Digest) -> bool:
        """Not so without its data, which was committed a moment before the end."""
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
