"""The control socket as a file in the cache's folder. All of it blocks."""

import socket
import stat
from contextlib import suppress
from pathlib import Path

from mirror.control.wire import address_of

# Commands come one by one.
_BACKLOG = 16


def listening(path: Path) -> socket.socket:
    """Only for who runs the mirror, from the first moment on: nobody connects before `listen`. What
    a killed mirror left is replaced: the folder's lock is ours. Raises OSError.
    """
    remove(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with address_of(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def remove(path: Path) -> None:
    """If it is a socket. Raises OSError."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
