"""`ls`: the images that are here."""

import asyncio
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from mirror.errors import StorageFailed
from mirror.manifest import Named
from mirror.names import Digest, Tag
from mirror.upkeep.cache import Cache
from mirror.upkeep.lines import Lines, item, result
from mirror.upkeep.survey import Image, Survey, survey

_SHORTENED = ("docker.io/library/", "docker.io/")


async def list_images(cache: Cache, pattern: str | None) -> Lines:
    """An item for each image whose name matches, and what all of it takes. Raises StorageFailed."""
    with suppress(StorageFailed):  # then those of half a minute ago
        await cache.eviction.write_uses()
    found = await survey(cache.store, cache.inventory)
    images = [image for image in found.images if is_named_so(image, pattern)]
    rows, listed = await asyncio.to_thread(_rows, cache, found, images)
    for row in rows:
        yield item(**row)
    yield result(
        images=len(rows),
        images_bytes=found.stored_bytes(listed),
        blobs=cache.usage.blobs,
        blobs_bytes=cache.usage.size_bytes,
        staging_bytes=cache.store.leftovers.size_bytes,
        max_bytes=cache.eviction.max_bytes,
    )


def is_named_so(image: Image, pattern: str | None) -> bool:
    """`*` and `?` as in a shell, for the whole name; without them, for any part of it."""
    if pattern is None:
        return True
    name = str(image.name)
    if not set(pattern) & set("*?["):
        return pattern in name
    names = [name, *(name.removeprefix(prefix) for prefix in _SHORTENED)]
    return any(fnmatchcase(each, pattern) for each in names)


def _rows(
    cache: Cache, found: Survey, images: list[Image]
) -> tuple[list[dict[str, Any]], set[Digest]]:
    """And all that they need. Takes long where there are many."""
    rows, listed = [], set[Digest]()
    for image in images:
        needed = found.needs(image.digest)
        listed |= needed
        rows.append(_row(cache, found, image, needed))
    return rows, listed


def _row(cache: Cache, found: Survey, image: Image, needed: set[Digest]) -> dict[str, Any]:
    """Its last use is that of its manifests: layers are also other images'."""
    here = needed & found.blobs.keys()
    manifests = [found.blobs[each] for each in here if each in found.manifests]
    root = found.blobs[image.digest]
    named = found.manifests.get(image.digest, Named())
    platforms = named.platforms or (image.digest,)
    reference = image.name.reference
    return {
        "image": str(image.name),
        "upstream": image.name.repository.upstream,
        "repository": image.name.repository.name,
        "tag": str(reference) if isinstance(reference, Tag) else None,
        "digest": str(image.digest),
        "platforms": len(platforms),
        "platforms_here": sum(each in found.manifests for each in platforms),
        "blobs": len(here),
        "size_bytes": found.stored_bytes(here),
        "used_at": round(max((each.used_at for each in manifests), default=root.used_at)),
        "uses": root.uses,
        "pinned": bool(cache.pins.names_of(image.name.repository, image.digest)),
    }
