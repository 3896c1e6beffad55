"""In what order blobs go: the statements of the index about their uses and ranks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, bindparam, select, tuple_, update
from sqlalchemy.engine import Row

from mirror.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_LIMIT_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
)
from mirror.names import Digest
from mirror.retention import worth
from mirror.store.schema import allowances, blobs, links

# Of one statement; see links.py.
MAX_DIGESTS_ASKED = 1_000
MANIFESTS = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)
# An account that tells no limit any more, as after a login, is without one.
LIMITED_FOR_SECONDS = 7 * 86400
# As the partial index says it; in other words SQLite would not see that it may be used.
MAY_GO = blobs.c.pinned.is_(False)
_ORDER = (blobs.c.rank, blobs.c.used_at, blobs.c.digest)


@dataclass(slots=True)
class Uses:
    """Of one blob since they were last written down; `last_at` is wall-clock time."""

    count: int = 0
    last_at: float = 0.0

    def add(self, count: int, last_at: float) -> None:
        self.count += count
        self.last_at = max(self.last_at, last_at)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A blob that may go; `used_at` is wall-clock time."""

    digest: Digest
    size_bytes: int
    rank: float
    used_at: float


def ask_least_worth(limit: int, after: Ranked | None) -> Select[Any]:
    """Rows for `ranked_of`, the next to go first: of equal ranks, as all have that were used since
    the last one went, the longest unused. It costs the same among few and among many.
    """
    query = select(blobs.c.digest, blobs.c.size_bytes, blobs.c.rank, blobs.c.used_at)
    query = query.where(MAY_GO).order_by(*_ORDER).limit(limit)
    if after is not None:
        query = query.where(tuple_(*_ORDER) > (after.rank, after.used_at, str(after.digest)))
    return query


def ranked_of(rows: Iterable[Row[Any]]) -> list[Ranked]:
    return [Ranked(Digest.parse(row.digest), row.size_bytes, row.rank, row.used_at) for row in rows]


def ask_uses(digests: Sequence[Digest], now: float) -> Select[Any]:
    """Rows for `used_more`; at most MAX_DIGESTS_ASKED."""
    among = blobs.c.digest.in_([str(digest) for digest in digests])
    known = blobs.c.digest, blobs.c.size_bytes, blobs.c.uses, blobs.c.rank
    return select(*known, _costs_pull(now).label("costs_pull")).where(among)


def _costs_pull(now: float) -> ColumnElement[bool]:
    """A manifest that came from an upstream which told a limit lately. What merely says that it is
    one, as the layers of who wants them to stay might, is not proven, or too large.
    """
    limited = select(allowances.c.upstream).where(
        allowances.c.limit.is_not(None), allowances.c.heard_at > now - LIMITED_FOR_SECONDS
    )
    is_manifest = (
        links.c.digest == blobs.c.digest,
        links.c.proven.is_(True),
        links.c.media_type.in_(MANIFESTS),
        links.c.upstream.in_(limited),
        blobs.c.size_bytes <= MANIFEST_LIMIT_BYTES,
    )
    return select(links.c.digest).where(*is_manifest).exists()


def used_more(
    rows: Iterable[Row[Any]], uses: Mapping[Digest, Uses], floor: float
) -> list[dict[str, object]]:
    """Values for `note_used`."""
    used = []
    for row in rows:
        new = uses[Digest.parse(row.digest)]
        count = row.uses + new.count
        rank = floor + worth(row.size_bytes, count, costs_pull=row.costs_pull)
        rank = max(row.rank, rank)
        used.append({"of": row.digest, "uses": count, "rank": rank, "used_at": new.last_at})
    return used


def note_used() -> Update:
    return update(blobs).where(blobs.c.digest == bindparam("of"))
