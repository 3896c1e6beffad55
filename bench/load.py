"""What all clients have in common: where they ask, what they accept, when they give up."""

import http.client
from contextlib import closing
from pathlib import Path

from bench.content import CONFIG_TYPE, MANIFEST_TYPE

Address = tuple[str, int]

STALL_LIMIT_SECONDS = 60
PIECE_BYTES = 1 << 20
ACCEPT = ", ".join(
    (
        MANIFEST_TYPE,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "*/*",
    )
)


class LoadError(Exception):
    """The server failed under the load: a wrong answer, a closed connection, silence."""


def check(address: Address, path: str, root: Path) -> None:
    """Fetch and compare every byte with the upstream's file, outside of all measuring.

    `root` is the folder of the upstream's files (see content.py). Raises LoadError.
    """
    connection = http.client.HTTPConnection(*address, timeout=STALL_LIMIT_SECONDS)
    with closing(connection), (root / path.lstrip("/")).open("rb") as file:
        try:
            connection.request("GET", path, headers={"Accept": f"{ACCEPT}, {CONFIG_TYPE}"})
            response = connection.getresponse()
            if response.status != 200:
                raise LoadError(f"{path}: answered {response.status}")
            while piece := response.read(PIECE_BYTES):
                if piece != file.read(len(piece)):
                    raise LoadError(f"{path}: the bytes are not the upstream's")
        except (OSError, http.client.HTTPException) as error:
            raise LoadError(f"{path}: {error!r}") from error
        if file.read(1):
            raise LoadError(f"{path}: it ends too early")
