"""A cache of many blobs starts, and makes room, as fast as one of few: no table is read through for
it, and no folder is walked. Counted in steps of SQLite, not in seconds; bench/million.py has those.
"""

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.stock import stock
from mirror.metrics import Metrics
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.index import Index
from mirror.store.recovery import close_index, open_index
from mirror.store.room import Limits
from mirror.store.usage import Usage
from tests.support.house import mirroring
from tests.support.layers import UPSTREAM

FEW, MANY = 1_000, 10_000
EVICTED = 200
# SQLite tells after each so many of the instructions that a statement was compiled to.
STEPS = 20
# What it takes to open connections, of which there are more where questions meet; a row that is
# looked at takes some ten of them.
CONNECTIONS_STEPS = 1_000


class Work:
    """`steps` of all databases, and the `walked` folders that hold blobs."""

    def __init__(self) -> None:
        self.steps = 0
        self.walked: list[str] = []

    def note_step(self) -> int:
        self.steps += STEPS
        return 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    counted = Work()
    connect, scandir, listdir = sqlite3.connect, os.scandir, os.listdir

    def connecting(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_progress_handler(counted.note_step, STEPS)
        return connection

    def scanning(path: Any = ".") -> Any:
        counted.walked += [str(path)] if "/blobs" in str(path) else []
        return scandir(path)

    def listing(path: Any = ".") -> Any:
        counted.walked += [str(path)] if "/blobs" in str(path) else []
        return listdir(path)

    monkeypatch.setattr(sqlite3, "connect", connecting)
    monkeypatch.setattr(sqlite3.dbapi2, "connect", connecting)
    monkeypatch.setattr(os, "scandir", scanning)
    monkeypatch.setattr(os, "listdir", listing)
    return counted


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of mirrors, each ended well."""
    made = {}
    for count in (FEW, MANY):
        folder = made[count] = tmp_path_factory.mktemp(f"cache-{count}")
        (folder / "data").mkdir()
        stock(folder / "data", count)
    return made


@asynccontextmanager
async def opened(folder: Path, *, is_killed: bool) -> AsyncIterator[tuple[BlobStore, Index]]:
    """The rooms of a mirror that ends well, or as if it was killed."""
    store = BlobStore(folder / "data")
    await store.open()
    index = await open_index(store)
    try:
        yield store, index
    finally:
        await (index.aclose() if is_killed else close_index(index, store))
        await store.aclose()


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_start_costs_the_same(caches: dict[int, Path], work: Work, is_killed: bool) -> None:
    steps = {}
    for count, folder in caches.items():
        async with opened(folder, is_killed=is_killed):
            pass
        work.steps = 0
        async with mirroring(folder, {UPSTREAM: {"endpoints": ["http://127.0.0.1:1"]}}) as house:
            assert (await house.get("/readyz")).status == 200
            assert await house.metric("mirror_cache_blobs") > count / 2
            steps[count] = work.steps
    assert steps[MANY] < steps[FEW] + CONNECTIONS_STEPS
    assert work.walked == []


async def test_what_has_to_be_read_through_is_counted_here(
    caches: dict[int, Path], work: Work
) -> None:
    """As after a power cut: so that the other tests are known to see it."""
    steps = {}
    for count, folder in caches.items():
        work.steps = 0
        (folder / "data" / "index.sound").unlink(missing_ok=True)
        async with opened(folder, is_killed=False):
            steps[count] = work.steps
    assert steps[MANY] > 5 * steps[FEW]


async def test_eviction_costs_the_same_for_each_blob(caches: dict[int, Path], work: Work) -> None:
    steps = {}
    for count, folder in caches.items():
        async with opened(folder, is_killed=False) as (store, index):
            usage = Usage(Metrics())
            usage.add(*await index.usage())
            eviction = Eviction(store, index, usage, Metrics(), Limits(usage.size_bytes))
            going_bytes = sum(each.size_bytes for each in await index.least_worth(EVICTED))
            eviction.room.arriving_bytes = partial(int, going_bytes)
            before, work.steps = usage.blobs, 0
            await eviction.make_room(0)
            steps[count] = work.steps / (before - usage.blobs)
    assert steps[MANY] < 1.2 * steps[FEW]
    assert work.walked == []
