"""Readers at random places of a growing blob, in front of an upstream that fails at random.

Whatever happens, every byte that a client gets is right, and everybody comes to an end.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.downloads import fill, pieces, tries
from tests.fakes.client import raw_open
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import (
    Cut,
    Fault,
    HangUp,
    IgnoreRange,
    NoLength,
    Stall,
    Status,
    Trickle,
)
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, some_bytes, until_idle

READERS = 12
FAULTY_ANSWERS = 8


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a small blob meet what otherwise takes one of many megabytes."""
    monkeypatch.setattr(pieces, "FAR_AHEAD_BYTES", 20_000)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 50_000)
    monkeypatch.setattr(fill, "SKIP_BYTES", 20_000)
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)


@dataclass(frozen=True)
class Plan:
    """What one client asks for, and after how many bytes it leaves."""

    wanted: str | None
    start: int
    end: int
    leaves_after: int


def plan(chance: random.Random, size: int) -> Plan:
    start = chance.randrange(size)
    end = chance.randint(start + 1, size)
    leaves_after = chance.choice([size + 1, size + 1, chance.randrange(size)])
    wanted, start, end = chance.choice(
        [
            (None, 0, size),
            ("bytes=0-", 0, size),
            (f"bytes={start}-", start, size),
            (f"bytes={start}-{end - 1}", start, end),
            (f"bytes={start}-{end - 1}", start, end),
            (f"bytes=-{size - start}", start, size),
        ]
    )
    return Plan(wanted, start, end, leaves_after)


def some_faults(chance: random.Random, size: int) -> list[Fault]:
    def place() -> int:
        return chance.randint(0, size)

    makers: Sequence[Callable[[], list[Fault]]] = (
        list,
        lambda: [Cut(place())],
        lambda: [Cut(place()), NoLength()],
        lambda: [Stall(place())],
        lambda: [Stall(place()), Cut(place())],
        lambda: [IgnoreRange()],
        lambda: [IgnoreRange(), Cut(place())],
        lambda: [IgnoreRange(), NoLength(), Stall(place())],
        lambda: [Trickle(size * 8, chunk_bytes=chance.randint(1000, 40_000))],
        lambda: [Trickle(size * 8, chunk_bytes=7000), Cut(place())],
        lambda: [NoLength()],
        lambda: [NoLength(chunked=False)],
        lambda: [Status(chance.choice([404, 429, 500, 503]))],
        lambda: [HangUp()],
    )
    return chance.choice(makers)()


@asynccontextmanager
async def released(registry: FakeRegistry) -> AsyncIterator[None]:
    """What stalls goes on after a moment, again and again."""

    async def release() -> None:
        while True:
            await registry.until(lambda: any(seen.held for seen in registry.requests))
            await asyncio.sleep(0.03)
            registry.release()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(release())
        yield
        task.cancel()


async def read(house: House, path: str, data: bytes, plan: Plan) -> None:
    headers = {"Range": plan.wanted} if plan.wanted else None
    async with raw_open(house.url + path, headers) as stream:
        body = b""
        while len(body) < plan.leaves_after and (piece := await stream.read(16_384)):
            body += piece
    if stream.status in (404, 416, 429, 502, 503, 504):
        return
    assert stream.status == (206 if plan.wanted else 200)
    if stream.status == 206:
        expected = f"bytes {plan.start}-{plan.end - 1}/{len(data)}"
        assert stream.headers["Content-Range"] == expected
    assert data[plan.start : plan.end].startswith(body)
    if stream.ended == "complete":
        assert len(body) == plan.end - plan.start
    else:
        assert stream.ended in ("short", "open")


@pytest.mark.parametrize("seed", range(16))
async def test_every_byte_is_right_and_everybody_ends(
    registry: FakeRegistry, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    data = some_bytes(chance.choice([1, 1000, 1025, 30_000, 300_000, 400_000]), seed)
    path = add_layer(registry, data)
    for _ in range(chance.randint(0, FAULTY_ANSWERS)):
        registry.fail(*some_faults(chance, len(data)), kind="blob", times=1)
    registry.fail(Trickle(len(data) * 6, chunk_bytes=8000), kind="blob")
    upstream = {"endpoints": [registry.url], "not_found_ttl": "0s"}
    async with mirroring(tmp_path, {UPSTREAM: upstream}, fronts=seed % 2) as house:
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            released(registry),
            asyncio.TaskGroup() as clients,
        ):
            for _ in range(READERS):
                clients.create_task(read(house, path, data, plan(chance, len(data))))
                await asyncio.sleep(chance.choice([0, 0, 0.01]))
        registry.heal()
        registry.release()
        await until_idle(house)
        assert house.staged() == []
        answer = await house.get(path)
        assert (answer.status, answer.body) == (200, data)
