"""`verify`: all that is here is read again, and what is wrong is set aside, as the scrub does it.
Then it may be fetched again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from math import inf

from mirror.errors import MirrorError, StorageFailed
from mirror.names import Digest
from mirror.store.inspection import Finding
from mirror.store.inventory import PAGE_ROWS
from mirror.upkeep.cache import Cache
from mirror.upkeep.lines import Line, Lines, item, progress, result

PROGRESS_EVERY_SECONDS = 0.2
# A base layer is in many.
MAX_HOLDERS_TOLD = 10
_WRONG = (Finding.DAMAGED, Finding.MISSING)
_UNCERTAIN = (Finding.UNREADABLE, Finding.STUCK)


@dataclass
class _Tally:
    """`all_blobs` and `all_bytes` as of the start; `unsettled` could not be read, or set aside."""

    all_blobs: int
    all_bytes: int
    checked_blobs: int = 0
    checked_bytes: int = 0
    wrong: int = 0
    unsettled: int = 0
    refetched: int = 0


async def verify(cache: Cache, bytes_per_second: int | None, *, refetches: bool) -> Lines:
    """An item for each blob that is wrong, and for each that was fetched again, or could not be.
    What is right and the index has forgotten, it knows again: it counts, and may make room.

    Raises StorageFailed.
    """
    tally = _Tally(cache.usage.blobs, cache.usage.size_bytes)
    wrong: list[Digest] = []
    async for blobs, is_known in _everything(cache):
        right: list[Digest] = []
        for digest, size_bytes in blobs.items():
            inspecting = asyncio.ensure_future(
                cache.inspection.inspect(digest, bytes_per_second or inf)
            )
            async with aclosing(_while_running(inspecting, tally)) as lines:
                async for line in lines:
                    yield line
            finding = inspecting.result()
            tally.checked_blobs += 1
            tally.checked_bytes += size_bytes
            if finding is Finding.RIGHT:
                right.append(digest)
                if not is_known:
                    await cache.proxy.note_found(digest, size_bytes)
            elif finding is not Finding.GONE:
                wrong += [digest] if finding in _WRONG else []
                tally.wrong += finding in _WRONG
                tally.unsettled += finding in _UNCERTAIN
                yield await _told(cache, digest, finding, size_bytes)
        with suppress(StorageFailed):  # the scrub will look once more, then
            await cache.index.note_checked(right, time.time())
    if refetches:
        for digest in wrong:
            yield await _refetch(cache, digest, tally)
    yield result(**asdict(tally))


async def _everything(cache: Cache) -> AsyncIterator[tuple[dict[Digest, int], bool]]:
    """With sizes in bytes: what the index knows, and then files that it does not."""
    async for page in cache.inventory.blobs():
        yield {digest: known.size_bytes for digest, known in page.items()}, True
    files = await asyncio.to_thread(_walk, cache)
    while (batch := await asyncio.to_thread(next, files, None)) is not None:
        known = await cache.inventory.known(batch)
        yield {digest: size for digest, size in batch.items() if digest not in known}, False


def _walk(cache: Cache) -> Iterator[dict[Digest, int]]:
    files = cache.store.walk()
    while some := {digest: size_bytes for digest, size_bytes, _ in islice(files, PAGE_ROWS)}:
        yield some


async def _while_running(
    task: "asyncio.Future[Finding]", tally: _Tally
) -> AsyncGenerator[Line, None]:
    """How far it is, now and then; the task ends with its asker."""
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=PROGRESS_EVERY_SECONDS)
            if done:
                return
            yield progress(**asdict(tally))
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _told(cache: Cache, digest: Digest, finding: Finding, size_bytes: int) -> Line:
    holders = await cache.inventory.holders(digest)
    return item(
        digest=str(digest),
        finding=finding,
        size_bytes=size_bytes,
        repositories=[str(repository) for repository, _ in holders[:MAX_HOLDERS_TOLD]],
    )


async def _refetch(cache: Cache, digest: Digest, tally: _Tally) -> Line:
    """From whichever upstream is proven to hold it."""
    reason = "no repository is known to hold it"
    for repository, link in await cache.inventory.holders(digest):
        try:
            if await cache.proxy.refetch(repository, link.descriptor):
                tally.refetched += 1
                return item(digest=str(digest), finding="refetched", repositories=[str(repository)])
            reason = "it did not arrive whole"
        except MirrorError as error:
            reason = error.message
    return item(digest=str(digest), finding="not refetched", reason=reason)
