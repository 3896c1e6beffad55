"""All arrivals: one for each missing digest, whoever asks for it and however many do."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog

from mirror.downloads.arrival import Arrival
from mirror.downloads.passthrough import PassThrough
from mirror.downloads.transfer import Transfer
from mirror.errors import (
    MirrorError,
    ShuttingDown,
    StorageFailed,
    TooBusy,
    WrongBytes,
)
from mirror.manifest import BLOB_TYPE, Descriptor
from mirror.metrics import Metrics
from mirror.names import Digest, Repository
from mirror.store.blobs import BlobStore
from mirror.store.staging import StagedBlob
from mirror.threads import in_thread
from mirror.upstream.client import UpstreamClient

# Each one has connections, buffers and a place in the threads: beyond this, clients come again.
MAX_ARRIVALS = 1000
_RETRY_SECONDS = 5
# For writing and hashing: one more than the cores of a small machine, so that a disk that stalls
# one download does not stall all. Commits wait for the disk by their nature and have their own.
_THREADS = 4
_COMMIT_THREADS = 2

_log = structlog.get_logger()

# Makes room for so many bytes that are still to be written. Raises StorageFailed.
MakeRoom = Callable[[int], Awaitable[None]]
# Told of each blob that was stored, and of the repository it came from.
Stored = Callable[[Repository, Descriptor], Awaitable[None]]


class Downloads:
    """Owns a task per arrival. No request ever does: a client that hangs up ends nothing."""

    def __init__(
        self,
        store: BlobStore,
        clients: Mapping[str, UpstreamClient],
        metrics: Metrics,
        stored: Stored,
        make_room: MakeRoom,
    ) -> None:
        self._store = store
        self._clients = clients
        self._metrics = metrics
        self._stored = stored
        self._make_room = make_room
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="arrivals")
        self._commits = ThreadPoolExecutor(_COMMIT_THREADS, thread_name_prefix="commits")
        self._arrivals: dict[Digest, Arrival] = {}
        self._tasks: dict[asyncio.Task[None], Arrival] = {}
        self.landed = 0

    def find(self, digest: Digest) -> Arrival | None:
        return self._arrivals.get(digest)

    def pass_through(self, repository: Repository, digest: Digest) -> PassThrough:
        """The blob past the disk, for one client."""
        return PassThrough(self._clients[repository.upstream], repository, digest)

    def arriving_bytes(self) -> int:
        """What is on its way in will fill, as far as is known, and is no blob yet."""
        under_way = [each for each in self._arrivals.values() if not each.is_stored]
        return sum(each.present.count() + each.missing_bytes() for each in under_way)

    async def join(
        self, repository: Repository, digest: Digest, expected_bytes: int | None
    ) -> tuple[Arrival, bool]:
        """The blob's arrival, once the upstream has answered, and whether it was under way before.

        `expected_bytes` is its size where a manifest of this repository told it. An arrival that
        fails for the repository which began it is begun anew for this one. Raises MirrorError.
        """
        while True:
            arrival = self._arrivals.get(digest)
            joined = arrival is not None
            if arrival is None:
                arrival = self._begin(repository, digest, expected_bytes)
            try:
                await arrival.wait_announced()
                return arrival, joined
            except MirrorError:
                if arrival.source == repository:
                    raise

    async def aclose(self, grace_seconds: float) -> None:
        """Lets be stored what is whole. Nobody is left who follows the others: they are cancelled,
        and go on from staging when they are asked for again.
        """
        whole = [task for task, arrival in self._tasks.items() if arrival.verified]
        for task in self._tasks.keys() - set(whole):
            task.cancel()
        if whole:
            _, late = await asyncio.wait(whole, timeout=grace_seconds)
            for task in late:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for threads in (self._threads, self._commits):
            await asyncio.to_thread(threads.shutdown)

    def _begin(self, repository: Repository, digest: Digest, expected_bytes: int | None) -> Arrival:
        if len(self._arrivals) >= MAX_ARRIVALS:
            raise TooBusy(
                f"this mirror is downloading {MAX_ARRIVALS} blobs; it takes on no more for now",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )
        arrival = Arrival(digest, repository, StagedBlob(self._store, digest), expected_bytes)
        self._arrivals[digest] = arrival
        task = asyncio.get_running_loop().create_task(
            self._bring(arrival), name=f"arrival {digest}"
        )
        self._tasks[task] = arrival
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return arrival

    async def _bring(self, arrival: Arrival) -> None:
        """The life of one arrival. Its name is free again before anybody hears of a failure."""
        self._metrics.downloads_active.inc()
        error: MirrorError | None = None
        try:
            client = self._clients[arrival.source.upstream]
            await Transfer(arrival, client, self._threads, self._metrics, self._check_room).run()
            size_bytes = await arrival.wait_size()
            await in_thread(self._commits, arrival.staged.commit, size_bytes)
            await self._keep(arrival, size_bytes)
        except MirrorError as failed:
            error = failed
            _log.warning("download failed", digest=str(arrival.digest), error=failed.message)
        except OSError as failed:
            self._store.folder.note_written(False)
            error = StorageFailed(f"this mirror's disk fails: {failed.strerror or failed}")
            _log.error("download failed", digest=str(arrival.digest), error=error.message)
        except Exception:
            error = MirrorError("this mirror failed while it downloaded; its log says more")
            _log.exception("download failed", digest=str(arrival.digest))
        finally:
            await self._end(arrival, error or ShuttingDown("this mirror is shutting down"))

    async def _end(self, arrival: Arrival, error: MirrorError) -> None:
        """Staging is closed before the name is free: the next arrival of this digest goes on there,
        unless what is there is wrong, or on a disk that fails.
        """
        is_of_use = not isinstance(error, WrongBytes | StorageFailed)
        leave = arrival.staged.close if is_of_use else arrival.staged.discard
        try:
            await asyncio.shield(asyncio.wrap_future(self._threads.submit(leave)))
        except OSError as failed:
            _log.error("staging is not left", digest=str(arrival.digest), error=str(failed))
        finally:
            del self._arrivals[arrival.digest]
            if not arrival.verified:
                arrival.fail(error)
            self._metrics.downloads_active.dec()

    async def _check_room(self) -> None:
        """For all that is on its way together. Raises StorageFailed."""
        try:
            await self._make_room(sum(each.missing_bytes() for each in self._arrivals.values()))
        except StorageFailed:
            self._store.folder.note_written(False)
            raise

    async def _keep(self, arrival: Arrival, size_bytes: int) -> None:
        self.landed += 1
        descriptor = Descriptor(arrival.digest, BLOB_TYPE, size_bytes)
        arrival.is_stored = True
        await self._stored(arrival.source, descriptor)
