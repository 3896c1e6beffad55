"""Who waits for what at the index's database, and what is left when an asker goes."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from mirror.errors import StorageFailed
from mirror.names import Digest, Repository, Tag
from mirror.store import database
from mirror.store.blobs import BlobStore
from mirror.store.database import Database
from mirror.store.index import Index
from mirror.store.pins import Pins
from mirror.store.sqlite import InMemory
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.support.layers import eventually

MANY = 20
APP, LATEST = Repository("docker.io", "library/app"), Tag("latest")


class Gate:
    """Holds questions in their threads until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.entered = self.passed = 0

    def __call__(self, connection: Connection) -> int:
        self.entered += 1
        assert self._open.wait(DEADLINE_SECONDS)
        self.passed += 1
        return int(connection.execute(text("SELECT 7")).scalar_one())

    def open(self) -> None:
        self._open.set()

    async def is_entered(self) -> bool:
        return self.entered > 0


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
async def index(index_file: Path, gate: Gate) -> AsyncIterator[Index]:
    index = await Index.open(index_file)
    yield index
    gate.open()
    await index.aclose()


def seven(connection: Connection) -> int:
    return int(connection.execute(text("SELECT 7")).scalar_one())


async def hold_up(asking: list[Any]) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(each) for each in asking]
    await asyncio.sleep(0.05)
    return tasks


async def abandon(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_nobody_waits_for_any_more_is_not_asked(index: Index, gate: Gate) -> None:
    tasks = await hold_up([index.database.read(gate) for _ in range(MANY)])
    await abandon(tasks)
    gate.open()
    assert await index.database.read(seven) == 7
    assert gate.passed <= database._LOOKUP_THREADS


async def test_nothing_else_waits_behind_long_questions(index: Index, gate: Gate) -> None:
    tasks = await hold_up([index.database.scan(gate) for _ in range(MANY)])
    assert await index.add_blob(Digest.of(b"new"), 3, 1.0)
    assert await index.blob_size(Digest.of(b"new")) == 3
    gate.open()
    assert await asyncio.gather(*tasks) == [7] * MANY


async def test_a_change_goes_on_beside_questions_that_hang(index: Index, gate: Gate) -> None:
    await hold_up([index.database.read(gate) for _ in range(MANY)])
    assert await index.add_blob(Digest.of(b"new"), 3, 1.0)


async def test_a_question_does_not_wait_for_a_disk_for_ever(
    index: Index, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hold_up([index.database.read(gate) for _ in range(database._LOOKUP_THREADS)])
    monkeypatch.setattr(database, "LOOKUP_WAIT_SECONDS", 0.1)
    with pytest.raises(StorageFailed, match="does not answer"):
        await index.database.read(seven)
    assert not index.has_failed  # it is slow, which says nothing of what is in it


async def test_what_has_begun_may_take_its_time(
    index: Index, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOOKUP_WAIT_SECONDS", 0.5)
    [task] = await hold_up([index.database.read(gate)])
    await eventually(gate.is_entered)
    await asyncio.sleep(0.6)
    gate.open()
    assert await task == 7


async def test_the_end_does_not_wait_for_what_has_not_begun(index_file: Path, gate: Gate) -> None:
    index = await Index.open(index_file)
    tasks = await hold_up([index.database.scan(gate) for _ in range(MANY)])
    await eventually(gate.is_entered)
    closed = asyncio.ensure_future(index.aclose())
    await asyncio.sleep(0.05)
    gate.open()
    await closed
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert gate.passed == 1
    assert ended[0] == 7
    assert {type(each) for each in ended[1:]} == {StorageFailed}


async def test_a_closed_index_says_so(index_file: Path) -> None:
    index = await Index.open(index_file)
    await index.aclose()
    await index.aclose()
    for asked in (
        index.usage(),
        index.repositories(None, "", 9),
        index.forget_blob(Digest.of(b"x")),
    ):
        with pytest.raises(StorageFailed, match="closed"):
            await asked


async def test_a_change_is_over_before_the_next_one_begins_also_when_cancelled(
    index: Index, gate: Gate
) -> None:
    [first] = await hold_up([index.database.write(gate)])
    first.cancel()
    [second] = await hold_up([index.database.write(seven)])
    assert not first.done()
    assert not second.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == 7


async def test_what_fails_for_nobody_is_no_ones_traceback(
    index: Index, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(connection: Connection) -> None:
        gate(connection)
        raise ValueError

    tasks = await hold_up([index.database.write(fail), index.database.read(fail)])
    for task in tasks:
        task.cancel()
    gate.open()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await index.database.read(seven) == 7
    assert "never retrieved" not in caplog.text


async def test_in_memory_questions_and_changes_stand_in_one_line() -> None:
    with closing(await asyncio.to_thread(InMemory)) as memory:
        index = await Index.in_memory(memory)
        digests = [Digest.of(b"%d" % number) for number in range(MANY)]
        async with asyncio.TaskGroup() as tasks:
            for digest in digests:
                tasks.create_task(index.add_blob(digest, 10, 1.0))
                tasks.create_task(index.usage())
        assert await index.usage() == (MANY, 10 * MANY)
        await index.aclose()


async def test_a_pin_that_is_cancelled_is_known_in_memory_as_it_is_in_the_index(
    tmp_path: Path, index: Index, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path / "blobs")
    await store.open()
    pins = Pins(store, index)
    layer = Digest.of(b"layer")
    monkeypatch.setattr(pins, "_named", lambda digest: None)
    write = Database.write

    async def slow(self: Database, change: Any) -> Any:
        made = await write(self, change)
        await asyncio.sleep(0.1)
        return made

    monkeypatch.setattr(Database, "write", slow)
    for change in (pins.pin(APP, LATEST, layer), pins.unpin(APP, LATEST)):
        [task] = await hold_up([change])
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        rows = await index.database.read(
            lambda connection: len(connection.execute(text("SELECT 1 FROM pins")).all())
        )
        assert rows == (pins.pinned(APP, LATEST) is not None)
    await store.aclose()


async def test_another_programs_lock_costs_one_change_its_wait(index_file: Path) -> None:
    index = await Index.open(index_file)
    with closing(sqlite3.connect(index_file)) as other:
        other.execute("BEGIN IMMEDIATE")
        changes = [index.forget_blob(Digest.of(b"%d" % number)) for number in range(MANY)]
        async with asyncio.timeout(DEADLINE_SECONDS):
            failed = await asyncio.gather(*changes, return_exceptions=True)
        assert {type(each) for each in failed} == {StorageFailed}
        assert await index.usage() == (0, 0)
    await index.aclose()
