"""What a disk says when it fails, and what makes it keep a name for good."""

import errno
import os
from pathlib import Path

from mirror.errors import StorageFailed

# What a disk says that is mounted read-only, or full.
_REFUSALS = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT})


def is_refusal(error: BaseException | None) -> bool:
    """Whether the disk takes no writes, rather than fails."""
    return isinstance(error, OSError) and error.errno in _REFUSALS


def storage_failed(error: OSError) -> StorageFailed:
    """What a client is told of a disk that fails."""
    return StorageFailed(f"this mirror's disk fails: {error.strerror}; its operator should look")


def put(whole: Path, to: Path) -> None:
    """Gives a file that is whole its name, for good. Blocking. Raises OSError."""
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    put_synced(whole, to)


def put_synced(synced: Path, to: Path) -> None:
    """The same for a file whose bytes are on the disk already. Blocking. Raises OSError."""
    synced.replace(to)
    descriptor = os.open(to.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
