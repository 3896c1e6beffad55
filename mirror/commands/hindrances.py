"""What may keep the mirror from opening its cache, or its address."""

from mirror.config import Settings
from mirror.errors import MirrorError
from mirror.store.folder import FolderInUse
from mirror.store.schema import IndexTooNew
from mirror.web.listeners import CannotListen
from mirror.workers.supervisor import NowhereToMeet

HINDRANCES = (FolderInUse, IndexTooNew, CannotListen, NowhereToMeet, MirrorError, OSError)
Hindrance = FolderInUse | IndexTooNew | CannotListen | NowhereToMeet | MirrorError | OSError


def advice(error: Hindrance, settings: Settings) -> str:
    """An operator's mistake gets a sentence that says what to do."""
    folder = settings.storage.path
    if isinstance(error, FolderInUse):
        return (
            f"another mirror uses {folder}, or a command that looks after it; stop that, or set a "
            "different storage.path"
        )
    if isinstance(error, IndexTooNew):
        return (
            f"{folder}: {error}; install the newer version again, or set a different storage.path"
        )
    if isinstance(error, CannotListen):
        host, port = settings.listen
        host = f"[{host}]" if ":" in host else host or "*"
        return f"cannot listen on {host}:{port}: {error}; set a different address under `listen`"
    if isinstance(error, NowhereToMeet):
        return f"the processes cannot meet: {error}; set TMPDIR to a folder that takes a socket"
    if isinstance(error, MirrorError):
        return error.message
    return (
        f"{error.filename or folder}: {error.strerror}; the mirror must be able to write to "
        "storage.path"
    )
