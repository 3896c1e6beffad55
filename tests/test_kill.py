"""The mirror killed at any moment (`kill -9`): what it serves afterwards is right, and what it had
fetched is not fetched again.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.fakes.client import raw_get, raw_open
from tests.fakes.faults import Gate, Trickle
from tests.fakes.images import Image
from tests.fakes.registry import FakeRegistry
from tests.support.crowd import fetch
from tests.support.layers import APP, UPSTREAM, add_layer, path_of
from tests.support.nursery import Succession, succession
from tests.support.process import write_settings

SEED = 4
KILLS = 50
LAYER_BYTES = (2_000, 200_000, 1_500_000)
BYTES_PER_SECOND = 20_000_000
CLIENTS_PER_IMAGE = 2
LARGE_BYTES = 200_000_000
MOST_FETCHED_AGAIN = 0.45

Moment = Callable[[], int]


@dataclass
class Load:
    """Clients that check each answer which they get to its end."""

    mirror: Succession
    registry: FakeRegistry
    answers: int = 0
    interrupted: int = 0

    async def get(self, path: str, right: bytes, start: int = 0) -> None:
        headers = {"Range": f"bytes={start}-"} if start else None
        try:
            answer = await raw_get(self.mirror.url + path, headers)
        except OSError:
            self.interrupted += 1
            return
        assert answer.status in (0, 206 if start else 200), (path, answer.status)
        assert answer.ended != "stalled", path
        if answer.ended == "complete":
            self.answers += 1
            assert answer.body == right[start:], path
        else:
            self.interrupted += 1

    async def pull(self, tag: str, image: Image, start: int = 0) -> None:
        """As clients do: the tag, the manifest, then all blobs at once; layers from `start` on."""
        manifests = f"/v2/{UPSTREAM}/{APP}/manifests"
        await self.get(f"{manifests}/{tag}", image.manifest)
        await self.get(f"{manifests}/{image.digest}", image.manifest)
        async with asyncio.TaskGroup() as blobs:
            for digest in (image.config, *image.layers):
                right = self.registry.contents[digest]
                begin = start if start < len(right) else 0
                blobs.create_task(self.get(path_of(digest), right, begin))

    def moments(self) -> list[tuple[Moment, int]]:
        """What is counted to find a moment, and how far one may count."""
        registry, wal = self.registry, self.mirror.storage / "index.db-wal"
        return [
            (lambda: len(registry.requests), 8),
            (lambda: registry.body_bytes("blob"), sum(LAYER_BYTES)),
            (lambda: len(self.mirror.stored()), 5),
            (lambda: len(self.mirror.staged()), 4),
            (lambda: wal.stat().st_mtime_ns if wal.exists() else 0, 1),
            (lambda: self.answers, 10),
        ]


async def until_counted(count: Moment, number: int, load: asyncio.Task[None]) -> None:
    """Until the count has grown by `number`, or nothing happens any more."""
    before = count()
    while count() < before + number and not load.done():  # noqa: ASYNC110 - it sets no event
        await asyncio.sleep(0.001)


@pytest.fixture
async def mirror(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Succession]:
    upstream = {"endpoints": [registry.url], "tag_ttl": "0s"}
    async with succession(write_settings(tmp_path, {UPSTREAM: upstream})) as mirror:
        yield mirror


def new_image(registry: FakeRegistry, tag: str, chance: random.Random) -> Image:
    layers = [chance.randbytes(chance.randint(most // 2, most)) for most in LAYER_BYTES]
    return registry.add_image(APP, tag, layers)


def check_stored(paths: Iterable[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == path.name


async def test_nothing_wrong_is_served_after_any_of_many_kills(
    registry: FakeRegistry, mirror: Succession
) -> None:
    chance = random.Random(SEED)
    registry.fail(Trickle(BYTES_PER_SECOND), kind="blob", method="GET")
    load = Load(mirror, registry)
    images: dict[str, Image] = {}
    checked: set[Path] = set()
    rounds_interrupted = rounds_with_staged = 0

    async def pull(tags: list[str], start: int) -> None:
        async with asyncio.TaskGroup() as clients:
            for tag in tags:
                for n in range(CLIENTS_PER_IMAGE):
                    clients.create_task(load.pull(tag, images[tag], n * start))

    for n in range(KILLS):
        images[f"v{n}"] = new_image(registry, f"v{n}", chance)
        tags = [f"v{n}", *chance.sample(list(images), min(3, len(images)))]
        interrupted = load.interrupted
        count, at_most = chance.choice(load.moments())
        async with asyncio.TaskGroup() as tasks:
            pulling = tasks.create_task(pull(tags, chance.randint(1, 1_000_000)))
            await until_counted(count, chance.randint(1, at_most), pulling)
            assert await mirror.end(SIGKILL) == -SIGKILL
        rounds_interrupted += load.interrupted > interrupted
        rounds_with_staged += bool(mirror.staged())
        check_stored(set(mirror.stored()) - checked)
        checked.update(mirror.stored())
        await mirror.start()
    assert rounds_interrupted > KILLS // 2, "the kills must meet work"
    assert rounds_with_staged > KILLS // 5
    registry.heal()
    await mirror.end(SIGKILL)
    await mirror.start()
    interrupted = load.interrupted
    for tag, image in images.items():
        await load.pull(tag, image)
    assert load.interrupted == interrupted
    await mirror.until_idle()
    check_stored(mirror.stored())
    assert {path.name for path in mirror.stored()} >= {d[7:] for d in registry.contents}
    assert mirror.staged() == []


@cache
def large_layer() -> bytes:
    return hashlib.shake_128(b"a large layer").digest(LARGE_BYTES)


async def check_large(mirror: Succession, path: str) -> None:
    """That the whole of it comes, and right."""
    reader = await asyncio.to_thread(fetch, mirror.url + path, large_layer())
    assert (reader.status, reader.position, reader.is_right) == (200, LARGE_BYTES, True)


async def test_what_had_arrived_before_a_kill_is_not_fetched_again(
    registry: FakeRegistry, mirror: Succession
) -> None:
    path = add_layer(registry, large_layer())
    gate = Gate(LARGE_BYTES * 6 // 10)
    registry.fail(gate, kind="blob", method="GET")
    async with raw_open(mirror.url + path) as stream:
        got = 0
        while got < gate.at_bytes and (piece := await stream.read(gate.at_bytes - got)):
            got += len(piece)
        assert got == gate.at_bytes
        await mirror.end(SIGKILL)
    registry.heal()
    before = registry.body_bytes("blob")
    await mirror.start()
    await check_large(mirror, path)
    assert registry.body_bytes("blob") - before <= MOST_FETCHED_AGAIN * LARGE_BYTES


async def test_what_a_range_had_brought_before_a_kill_is_not_fetched_again(
    registry: FakeRegistry, mirror: Succession
) -> None:
    """Of two clients the first has hung up, and the second was ahead of it."""
    data = random.Random(SEED).randbytes(8_000_000)
    path, first, second = add_layer(registry, data), Gate(2_000_000), Gate(500_000)
    for gate in (first, second):
        registry.fail(gate, kind="blob", times=1)
    async with raw_open(mirror.url + path) as leaving:
        got = 0
        while got < 1_998_000:
            got += len(await leaving.read())
        async with raw_open(mirror.url + path, {"Range": "bytes=6000000-"}) as stream:
            body = b""
            while len(body) < 499_000:
                body += await stream.read()
            leaving.hang_up(reset=True)
            await mirror.end(SIGKILL)
            while piece := await stream.read():
                body += piece
    assert (stream.status, stream.ended) == (206, "short")
    await mirror.start()
    start = 6_000_000 + len(body)
    rest = await raw_get(mirror.url + path, {"Range": f"bytes={start}-"})
    assert body + rest.body == data[6_000_000:]
    assert (await mirror.get(path)).body == data
    assert registry.body_bytes("blob") < len(data) + 100_000


async def test_what_was_whole_but_not_committed_is_not_fetched_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """The disk never comes to an end with syncing a whole blob."""
    path = add_layer(registry, large_layer())
    stuck = tmp_path / "stuck"
    stuck.touch()
    prelude = f"""
import os, time
def fsync(descriptor, sync=os.fsync):
    while os.path.exists({str(stuck)!r}) and os.fstat(descriptor).st_blocks * 512 >= {LARGE_BYTES}:
        time.sleep(0.1)
    sync(descriptor)
os.fsync = os.fdatasync = fsync
"""
    async with succession(write_settings(tmp_path, {UPSTREAM: registry}), prelude) as mirror:
        await check_large(mirror, path)
        await mirror.end(SIGKILL)
        assert mirror.stored() == []
        stuck.unlink()
        before = registry.body_bytes("blob")
        await mirror.start()
        await check_large(mirror, path)
    assert registry.body_bytes("blob") - before <= MOST_FETCHED_AGAIN * LARGE_BYTES
