"""A cache of any number of blobs, made in bulk: sparse files, and the index rows that the store
would have written for them.
"""

import random
import time
from hashlib import sha256
from pathlib import Path

from sqlalchemy import URL, Connection, create_engine, insert

from mirror.names import Digest
from mirror.retention import worth
from mirror.store.paths import Paths
from mirror.store.schema import blobs, links, migrate_file, tags

UPSTREAM = "docker.io"
BLOBS_OF_A_REPOSITORY = 20
MAX_BLOB_BYTES = 50_000_000
# Of one insert.
ROWS_AT_ONCE = 10_000
# All of the index of a million blobs: each page is written once.
CACHE_KIB = 1024 * 1024
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Row = dict[str, object]


def digest_of(number: int) -> Digest:
    return Digest("sha256", sha256(b"%d" % number).hexdigest())


def stock(root: Path, count: int) -> int:
    """Fills an empty folder; how many bytes its blobs have, as their sizes tell."""
    paths = Paths(root)
    for first in range(256):
        (paths.blobs / "sha256" / f"{first:02x}").mkdir(parents=True)
    paths.staging.mkdir()
    migrate_file(paths.index)
    engine = create_engine(URL.create("sqlite", database=str(paths.index)))
    stocked_bytes = 0
    try:
        with engine.connect() as connection:
            for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
                connection.exec_driver_sql(f"PRAGMA {pragma}")
            connection.commit()
            for first in range(0, count, ROWS_AT_ONCE):
                stocked = [_blob(number, count) for number in range(count)[first:][:ROWS_AT_ONCE]]
                _write(connection, first, stocked)
                stocked_bytes += sum(_make_file(paths, row) for row in stocked)
            connection.commit()
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    finally:
        engine.dispose()
    return stocked_bytes


def _blob(number: int, count: int) -> Row:
    """Of any size, used seldom or often; the first ones came first."""
    draw, now = random.Random(number), time.time()
    size_bytes, uses = int(MAX_BLOB_BYTES ** draw.random()), draw.randint(1, 5)
    came_at = now - count + number
    return {
        "digest": str(digest_of(number)),
        "size_bytes": size_bytes,
        "created_at": came_at,
        "checked_at": now,
        "used_at": came_at,
        "uses": uses,
        "rank": worth(size_bytes, uses),
        "pinned": False,
    }


def _write(connection: Connection, first: int, stocked: list[Row]) -> None:
    """With a tag for every few blobs."""
    linked = [
        {
            **_repository(number),
            "digest": row["digest"],
            "media_type": _LAYER,
            "size_bytes": row["size_bytes"],
            "proven": True,
        }
        for number, row in enumerate(stocked, first)
    ]
    tagged = [
        {
            **_repository(number),
            "tag": "latest",
            "digest": row["digest"],
            "checked_at": row["checked_at"],
        }
        for number, row in enumerate(stocked, first)
        if number % BLOBS_OF_A_REPOSITORY == 0
    ]
    connection.execute(insert(blobs), stocked)
    connection.execute(insert(links), linked)
    connection.execute(insert(tags), tagged)


def _repository(number: int) -> Row:
    name = f"library/app-{number // BLOBS_OF_A_REPOSITORY}"
    return {"upstream": UPSTREAM, "repository": name}


def _make_file(paths: Paths, row: Row) -> int:
    size_bytes = int(str(row["size_bytes"]))
    with paths.blob(Digest.parse(str(row["digest"]))).open("xb") as file:
        file.truncate(size_bytes)
    return size_bytes
