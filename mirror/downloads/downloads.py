"""All arrivals: one for each missing digest, whoever asks for it and however many do."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from mirror.downloads.arrival import Arrival
from mirror.downloads.crowd import Crowd
from mirror.downloads.distrust import Distrust
from mirror.downloads.passthrough import PassThrough
from mirror.downloads.transfer import Transfer
from mirror.downloads.writeback import Writeback
from mirror.errors import MirrorError, ShuttingDown, StorageFailed, WrongBytes
from mirror.manifest import BLOB_TYPE, Descriptor
from mirror.metrics import Metrics
from mirror.names import Digest, Repository
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.staging import StagedBlob
from mirror.threads import in_thread, stand_back, unbroken
from mirror.upstream.client import UpstreamClient

# For writing and hashing: one more than the cores of a small machine, so that a disk that stalls
# one download does not stall all. Commits wait for the disk by their nature and have their own.
_THREADS = 4
_COMMIT_THREADS = 2
# What nobody has asked for leaves room for what somebody may.
AHEAD_ROOM_SHARE = 0.5

_log = structlog.get_logger()

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
        room: Eviction,
    ) -> None:
        self._store = store
        self._clients = clients
        self._metrics = metrics
        self._stored = stored
        self._room = room
        self._threads = ThreadPoolExecutor(
            _THREADS, thread_name_prefix="arrivals", initializer=stand_back
        )
        self._commits = ThreadPoolExecutor(_COMMIT_THREADS, thread_name_prefix="commits")
        self._writeback = Writeback(self._threads, self._commits)
        self.crowd = Crowd({name: each.blob_connections for name, each in clients.items()})
        self._distrust = Distrust()
        self.landed = 0
        self._is_closing = False

    def find(self, digest: Digest) -> Arrival | None:
        return self.crowd.find(digest)

    def pass_through(self, repository: Repository, digest: Digest) -> PassThrough:
        """The blob past the disk, for one client."""
        client = self._clients[repository.upstream]
        return PassThrough(client, repository, digest, self._distrust)

    async def join(
        self, repository: Repository, digest: Digest, expected_bytes: int | None
    ) -> tuple[Arrival, bool]:
        """The blob's arrival, once the upstream has answered, and whether it was under way before.

        `expected_bytes` is its size where a manifest of this repository told it. An arrival that
        fails for the repository which began it is begun anew for this one. Raises MirrorError.
        """
        while True:
            arrival = self.crowd.find(digest)
            joined = arrival is not None
            if arrival is None:
                arrival = self._begin(repository, digest, expected_bytes)
            elif arrival.is_given_up:
                await arrival.wait_ended()
                continue
            else:
                self.crowd.note_asked(arrival)
            arrival.interested += 1
            try:
                await arrival.wait_announced()
                return arrival, joined
            except MirrorError:
                is_own = arrival.source == repository and not (joined and arrival.began_ahead)
                if is_own:
                    raise
            finally:
                arrival.interested -= 1

    def begin_ahead(self, repository: Repository, digest: Digest, expected_bytes: int) -> None:
        """A blob that nobody has asked for yet, unless it is on its way. Its failure is nobody's.

        Not when `shares` has no room for it, nor when the disk fails, nor at the end.
        """
        has_room = self.crowd.shares[repository.upstream].may_begin_ahead()
        may_begin = has_room and not self._is_closing
        is_coming = self.crowd.find(digest) is not None
        if may_begin and not is_coming and self._store.folder.is_writable:
            self._start(repository, digest, expected_bytes, is_asked=False)

    async def make_way(self, arrival: Arrival) -> bool:
        """Ends an arrival that no client has asked for; whether it was one. What came of it is
        kept for the next arrival of its digest.
        """
        if arrival.is_asked:
            return False
        self.crowd.give_up(arrival)
        await arrival.wait_ended()
        return True

    async def aclose(self, grace_seconds: float) -> None:
        """Lets be stored what is whole. Nobody is left who follows the others: they are cancelled,
        and go on from staging when they are asked for again.
        """
        self._is_closing = True
        await asyncio.sleep(0)  # a task that has not begun yet could not tidy up
        tasks = self.crowd.tasks
        whole = [task for arrival, task in tasks.items() if arrival.verified]
        for arrival, task in tasks.items():
            if not arrival.verified:
                task.cancel()
        if whole:
            _, late = await asyncio.wait(whole, timeout=grace_seconds)
            for task in late:
                task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        await self._writeback.aclose()
        for threads in (self._threads, self._commits):
            await asyncio.to_thread(threads.shutdown)

    def _begin(self, repository: Repository, digest: Digest, expected_bytes: int | None) -> Arrival:
        """Raises ShuttingDown, TooBusy."""
        if self._is_closing:
            raise _shutting_down()
        self.crowd.check_place(repository.upstream)
        arrival = self._start(repository, digest, expected_bytes, is_asked=True)
        self.crowd.make_place(repository.upstream)
        return arrival

    def _start(
        self, repository: Repository, digest: Digest, expected_bytes: int | None, *, is_asked: bool
    ) -> Arrival:
        arrival = Arrival(digest, repository, StagedBlob(self._store, digest), expected_bytes)
        arrival.is_asked, arrival.began_ahead = is_asked, not is_asked
        arrival.first_attempt = self._distrust.first_attempt(repository.upstream, digest)
        loop = asyncio.get_running_loop()
        self.crowd.add(arrival, loop.create_task(self._bring(arrival), name=f"arrival {digest}"))
        return arrival

    async def _bring(self, arrival: Arrival) -> None:
        """The life of one arrival. Its name is free again before anybody hears of a failure."""
        self._metrics.downloads_active.inc()
        error: MirrorError | None = None
        try:
            client = self._clients[arrival.source.upstream]
            if not arrival.is_asked:
                await self._check_room(arrival)  # before the upstream is asked for nothing
            shares = self.crowd.shares[client.name]
            check_room = partial(self._check_room, arrival)
            transfer = Transfer(
                arrival,
                client,
                self._threads,
                self._writeback,
                self._metrics,
                shares,
                check_room,
            )
            await transfer.run()
            size_bytes = await arrival.wait_size()
            await self._writeback.let_go(arrival.staged)
            await in_thread(self._commits, arrival.staged.commit, size_bytes)
            await self._keep(arrival, size_bytes)
        except MirrorError as failed:
            error = failed
            if isinstance(failed, WrongBytes):
                upstream = arrival.source.upstream
                self._distrust.note(upstream, arrival.digest, arrival.first_attempt)
            tell = _log.warning if arrival.is_asked else _log.debug
            tell("download failed", digest=str(arrival.digest), error=failed.message)
        except OSError as failed:
            self._store.folder.note_written(False)
            error = StorageFailed(f"this mirror's disk fails: {failed.strerror or failed}")
            _log.error("download failed", digest=str(arrival.digest), error=error.message)
        except Exception:
            error = MirrorError("this mirror failed while it downloaded; its log says more")
            _log.exception("download failed", digest=str(arrival.digest))
        finally:
            await self._end(arrival, error or _shutting_down())

    async def _end(self, arrival: Arrival, error: MirrorError) -> None:
        """Staging is closed before the name is free: the next arrival of this digest goes on there,
        unless what is there is wrong, or on a disk that fails.
        """
        is_of_use = not arrival.is_stored and not isinstance(error, WrongBytes | StorageFailed)
        try:
            await unbroken(self._leave(arrival.staged, is_of_use=is_of_use))
        except OSError as failed:
            _log.error("staging is not left", digest=str(arrival.digest), error=str(failed))
        finally:
            self._metrics.downloads_active.dec()
            self.crowd.remove(arrival)
            if not arrival.verified:
                arrival.fail(error)
            arrival.end()

    async def _leave(self, staged: StagedBlob, *, is_of_use: bool) -> None:
        """Raises OSError."""
        await self._writeback.let_go(staged)
        await in_thread(self._threads, staged.close if is_of_use else staged.discard)

    async def _check_room(self, arrival: Arrival) -> None:
        """For all that is on its way together; what nobody has asked for gives way. Raises
        StorageFailed.
        """
        if not arrival.is_asked:
            await self._check_room_ahead(arrival)
            return
        arrival.is_admitted = True
        try:
            await self._make_way_for_asked()
        except StorageFailed:
            arrival.is_admitted = False
            raise

    async def _check_room_ahead(self, arrival: Arrival) -> None:
        """By what a manifest claims: nothing counts for others before there is room for it."""
        if not arrival.is_admitted:
            own_bytes = arrival.missing_bytes()
            coming_bytes = int((self.crowd.coming_bytes() + own_bytes) / AHEAD_ROOM_SHARE)
            await self._room.check_room(coming_bytes, own_bytes)
        arrival.is_admitted = True

    async def _make_way_for_asked(self) -> None:
        try:
            await self._room.make_room(self.crowd.coming_bytes())
        except StorageFailed:
            if not self.crowd.end_ahead():
                self._store.folder.note_written(False)
                raise
            await self._room.make_room(self.crowd.coming_bytes())

    async def _keep(self, arrival: Arrival, size_bytes: int) -> None:
        self.landed += 1
        descriptor = Descriptor(arrival.digest, BLOB_TYPE, size_bytes)
        arrival.is_stored = True
        await self._stored(arrival.source, descriptor)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("this mirror is shutting down")
