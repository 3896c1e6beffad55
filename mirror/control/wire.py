"""What goes over the control socket: HTTP, one command a request, JSON both ways.

    POST /1/<command>          the arguments, an object
    200, application/x-ndjson  the command's lines (see upkeep/lines.py), as they come; an empty
                               line where nothing came for a while; the last one is a result,
                               or {"error": {"message": "…"}}
    4xx                        {"error": …}, alone

The path begins with the version of all this. Each answer names the mirror's own in
`Mirror-Version`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROTOCOL = "1"
VERSION_HEADER = "Mirror-Version"
BEAT_SECONDS = 5.0
# Of sun_path, without the zero at its end (unix(7)).
MAX_ADDRESS_BYTES = 107


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Where to bind or connect for a socket with this path: by way of its folder, opened, where the
    path is longer than an address may be. Blocking. Raises OSError.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
