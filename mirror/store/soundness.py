"""Whether the index must be read through at the start, which takes two seconds for a million blobs.

Not if it is as a clean end left it. Nor if only its process was killed: what SQLite wrote is what
the system gives back, in the order in which it was written, as long as the system itself runs. A
power cut is another matter, and so is a file that failed a question. All functions block.
"""

from contextlib import suppress
from pathlib import Path

from mirror.store.paths import Paths, log_of

# Another one each time the system starts.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def note_closed(paths: Paths) -> None:
    """Of an index that never failed while it was open. Raises OSError."""
    paths.sound.write_text(_as_it_is(paths))


def note_open(paths: Paths) -> None:
    """Of an index that was found sound, and will change from now on. Raises OSError."""
    paths.sound.write_text(_while_the_system_runs(paths))


def forget(paths: Paths) -> None:
    """It failed, or is about to be looked at. Raises OSError."""
    paths.sound.unlink(missing_ok=True)


def is_noted(paths: Paths) -> bool:
    with suppress(OSError, ValueError):
        noted = paths.sound.read_text()
        return noted == _as_it_is(paths) or noted == _while_the_system_runs(paths)
    return False


def _as_it_is(paths: Paths) -> str:
    """By which a file is told from what it was; nothing of it may still lie in its log."""
    found = paths.index.stat()
    log = log_of(paths.index)
    log_bytes = log.stat().st_size if log.exists() else 0
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {log_bytes}"


def _while_the_system_runs(paths: Paths) -> str:
    """Of one file, whatever is written to it."""
    return f"{paths.index.stat().st_ino} open since {BOOT_ID.read_text().strip()}"
