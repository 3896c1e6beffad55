"""What is here, seen as images: tags and manifests from the index, and what they consist of from
the manifests themselves.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mirror.manifest import Named
from mirror.names import Digest, Repository
from mirror.store.anatomy import ManifestDamaged, needs_of, read_named
from mirror.store.blobs import BlobStore
from mirror.store.inventory import Inventory, Known
from mirror.upkeep.lines import Refused
from mirror.upkeep.naming import ImageName


@dataclass(frozen=True, slots=True)
class Image:
    """A tag, or a manifest that a repository holds without one and not as part of an index."""

    name: ImageName
    digest: Digest


@dataclass
class Survey:
    """`damaged` are manifests of which nobody knows what they need."""

    blobs: dict[Digest, Known] = field(default_factory=dict)
    manifests: dict[Digest, Named] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    damaged: set[Digest] = field(default_factory=set)

    def needs(self, root: Digest) -> set[Digest]:
        """Of the image, be it here or not."""
        return needs_of(root, self.manifests.get)

    def needs_of_all(self, images: Iterable[Image]) -> set[Digest]:
        """May take long: call it from a thread."""
        return set().union(*(self.needs(root) for root in {image.digest for image in images}))

    def stored_bytes(self, digests: Iterable[Digest]) -> int:
        return sum(self.blobs[digest].size_bytes for digest in digests if digest in self.blobs)

    def check_whole(self) -> None:
        """Raises Refused where it is not certain what is needed."""
        if self.damaged:
            raise Refused(
                "nobody knows what other images need while a manifest is damaged, as is "
                f"{min(map(str, self.damaged))}: run `mirror verify`, which sets it aside, and "
                "then this again"
            )


async def survey_to_remove(store: BlobStore, inventory: Inventory) -> Survey:
    """What arrived while the manifests were read, which may take long, is seen as well. Raises
    Refused, StorageFailed.
    """
    before = await survey(store, inventory)
    found = await survey(store, inventory, before.manifests)
    found.check_whole()
    return found


async def survey(
    store: BlobStore, inventory: Inventory, read: Mapping[Digest, Named] | None = None
) -> Survey:
    """Manifests that were `read` are not read again. Raises StorageFailed."""
    found = Survey()
    async for page in inventory.blobs():
        found.blobs |= page
    tagged = [each async for page in inventory.tags() for each in page]
    held = [each async for page in inventory.manifests() for each in page]
    roots = {each.digest for each in tagged} | {digest for _, digest in held}
    await asyncio.to_thread(_read, found, store, roots, read or {})
    found.images = [
        Image(ImageName(each.repository, each.tag), each.digest)
        for each in tagged
        if each.digest in found.blobs
    ]
    # What has come since the blobs were looked at is not here yet.
    known = [(repository, digest) for repository, digest in held if digest in found.blobs]
    await asyncio.to_thread(_add_untagged, found, known)
    return found


def _read(
    found: Survey, store: BlobStore, roots: Iterable[Digest], read: Mapping[Digest, Named]
) -> None:
    """Reads the manifests that are here, and those that they name in turn. Blocking."""
    unread = list(roots)
    while unread:
        digest = unread.pop()
        if digest in found.manifests or digest not in found.blobs:
            continue
        try:
            named = read.get(digest) or read_named(store, digest)
        except ManifestDamaged:
            found.damaged.add(digest)
            continue
        if named is not None:
            found.manifests[digest] = named
            unread += named.children


def _add_untagged(found: Survey, held: Sequence[tuple[Repository, Digest]]) -> None:
    """What stands in an index of the same repository is a part of that."""
    parts: set[tuple[Repository, Digest]] = {
        (image.name.repository, image.digest) for image in found.images
    }
    for repository, digest in [*parts, *held]:
        named = found.manifests.get(digest, Named())
        parts.update((repository, child) for child in named.children)
    found.images += [
        Image(ImageName(repository, digest), digest)
        for repository, digest in held
        if (repository, digest) not in parts
    ]
    found.images.sort(key=lambda image: (str(image.name.repository), str(image.name.reference)))
