"""What images consist of, as the manifests that are here tell it. All of it blocks."""

from collections.abc import Callable

from mirror.errors import StorageFailed
from mirror.manifest import MANIFEST_LIMIT_BYTES, Named, named_in
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.disk import storage_failed

# Of the manifest, if it is here; raises StorageFailed.
AskNamed = Callable[[Digest], Named | None]


class ManifestDamaged(StorageFailed):
    """What it names is not known, so that nothing may go that it might need."""


def read_named(store: BlobStore, digest: Digest) -> Named | None:
    """None: it is not here. Raises ManifestDamaged, StorageFailed."""
    try:
        with store.paths.blob(digest).open("rb") as file:
            body = file.read(MANIFEST_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_failed(error) from error
    if len(body) > MANIFEST_LIMIT_BYTES:
        return Named()  # whoever says that it is a manifest
    if not digest.matches(body):
        raise ManifestDamaged(f"{digest} is damaged; `mirror verify` sets it aside")
    return named_in(body)


def needs_of(root: Digest, named: AskNamed) -> set[Digest]:
    """All that the image consists of, be it here or not. Raises what `named` raises."""
    found, unread = {root}, [root]
    while unread:
        parts = named(unread.pop())
        if parts is not None:
            unread += [child for child in parts.children if child not in found]
            found.update(parts.digests)
    return found
