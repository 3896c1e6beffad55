"""`rm`: an image goes, and what nobody else needs goes with it."""

import asyncio
from dataclasses import dataclass

from mirror.names import Digest, Tag
from mirror.store.removal import remove_blobs
from mirror.threads import unbroken
from mirror.upkeep.cache import Cache
from mirror.upkeep.lines import Lines, Refused, result
from mirror.upkeep.naming import ImageName, not_here
from mirror.upkeep.survey import Image, Survey, survey_to_remove


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to go. `kept` is what the image shares with others, or with what is pinned."""

    name: ImageName
    tags: list[Tag]
    unlinked: set[Digest]
    sizes: dict[Digest, int]
    kept: dict[Digest, int]
    other_names: list[str]


async def remove_image(cache: Cache, name: ImageName) -> Lines:
    """By tag: that tag, and its image where it has no other name. By digest: all its tags.

    Who reads it reads on; what is on its way in arrives. Raises Refused, StorageFailed.
    """
    cache.check_writable()
    async with cache.changing:
        await cache.pins.load()
        root = await cache.root_of(name)
        if root is None:
            raise not_here(name, cache.directory, "`mirror ls` tells what is")
        _check_unpinned(cache, name, root)
        found = await survey_to_remove(cache.store, cache.inventory)
        plan = await asyncio.to_thread(_plan, cache, found, name, root)
        removed = await unbroken(_carry_out(cache, plan))
    yield result(
        image=str(name),
        digest=str(root),
        tags=plan.tags,
        other_names=plan.other_names,
        removed_blobs=len(removed),
        removed_bytes=sum(plan.sizes[digest] for digest in removed),
        kept_blobs=len(plan.kept),
        kept_bytes=sum(plan.kept.values()),
    )


def _check_unpinned(cache: Cache, name: ImageName, root: Digest) -> None:
    """Raises Refused."""
    pinned = cache.pins.names_of(name.repository, root)
    if isinstance(name.reference, Tag) and cache.pins.pinned(name.repository, name.reference):
        pinned = [name.reference]
    if pinned:
        raise Refused(f"{name} is pinned, as {pinned[0]}, and stays; `mirror unpin` it first")


def _plan(cache: Cache, found: Survey, name: ImageName, root: Digest) -> _Plan:
    """Takes long where there are many images. Raises Refused."""

    def is_going(image: Image) -> bool:
        is_by_digest = isinstance(name.reference, Digest) and image.digest == root
        is_it = image.name.reference == name.reference or is_by_digest
        return image.name.repository == name.repository and is_it

    going = [image.name.reference for image in found.images if is_going(image)]
    others = [image for image in found.images if not is_going(image)]
    same_place = [image for image in others if image.name.repository == name.repository]
    pinned = cache.pins.needed
    kept_here = found.needs_of_all(same_place) | pinned
    if isinstance(name.reference, Digest) and root in kept_here:
        raise Refused(f"{name} is a part of another image, which stays")
    kept = found.needs_of_all(others) | pinned
    needed = found.needs(root)
    tags = {reference for reference in [*going, name.reference] if isinstance(reference, Tag)}
    return _Plan(
        name=name,
        tags=sorted(tags),
        unlinked=needed - kept_here,
        sizes=_sizes(found, needed - kept),
        kept=_sizes(found, needed & kept),
        other_names=[str(image.name) for image in same_place if image.digest == root],
    )


def _sizes(found: Survey, digests: set[Digest]) -> dict[Digest, int]:
    """Of those that are stored."""
    return {each: found.blobs[each].size_bytes for each in digests if each in found.blobs}


async def _carry_out(cache: Cache, plan: _Plan) -> list[Digest]:
    """What went: first nobody is led there any more. Raises StorageFailed, OSError."""
    repository = plan.name.repository
    await cache.inventory.forget(repository, plan.tags, plan.unlinked)
    cache.proxy.forget(repository, plan.tags, plan.unlinked, plan.sizes)
    await cache.forgotten()
    removed = await remove_blobs(cache.store, cache.index, cache.usage, plan.sizes)
    cache.proxy.forget(repository, plan.tags, plan.unlinked, removed)
    return removed
