"""How stored blobs go: from the index first, then from the disk, so that a kill in between leaves
a file that nobody asks for, never a blob that is not there; the next start removes it by its name
(see going.py). Who reads one reads on.
"""

import asyncio
from collections.abc import Mapping, Sequence

from mirror.errors import StorageFailed
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.index import Index
from mirror.store.usage import Usage
from mirror.threads import unbroken

# What was begun is done first, whoever waits for the end of it: about a second on a slow disk.
STEP_BLOBS = 64


async def remove_blobs(
    store: BlobStore, index: Index, usage: Usage, sizes: Mapping[Digest, int]
) -> list[Digest]:
    """Those that went, out of `sizes` in bytes: what is pinned stays, and so does what the index
    does not know. A step that was begun is done, also if its asker is cancelled.

    Raises StorageFailed, OSError.
    """
    removed: list[Digest] = []
    everyone = list(sizes)
    for first in range(0, len(everyone), STEP_BLOBS):
        some = everyone[first : first + STEP_BLOBS]
        removed += await unbroken(_remove(store, index, usage, some, sizes))
    return removed


async def _remove(
    store: BlobStore,
    index: Index,
    usage: Usage,
    digests: Sequence[Digest],
    sizes: Mapping[Digest, int],
) -> list[Digest]:
    inodes = await asyncio.to_thread(store.inodes, digests)
    noted = await asyncio.to_thread(store.going.note, digests)
    try:
        forgotten = set(await index.forget_blobs(digests))
    except StorageFailed:
        await asyncio.to_thread(store.going.drop, noted)
        raise
    gone = [digest for digest in digests if digest in forgotten]
    await store.delete({each: inodes[each] for each in gone if each in inodes})
    # Not before: who looks for room meanwhile would count on what is still there.
    usage.add(-len(gone), -sum(sizes[digest] for digest in gone))
    await asyncio.to_thread(store.going.drop, noted)
    return gone


async def finish_removals(store: BlobStore, index: Index) -> None:
    """What an earlier process was killed at; before anybody is served, who might bring a blob again
    meanwhile. Raises StorageFailed, OSError.
    """
    for noted, digests in await asyncio.to_thread(lambda: list(store.going.left())):
        inodes = await asyncio.to_thread(store.inodes, digests)
        for digest in digests:
            if await index.blob_size(digest) is not None:
                inodes.pop(digest, None)
        await store.delete(inodes)
        await asyncio.to_thread(store.going.drop, noted)
