"""What lies around in the cache's folder, and nobody needs."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mirror.names import Digest
from mirror.store.inventory import Known
from mirror.store.leftovers import BLOCK_BYTES
from mirror.store.paths import Paths
from mirror.upkeep.cache import Cache
from mirror.upkeep.survey import Survey


class Kind(StrEnum):
    """`orphan`: a blob that no image needs and no repository is known to hold. `unknown`: the same,
    and the index does not know it either. `begun`: a download that nobody goes on with. `damaged`:
    a blob that was set aside.
    """

    ORPHAN = "orphan"
    UNKNOWN = "unknown"
    BEGUN = "begun"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Litter:
    """`name` is a digest, or a path below the cache's folder; `since`, on the wall clock, is when
    somebody last wanted it, or wrote it. A blob has its digest; if unknown, also its file's inode.
    """

    kind: Kind
    name: str
    size_bytes: int
    since: float | None = None
    digest: Digest | None = None
    inode: int | None = None


async def find_litter(cache: Cache, found: Survey, before: float) -> list[Litter]:
    """What nobody wanted since then. Raises StorageFailed, OSError."""
    needed = await asyncio.to_thread(found.needs_of_all, found.images) | cache.pins.needed
    unknown = [
        each
        for each in await asyncio.to_thread(_unknown_files, cache, found, before)
        if each.digest not in needed and not is_wanted(cache, each.digest)
    ]
    leftovers = cache.store.leftovers.older(before)
    begun = [Litter(Kind.BEGUN, str(digest), size) for digest, size in leftovers.items()]
    begun += await asyncio.to_thread(_useless, cache)
    damaged = await asyncio.to_thread(lambda: list(_damaged(cache.store.paths, before)))
    # Last, so that what was linked while the rest was looked at is none.
    return [*await _orphans(cache, needed, before), *unknown, *begun, *damaged]


def is_wanted(cache: Cache, digest: Digest | None) -> bool:
    """Just now."""
    if digest is None:
        return False
    return cache.eviction.is_in_use(digest) or cache.proxy.is_arriving(digest)


async def _orphans(cache: Cache, needed: set[Digest], before: float) -> list[Litter]:
    unlinked: dict[Digest, Known] = {}
    async for page in cache.inventory.unlinked(before):
        unlinked |= page
    return [
        Litter(Kind.ORPHAN, str(digest), known.size_bytes, known.used_at, digest)
        for digest, known in unlinked.items()
        if digest not in needed and not is_wanted(cache, digest)
    ]


def _unknown_files(cache: Cache, found: Survey, before: float) -> list[Litter]:
    """Blobs that the index does not know: it forgot them, and a kill left their files."""
    unknown = []
    for digest, size_bytes, stored_at in cache.store.walk():
        if digest not in found.blobs and stored_at < before:
            inode = cache.store.inodes([digest]).get(digest)
            each = Litter(Kind.UNKNOWN, str(digest), size_bytes, stored_at, digest, inode)
            unknown.append(each)
    return unknown


def _useless(cache: Cache) -> list[Litter]:
    """In staging, where nobody serves: the next start would drop it."""
    root = cache.store.paths.root
    return [
        Litter(Kind.BEGUN, str(path.relative_to(root)), _bytes_below(path))
        for path in cache.store.leftovers.useless
    ]


def _damaged(paths: Paths, before: float) -> Iterator[Litter]:
    """By when they were set aside."""
    for path in sorted(paths.damaged.glob("*/*")):
        found = path.lstat()
        if found.st_ctime < before and path.is_file():
            name = str(path.relative_to(paths.root))
            yield Litter(Kind.DAMAGED, name, found.st_size, found.st_ctime)


def _bytes_below(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else iter([path])
    return sum(each.lstat().st_blocks * BLOCK_BYTES for each in files)
