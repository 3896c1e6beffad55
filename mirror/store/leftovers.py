"""What an earlier process left in staging: begun downloads are kept for a while, the rest goes."""

import shutil
import time
from pathlib import Path

from mirror.store.paths import data_in, progress_in

# A download that nobody has gone on with for so long is dropped at the next start.
ABANDONED_SECONDS = 7 * 86400


def prune(staging: Path) -> None:
    """To be called while nobody writes there. Blocking. Raises OSError."""
    for folder in staging.glob("*/*"):
        if not folder.is_dir():
            folder.unlink()
        elif not _is_worth_going_on_with(folder):
            shutil.rmtree(folder)
    for path in staging.iterdir():
        if path.is_file():
            path.unlink()


def _is_worth_going_on_with(folder: Path) -> bool:
    """Not so without its data, which was committed a moment before the end."""
    try:
        data_in(folder).stat()
        found = progress_in(folder).stat()
    except FileNotFoundError:
        return False
    return found.st_size > 0 and found.st_mtime > time.time() - ABANDONED_SECONDS
