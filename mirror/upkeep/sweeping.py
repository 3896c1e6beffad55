"""`gc`: what lies around and nobody needs. It shows it, and removes it when it is told to."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mirror.names import Digest
from mirror.store.inventory import Known
from mirror.store.removal import remove_blobs
from mirror.threads import unbroken
from mirror.upkeep.cache import Cache
from mirror.upkeep.lines import Lines, item, result
from mirror.upkeep.survey import Survey, survey


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
class _Litter:
    """`since` is when somebody last wanted it, or wrote it."""

    kind: Kind
    name: str
    size_bytes: int
    since: float | None = None
    digest: Digest | None = None
    inode: int | None = None


async def sweep(cache: Cache, older_than_seconds: float, *, removes: bool) -> Lines:
    """All that nobody wanted for so long. Raises Refused, StorageFailed, OSError."""
    if removes:
        cache.check_writable()
    before = time.time() - older_than_seconds
    async with cache.changing:
        if cache.index.memory is None:
            await cache.eviction.write_uses()
        await cache.pins.load()
        found = await survey(cache.store, cache.inventory)
        found.check_whole()
        litter = await _litter(cache, found, before)
        if removes:
            litter = await unbroken(_remove(cache, litter, before))
    for each in litter:
        yield item(kind=each.kind, name=each.name, size_bytes=each.size_bytes, since=each.since)
    yield result(
        removed=removes,
        count=len(litter),
        size_bytes=sum(each.size_bytes for each in litter),
    )


async def _litter(cache: Cache, found: Survey, before: float) -> list[_Litter]:
    needed = await asyncio.to_thread(found.needs_of_all, found.images) | cache.pins.needed
    orphans: dict[Digest, Known] = {}
    async for page in cache.inventory.unlinked(before):
        orphans |= page
    litter = [
        _Litter(Kind.ORPHAN, str(digest), known.size_bytes, known.used_at, digest)
        for digest, known in orphans.items()
        if digest not in needed and not _is_wanted(cache, digest)
    ]
    litter += [
        each
        for each in await asyncio.to_thread(_unknown_files, cache, found, before)
        if each.digest not in needed and not _is_wanted(cache, each.digest)
    ]
    leftovers = cache.store.leftovers.older(before)
    litter += [_Litter(Kind.BEGUN, str(digest), size) for digest, size in leftovers.items()]
    litter += await asyncio.to_thread(_useless, cache)
    return litter + await asyncio.to_thread(lambda: list(_damaged(cache, before)))


def _is_wanted(cache: Cache, digest: Digest | None) -> bool:
    """Just now."""
    if digest is None:
        return False
    return cache.eviction.is_in_use(digest) or cache.proxy.is_arriving(digest)


def _unknown_files(cache: Cache, found: Survey, before: float) -> list[_Litter]:
    """Blobs that the index does not know: it forgot them, and a kill left their files."""
    unknown = []
    for digest, size_bytes, stored_at in cache.store.walk():
        if digest not in found.blobs and stored_at < before:
            inode = cache.store.inodes([digest]).get(digest)
            each = _Litter(Kind.UNKNOWN, str(digest), size_bytes, stored_at, digest, inode)
            unknown.append(each)
    return unknown


def _useless(cache: Cache) -> list[_Litter]:
    """In staging, where nobody serves: the next start would drop it."""
    return [
        _Litter(Kind.BEGUN, f"staging/{path.name}", _bytes_below(path))
        for path in cache.store.leftovers.useless
    ]


def _damaged(cache: Cache, before: float) -> Iterator[_Litter]:
    """By when they were set aside."""
    for path in sorted(cache.store.paths.damaged.glob("*/*")):
        found = path.lstat()
        if found.st_ctime < before and path.is_file():
            name = f"damaged/{path.parent.name}/{path.name}"
            yield _Litter(Kind.DAMAGED, name, found.st_size, found.st_ctime)


def _bytes_below(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else iter([path])
    return sum(each.lstat().st_blocks * 512 for each in files)


async def _remove(cache: Cache, litter: list[_Litter], before: float) -> list[_Litter]:
    """What went. Raises StorageFailed, OSError."""
    orphans = {
        each.digest: each
        for each in litter
        if each.kind is Kind.ORPHAN and each.digest and not _is_wanted(cache, each.digest)
    }
    sizes = {digest: each.size_bytes for digest, each in orphans.items()}
    removed = await remove_blobs(cache.store, cache.index, cache.usage, sizes)
    unknown = [
        each for each in litter if each.kind is Kind.UNKNOWN and not _is_wanted(cache, each.digest)
    ]
    known_by_now = await cache.inventory.known(each.digest for each in unknown if each.digest)
    unknown = [each for each in unknown if each.digest not in known_by_now]
    await cache.store.delete(
        {each.digest: each.inode for each in unknown if each.digest and each.inode is not None}
    )
    await cache.store.leftovers.drop_older(before)
    await asyncio.to_thread(cache.store.leftovers.drop_useless)
    damaged = [each for each in litter if each.kind is Kind.DAMAGED]
    await asyncio.to_thread(_unlink, cache.store.paths.root, damaged)
    begun = [each for each in litter if each.kind is Kind.BEGUN]
    return [*(orphans[digest] for digest in removed), *unknown, *begun, *damaged]


def _unlink(root: Path, files: Iterable[_Litter]) -> None:
    for each in files:
        (root / each.name).unlink(missing_ok=True)
