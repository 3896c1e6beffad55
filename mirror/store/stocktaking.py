"""The index compared with the blobs that are there. Blocking."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from mirror.errors import MirrorError
from mirror.manifest import MANIFEST_LIMIT_BYTES, blobs_of, media_type_of
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.schema import RECOUNT

_ADD_LINK = (
    "INSERT INTO links (upstream, repository, digest, media_type, size_bytes, proven) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What is known now, and what is not: `unlinked_blobs` wait for their upstream's word."""

    blobs: int
    links: int
    tags: int
    added_blobs: int
    missing_blobs: int
    unlinked_blobs: int


def take_stock(index: sqlite3.Connection, store: BlobStore) -> Found:
    """Adds the blobs that the index does not know, drops those whose file has gone, and reads out
    of the manifests that are tagged or linked what they consist of. Raises sqlite3.Error, OSError.
    """
    index.execute(
        "CREATE TEMP TABLE files (digest TEXT PRIMARY KEY, size_bytes INTEGER, created_at REAL)"
    )
    index.executemany(
        "INSERT INTO files VALUES (?, ?, ?)",
        ((str(digest), size_bytes, at) for digest, size_bytes, at in store.walk()),
    )
    missing = index.execute(
        "DELETE FROM blobs WHERE digest NOT IN (SELECT digest FROM files)"
    ).rowcount
    added = index.execute(
        # Nobody knows whether their bytes are right: the scrub looks at them first.
        "INSERT INTO blobs (digest, size_bytes, created_at, checked_at, used_at) "
        "SELECT digest, size_bytes, created_at, 0, created_at FROM files WHERE digest NOT IN "
        "(SELECT digest FROM blobs)"
    ).rowcount
    index.execute("UPDATE blobs SET pinned = digest IN (SELECT digest FROM needs)")
    _read_manifests(index, store)
    for statement in RECOUNT:  # what was salvaged may have replaced rows, which no trigger sees
        index.execute(statement)
    return Found(
        blobs=_count(index, "blobs"),
        links=_count(index, "links"),
        tags=_count(index, "tags"),
        added_blobs=added,
        missing_blobs=missing,
        unlinked_blobs=_count(index, "blobs WHERE digest NOT IN (SELECT digest FROM links)"),
    )


def _read_manifests(index: sqlite3.Connection, store: BlobStore) -> None:
    """Of each tag's manifest, and of each that a repository is proven to hold. That a tag points to
    it is its upstream's word; what it names is only named.
    """
    candidates = index.execute(
        "SELECT t.upstream, t.repository, t.digest, '' FROM tags t JOIN blobs b USING (digest) "
        "WHERE b.size_bytes <= :limit UNION "
        "SELECT l.upstream, l.repository, l.digest, l.media_type FROM links l "
        "JOIN blobs b USING (digest) WHERE l.proven AND b.size_bytes <= :limit "
        "AND l.media_type LIKE '%+json'",
        {"limit": MANIFEST_LIMIT_BYTES},
    ).fetchall()
    for upstream, repository, text, known_type in candidates:
        body = _small_content(store.paths.blob(Digest.parse(text)), text)
        media_type = media_type_of(body, known_type) if body is not None else None
        if body is None or media_type is None:
            continue
        held = (upstream, repository, text, media_type, len(body), True)
        index.execute(_ADD_LINK, held)
        named = [
            (upstream, repository, str(each.digest), each.media_type, each.size_bytes, False)
            for each in blobs_of(body)
        ]
        index.executemany(_ADD_LINK, named)


def _small_content(path: Path, digest: str) -> bytes | None:
    try:
        body = path.read_bytes()
        return body if Digest.parse(digest).matches(body) else None
    except (OSError, MirrorError):
        return None


def _count(index: sqlite3.Connection, rows: str) -> int:
    return int(index.execute(f"SELECT count(*) FROM {rows}").fetchone()[0])  # noqa: S608 - ours
