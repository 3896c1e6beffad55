"""`pin` and `unpin`: images that stay, whatever room is needed for others."""

from mirror.upkeep.cache import Cache
from mirror.upkeep.lines import Lines, Refused, result
from mirror.upkeep.naming import ImageName, not_here


async def pin_image(cache: Cache, name: ImageName) -> Lines:
    """Raises Refused, StorageFailed."""
    cache.check_writable()
    async with cache.changing:
        digest = await cache.root_of(name)  # its manifest must be here to tell what it needs
        if digest is None or await cache.index.blob_size(digest) is None:
            raise not_here(name, cache.directory, "pull it once, then pin it")
        await cache.pins.pin(name.repository, name.reference, digest)
        needed = await cache.pins.needed_by(name.repository, name.reference)
    here = await cache.inventory.known(needed)
    yield result(
        image=str(name),
        digest=str(digest),
        blobs=len(here),
        size_bytes=sum(each.size_bytes for each in here.values()),
        pinned_bytes=(await cache.eviction.note_pinned())[1],
        max_bytes=cache.eviction.max_bytes,
    )


async def unpin_image(cache: Cache, name: ImageName) -> Lines:
    """Raises Refused, StorageFailed."""
    cache.check_writable()
    async with cache.changing:
        was_pinned = await cache.pins.unpin(name.repository, name.reference)
    if not was_pinned:
        raise Refused(f"{name} is not pinned{_other_pins(cache, name)}")
    yield result(
        image=str(name),
        pinned_bytes=(await cache.eviction.note_pinned())[1],
        max_bytes=cache.eviction.max_bytes,
    )


def _other_pins(cache: Cache, name: ImageName) -> str:
    """Under which other names the same is."""
    names = cache.pins.names_in(name.repository)
    return f" by that name; of {name.repository}, these are: {', '.join(names)}" if names else ""
