"""That several processes serve from a folder, though the one that holds it may have been killed
and not be back yet: no command takes the folder meanwhile.

The first process holds a lock (flock) on a file, and so does what it forks. All methods block.
"""

import fcntl
import os
from contextlib import suppress

from mirror.store.paths import Paths


def mark_served(paths: Paths) -> None:
    """From now on, until the last of these processes has ended. Where the disk takes no file, or
    knows no locks, a command may come between.
    """
    with suppress(OSError):
        descriptor = os.open(paths.served, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_marked_served(paths: Paths) -> bool:
    try:
        descriptor = os.open(paths.served, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
