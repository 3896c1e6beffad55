"""The scrub finds what disks change without a word, slowly and in order."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.store import scrub
from mirror.store.blobs import BlobStore
from mirror.store.index import Index
from mirror.store.inspection import STEP_BYTES, Inspection
from mirror.store.quarantine import Quarantine
from mirror.store.scrub import CHECK_EVERY_SECONDS, RETRY_SECONDS, Pace, Scrub
from mirror.store.usage import Usage
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.layers import UPSTREAM, add_layer, eventually, some_bytes, until_idle

AS_FAST_AS_CAN_BE = 1 << 40
ONE, TWO, THREE = (some_bytes(3_000, seed) for seed in range(3))


@dataclass
class Room:
    """A store with its index, and what the scrub needs; `now` is the wall clock."""

    store: BlobStore
    index: Index
    quarantine: Quarantine
    metrics: Metrics
    now: float = 1e9

    def scrub(self, rate: int = AS_FAST_AS_CAN_BE, first_after_seconds: float = 0.0) -> Scrub:
        pace = Pace(rate, first_after_seconds, idle_seconds=0.01, now=lambda: self.now)
        inspection = Inspection(self.store, self.index, self.quarantine, self.metrics)
        return Scrub(self.index, inspection, pace)

    async def add(self, data: bytes) -> Digest:
        """Stored, and found right, now."""
        digest = Digest.of(data)
        await self.store.write(digest, data)
        await self.index.add_blob(digest, len(data), self.now)
        return digest

    def counted(self, sample: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.metrics.render().decode())
        found = (each for family in families for each in family.samples if each.name == sample)
        return sum(each.value for each in found if labels.items() <= each.labels.items())

    async def has_set_aside(self) -> bool:
        return bool(self.set_aside())

    def set_aside(self) -> set[str]:
        return {
            path.name for path in (self.store.paths.root / "damaged").rglob("*") if path.is_file()
        }


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    store, metrics = BlobStore(tmp_path / "data"), Metrics()
    await store.open()
    index = await Index.open(store.paths.index)
    quarantine = Quarantine(store, index, Usage(metrics), metrics)
    yield Room(store, index, quarantine, metrics)
    await quarantine.aclose()
    await index.aclose()
    await store.aclose()


async def test_what_is_wanted_comes_before_what_is_due(room: Room) -> None:
    for data in (ONE, TWO):
        await room.add(data)
    wanted = await room.add(THREE)
    room.store.paths.blob(wanted).write_bytes(bytes(len(THREE)))
    scrub = room.scrub()
    async with at_work(scrub):
        await asyncio.sleep(0.05)
        assert not room.set_aside(), "nothing is due"
        scrub.check_soon(wanted)
        await eventually(room.has_set_aside)
    assert room.set_aside() == {wanted.hex}
    assert room.counted("mirror_scrubbed_bytes_total") == len(THREE)


@pytest.mark.parametrize("fronts", [0, 2])
async def test_a_blob_that_a_client_pulls_again_is_checked_out_of_turn(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fronts: int
) -> None:
    """Same size, other bytes: whoever pulls it notices, and pulls it again."""
    monkeypatch.setattr("mirror.app.Pace", partial(Pace, first_after_seconds=0.0))
    data = some_bytes(300_000)
    path = add_layer(registry, data)
    async with mirroring(tmp_path, {UPSTREAM: registry}, fronts=fronts) as house:
        assert (await house.get(path)).body == data
        await until_idle(house)
        (file,) = (house.storage / "blobs").glob("*/*/*")
        file.write_bytes(bytes(len(data)))
        assert (await house.get(path, {"Range": "bytes=0-9"})).body == bytes(10)
        for _ in range(2):
            assert (await house.get(path)).body == bytes(len(data))
        assert (await house.get_until(path, lambda answer: answer.body == data)).status == 200
        assert await house.metric("mirror_damaged_blobs_total", reason="bytes") == 1
        assert registry.count("GET", "blob") == 2


@asynccontextmanager
async def at_work(scrub: Scrub) -> AsyncIterator[None]:
    scrub.open()
    try:
        yield
    finally:
        await scrub.aclose()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("harm", "reason", "left"),
    [(flip, "bytes", 1), (cut, "size", 1), (Path.unlink, "missing", 0)],
    ids=["flipped", "cut", "gone"],
)
async def test_what_is_damaged_is_set_aside_and_forgotten(
    room: Room, harm: Callable[[Path], None], reason: str, left: int
) -> None:
    digest, other = await room.add(ONE), await room.add(TWO)
    harm(room.store.paths.blob(digest))
    room.now += CHECK_EVERY_SECONDS + 1
    assert await room.scrub().check_batch()
    assert await room.index.usage() == (1, len(TWO))
    assert await room.store.has(other)
    assert not await room.store.has(digest)
    assert len(room.set_aside()) == left
    assert room.counted("mirror_damaged_blobs_total", reason=reason) == 1


async def test_an_open_blob_that_changed_is_not_served_on(room: Room) -> None:
    digest = await room.add(ONE)
    handle = await room.store.find(digest)
    assert handle is not None
    kept = room.store.keep(digest, handle)
    assert kept is not None
    kept.close()
    flip(room.store.paths.blob(digest))
    room.now += CHECK_EVERY_SECONDS + 1
    await room.scrub().check_batch()
    assert room.store.find_open(digest) is None


async def test_each_blob_is_checked_once_in_a_while(room: Room) -> None:
    await room.add(ONE)
    assert not await room.scrub().check_batch(), "it was verified when it came"
    for _ in range(2):
        room.now += CHECK_EVERY_SECONDS + 1
        assert await room.scrub().check_batch()
        assert not await room.scrub().check_batch()
    assert room.counted("mirror_scrubbed_bytes_total") == 2 * len(ONE)


async def test_the_longest_unchecked_comes_first(room: Room) -> None:
    order = []
    for data in (TWO, THREE, ONE):
        order.append(await room.add(data))
        room.now += 10
    assert await room.index.blobs_to_check(room.now, 10) == order
    await room.index.note_checked(order[:1], room.now)
    assert await room.index.blobs_to_check(room.now + 1, 10) == [*order[1:], order[0]]
    assert await room.index.blobs_to_check(room.now + 1, 1) == order[1:2]


async def test_a_disk_that_hiccups_proves_nothing(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await room.add(ONE)
    room.now += CHECK_EVERY_SECONDS + 1

    def pread(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as context:
        context.setattr(os, "pread", pread)
        assert await room.scrub().check_batch()
    assert room.counted("mirror_scrub_errors_total") == 1
    assert room.counted("mirror_damaged_blobs_total") == 0
    assert await room.store.has(digest)
    assert not await room.scrub().check_batch(), "it goes on with others"
    room.now += RETRY_SECONDS + 1
    assert await room.scrub().check_batch(), "and comes back to it soon"
    room.now += RETRY_SECONDS + 1
    assert not await room.scrub().check_batch(), "it is right"


async def test_a_damaged_blob_that_cannot_be_moved_stays_known(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await room.add(ONE)
    flip(room.store.paths.blob(digest))
    room.now += CHECK_EVERY_SECONDS + 1

    def rename(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", rename)
    with structlog.testing.capture_logs() as logs:
        await room.scrub().check_batch()
    assert [line["event"] for line in logs] == ["a damaged blob cannot be set aside"]
    assert await room.index.blob_size(digest) == len(ONE)
    assert not await room.scrub().check_batch()
    room.now += RETRY_SECONDS + 1
    monkeypatch.undo()
    assert await room.scrub().check_batch()
    assert room.set_aside() == {digest.hex}


async def test_what_cannot_be_read_does_not_keep_the_others_waiting(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "BATCH_BLOBS", 1)
    bad = await room.add(ONE)
    room.store.paths.blob(bad).unlink()
    room.store.paths.blob(bad).mkdir()
    for number in range(3):
        room.now += 1
        await room.add(some_bytes(3_000, seed=10 + number))
    room.now += CHECK_EVERY_SECONDS
    for _ in range(4):
        assert await room.scrub().check_batch()
        room.now += RETRY_SECONDS / 4
    assert room.counted("mirror_scrubbed_bytes_total") == 3 * 3_000
    assert room.counted("mirror_scrub_errors_total") == 1


async def test_it_keeps_to_its_rate_and_stops_at_once(room: Room) -> None:
    digest = await room.add(some_bytes(3 * STEP_BYTES))
    room.now += CHECK_EVERY_SECONDS + 1

    async with at_work(room.scrub(rate=STEP_BYTES // 3600)), asyncio.timeout(DEADLINE_SECONDS):
        while not room.counted("mirror_scrubbed_bytes_total"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert room.counted("mirror_scrubbed_bytes_total") == STEP_BYTES
    assert await room.index.blobs_to_check(room.now, 10) == [digest], "it begins anew next time"
    assert await room.store.has(digest)


@pytest.mark.parametrize("rate_and_first", [(AS_FAST_AS_CAN_BE, 3600.0), (0, 0.0)])
async def test_it_leaves_the_first_minute_alone_and_can_be_turned_off(
    room: Room, rate_and_first: tuple[int, float]
) -> None:
    await room.add(ONE)
    room.now += CHECK_EVERY_SECONDS + 1
    looked = 0
    ask = room.index.blobs_to_check

    async def blobs_to_check(checked_before: float, limit: int) -> list[Digest]:
        nonlocal looked
        looked += 1
        return await ask(checked_before, limit)

    room.index.blobs_to_check = blobs_to_check  # type: ignore[method-assign]
    async with at_work(room.scrub(*rate_and_first)):
        for _ in range(20):
            await asyncio.sleep(0)
    assert looked == 0


async def test_it_outlives_an_index_that_fails(room: Room) -> None:
    digest = await room.add(ONE)
    flip(room.store.paths.blob(digest))
    room.now += CHECK_EVERY_SECONDS + 1
    hidden = room.index.blobs_to_check
    failures = 0

    async def fail_once(checked_before: float, limit: int) -> list[Digest]:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise RuntimeError("whatever it is")
        return await hidden(checked_before, limit)

    room.index.blobs_to_check = fail_once  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logs:
        async with at_work(room.scrub()), asyncio.timeout(DEADLINE_SECONDS):
            while not room.set_aside():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
    assert logs[0]["event"] == "the scrub failed; it goes on"


async def test_a_serving_mirror_scrubs(registry: FakeRegistry, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}):
        assert "scrub" in {task.get_name() for task in asyncio.all_tasks()}
    settings = {"path": str(tmp_path / "data"), "scrub_rate": 0}
    async with mirroring(tmp_path, {"docker.io": registry}, storage=settings):
        assert "scrub" not in {task.get_name() for task in asyncio.all_tasks()}
