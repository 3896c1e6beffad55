"""Arrivals that end while something else happens: each gives back what it had, once."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from mirror.downloads.arrival import Arrival
from mirror.downloads.crowd import Crowd
from mirror.downloads.downloads import Downloads
from mirror.downloads.shares import Shares
from mirror.downloads.transfer import Transfer
from mirror.downloads.writeback import Writeback
from mirror.errors import ShuttingDown
from mirror.manifest import Descriptor
from mirror.metrics import Metrics
from mirror.names import Digest, Repository
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.staging import StagedBlob
from mirror.upstream.client import UpstreamClient

DIGEST = Digest.parse(f"sha256:{'0' * 64}")
SOURCE = Repository("registry.test", "org/app")
MEGABYTE = 1024 * 1024


class SilentClient:
    """An upstream that never answers."""

    name = SOURCE.upstream
    blob_connections = 8

    @asynccontextmanager
    async def get_blob(self, *_: object, **__: object) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield


def silent_client() -> UpstreamClient:
    return cast(UpstreamClient, SilentClient())


def arrival_at(folder: Path) -> Arrival:
    return Arrival(DIGEST, SOURCE, StagedBlob(BlobStore(folder), DIGEST), 10 * MEGABYTE)


def downloads_at(folder: Path) -> Downloads:
    async def forget(_source: Repository, _descriptor: Descriptor) -> None: ...

    clients = {SOURCE.upstream: silent_client()}
    return Downloads(BlobStore(folder), clients, Metrics(), forget, cast(Eviction, None))


async def test_what_has_just_ended_gives_its_place_back_once(tmp_path: Path) -> None:
    crowd, arrival = Crowd({SOURCE.upstream: 256}), arrival_at(tmp_path)
    arrival.is_asked = False

    async def bring() -> None:
        crowd.remove(arrival)

    task = asyncio.get_running_loop().create_task(bring())
    crowd.add(arrival, task)
    await asyncio.sleep(0)
    assert task.done()
    crowd.end_ahead()
    assert crowd.shares[SOURCE.upstream].ahead == 0


async def test_its_name_is_not_free_before_staging_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is cancelled twice."""
    leaves, may_leave = threading.Event(), threading.Event()

    def close(_staged: StagedBlob) -> None:
        leaves.set()
        may_leave.wait()

    monkeypatch.setattr(StagedBlob, "close", close)
    downloads = downloads_at(tmp_path)
    joining = asyncio.ensure_future(downloads.join(SOURCE, DIGEST, None))
    await asyncio.sleep(0.01)
    (task,) = downloads.crowd.tasks.values()
    task.cancel()
    await asyncio.to_thread(leaves.wait)
    task.cancel()
    await asyncio.sleep(0.01)
    is_free = downloads.find(DIGEST) is None
    may_leave.set()
    assert not is_free
    with pytest.raises(ShuttingDown):
        await joining
    assert downloads.find(DIGEST) is None
    await downloads.aclose(0)


async def test_nothing_begins_once_it_is_closed(tmp_path: Path) -> None:
    downloads = downloads_at(tmp_path)
    await downloads.aclose(0)
    with pytest.raises(ShuttingDown):
        await downloads.join(SOURCE, DIGEST, None)
    downloads.begin_ahead(SOURCE, DIGEST, 1)
    assert not downloads.crowd.tasks


async def test_a_reader_may_ask_while_the_transfer_is_cancelled(tmp_path: Path) -> None:
    """There is a moment between the cancellation and when its tasks hear of it."""
    arrival = arrival_at(tmp_path)

    async def check_room() -> None: ...

    with ThreadPoolExecutor(1) as threads:
        transfer = Transfer(
            arrival,
            silent_client(),
            threads,
            Writeback(threads, threads),
            Metrics(),
            Shares(8),
            cast(Any, check_room),
        )
        task = asyncio.ensure_future(transfer.run())
        while not (tmp_path / "staging").exists():  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        arrival.announce(10 * MEGABYTE)
        task.cancel()
        await asyncio.sleep(0)
        arrival.wanted(5 * MEGABYTE, None)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(arrival.staged.discard)
