"""How stored blobs go: from the index first, then from the disk, so that a kill in between leaves
a file that nobody asks for, never a blob that is not there. Who reads one reads on.
"""

import asyncio
from collections.abc import Mapping, Sequence

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
    forgotten = set(await index.forget_blobs(digests))
    gone = [digest for digest in digests if digest in forgotten]
    usage.add(-len(gone), -sum(sizes[digest] for digest in gone))
    await store.delete({each: inodes[each] for each in gone if each in inodes})
    return gone
