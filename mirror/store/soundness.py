"""Whether the index is as a clean end left it, so that a start need not read all of it: that takes
more than a second for a million blobs. All functions block.
"""

from contextlib import suppress

from mirror.store.paths import Paths, log_of


def note(paths: Paths) -> None:
    """Of an index that was closed, and never failed while it was open. Raises OSError."""
    paths.sound.write_text(_state(paths))


def forget(paths: Paths) -> None:
    """It is about to change, or to be looked at. Raises OSError."""
    paths.sound.unlink(missing_ok=True)


def is_noted(paths: Paths) -> bool:
    with suppress(OSError, ValueError):
        return paths.sound.read_text() == _state(paths)
    return False


def _state(paths: Paths) -> str:
    """By which a file is told from what it was; nothing of it may still lie in its log."""
    found = paths.index.stat()
    log = log_of(paths.index)
    log_bytes = log.stat().st_size if log.exists() else 0
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {log_bytes}"
