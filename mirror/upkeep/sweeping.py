"""`gc`: what lies around and nobody needs. It shows it, and removes it when it is told to."""

import time
from collections.abc import Sequence

from mirror.names import Digest
from mirror.store.removal import STEP_BLOBS, remove_blobs
from mirror.threads import in_thread, unbroken
from mirror.upkeep.cache import Cache
from mirror.upkeep.lines import Lines, item, result
from mirror.upkeep.litter import Kind, Litter, find_litter, is_wanted
from mirror.upkeep.survey import survey_to_remove


async def sweep(cache: Cache, older_than_seconds: float, *, removes: bool) -> Lines:
    """All that nobody wanted for so long. Raises Refused, StorageFailed, OSError."""
    if removes:
        cache.check_writable()
    before = time.time() - older_than_seconds
    async with cache.changing:
        if cache.index.memory is None:
            await cache.eviction.write_uses()
        await cache.pins.load()
        found = await survey_to_remove(cache.store, cache.inventory)
        litter = await find_litter(cache, found, before)
        if removes:
            litter = await _remove(cache, litter, before)
    for each in litter:
        yield item(kind=each.kind, name=each.name, size_bytes=each.size_bytes, since=each.since)
    yield result(
        removed=removes,
        count=len(litter),
        size_bytes=sum(each.size_bytes for each in litter),
    )


async def _remove(cache: Cache, litter: Sequence[Litter], before: float) -> list[Litter]:
    """What went. There may be much of it: who is told to end does so between two steps, each of
    which is done once it was begun. Raises StorageFailed, OSError.
    """
    of_kind = {kind: [each for each in litter if each.kind is kind] for kind in Kind}
    gone = await _remove_orphans(cache, of_kind[Kind.ORPHAN])
    gone += await _remove_unknown(cache, of_kind[Kind.UNKNOWN])
    await unbroken(cache.store.leftovers.drop_older(before))
    await in_thread(None, cache.store.leftovers.drop_useless)
    for each in of_kind[Kind.DAMAGED]:
        await unbroken(_remove_damaged(cache, each))
    return [*gone, *of_kind[Kind.BEGUN], *of_kind[Kind.DAMAGED]]


async def _remove_orphans(cache: Cache, orphans: Sequence[Litter]) -> list[Litter]:
    by_digest = _unwanted(cache, orphans)
    sizes = {digest: each.size_bytes for digest, each in by_digest.items()}
    removed = await remove_blobs(cache.store, cache.index, cache.usage, sizes)
    return [by_digest[digest] for digest in removed]


async def _remove_unknown(cache: Cache, unknown: Sequence[Litter]) -> list[Litter]:
    """Those that the index does not know by now, either."""
    gone: list[Litter] = []
    for first in range(0, len(unknown), STEP_BLOBS):
        some = _unwanted(cache, unknown[first : first + STEP_BLOBS])
        known = await cache.inventory.known(some)
        going = {digest: each for digest, each in some.items() if digest not in known}
        inodes = {digest: each.inode for digest, each in going.items() if each.inode is not None}
        await unbroken(cache.store.delete(inodes))
        gone += going.values()
    return gone


async def _remove_damaged(cache: Cache, damaged: Litter) -> None:
    path = cache.store.paths.root / damaged.name
    await in_thread(None, lambda: path.unlink(missing_ok=True))
    cache.usage.add_damaged(-1, -damaged.size_bytes)


def _unwanted(cache: Cache, blobs: Sequence[Litter]) -> dict[Digest, Litter]:
    return {
        each.digest: each for each in blobs if each.digest and not is_wanted(cache, each.digest)
    }
