"""The line between a front process and the owner: what is heard over it, and what becomes of those
that do not hear.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import pytest
from aiohttp import web

from mirror.names import Digest
from mirror.store.readers import Readers
from mirror.web import fronts
from mirror.web.fronts import Fronts
from mirror.workers import line
from mirror.workers.line import Line
from mirror.workers.owner import Owner
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.support.layers import eventually

DIGEST = Digest.of(b"a blob")


@pytest.fixture
def path() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "owner"


@asynccontextmanager
async def owning(path: Path, all_fronts: Fronts) -> AsyncIterator[None]:
    """The owner's end of lines, at this path."""
    with socket(AF_UNIX) as listener:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        listener.bind(str(path))
        server = web.Server(all_fronts.hear, handler_cancellation=True)
        loop = asyncio.get_running_loop()
        serving = await loop.create_unix_server(server, sock=listener)
        yield
        serving.close()
        all_fronts.hang_up()
        await server.shutdown(1)


class Front:
    """Counts how often it was told to forget; reads what a test says."""

    def __init__(self) -> None:
        self.readers = Readers()
        self.times = 0
        self.told = asyncio.Event()

    async def forget(self) -> None:
        self.times += 1
        self.told.set()

    async def until_told(self) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.told.wait()
        self.told.clear()


@asynccontextmanager
async def line_of(path: Path, front: Front) -> AsyncIterator[None]:
    """Open, and known to the owner."""
    async with Owner(str(path)) as owner:
        own = Line(owner, front.readers, front.forget)
        own.open()
        await front.until_told()
        yield
        await own.aclose()


async def test_each_front_has_forgotten_when_all_have(path: Path) -> None:
    all_fronts, one, two = Fronts(Readers()), Front(), Front()
    async with owning(path, all_fronts), line_of(path, one), line_of(path, two):
        await all_fronts.forget_repeats()
        assert (one.times, two.times) == (2, 2)
    async with asyncio.timeout(1):
        await all_fronts.forget_repeats()  # there is none left to wait for


async def test_who_does_not_hear_is_waited_for_until_it_has_nothing_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fronts, "HEAR_SECONDS", 0.3)
    all_fronts, front = Fronts(Readers()), Front()
    async with owning(path, all_fronts), line_of(path, front), Owner(str(path)) as owner:
        async with owner.line() as deaf:
            await deaf.receive()
            started_at = time.monotonic()
            await all_fronts.forget_repeats()
            assert 0.25 < time.monotonic() - started_at < DEADLINE_SECONDS
            assert front.times == 2
            forgetting = asyncio.ensure_future(all_fronts.forget_repeats())
            monkeypatch.setattr(fronts, "HEAR_SECONDS", 2 * DEADLINE_SECONDS)
            await deaf.receive()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await forgetting  # since it has gone


async def test_a_line_stands_again_with_the_next_owner_who_says_what_was_missed(
    path: Path,
) -> None:
    front = Front()
    async with owning(path, first := Fronts(Readers())), line_of(path, front):
        first.hang_up()
        await front.until_told()
        async with owning(path, second := Fronts(Readers())):
            first.hang_up()
            await front.until_told()
            await second.forget_repeats()
        assert front.times == 4


async def test_what_a_front_reads_counts_until_all_have_done_or_gone(path: Path) -> None:
    readers, one, two = Readers(), Front(), Front()
    all_fronts = Fronts(readers)
    counts = [each.readers.of(DIGEST) for each in (one, two)]

    async def is_read() -> bool:
        return readers.is_read(DIGEST)

    async def is_not_read() -> bool:
        return not readers.is_read(DIGEST)

    async with owning(path, all_fronts):
        async with line_of(path, one):
            async with line_of(path, two):
                counts[0].begin()
                await eventually(is_read)
                counts[1].begin()
                await asyncio.sleep(3 * line.LOOK_SECONDS)
                counts[0].end()
                await asyncio.sleep(3 * line.LOOK_SECONDS)
                assert readers.is_read(DIGEST), "by the other one"
                counts[1].end()
                await eventually(is_not_read)
                counts[1].begin()
                await eventually(is_read)
            await eventually(is_not_read)  # though it did not say so
            counts[0].begin()
            await eventually(is_read)
            all_fronts.hang_up()
            await eventually(is_not_read)
            await eventually(is_read)  # as the next owner is told, too
        await eventually(is_not_read)


async def test_a_handover_counts_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.store.readers.HANDOVER_SECONDS", 0.1)
    readers = Readers()
    readers.of(DIGEST).hand_over()
    assert readers.is_read(DIGEST)
    await asyncio.sleep(0.15)
    assert not readers.is_read(DIGEST)
    assert list(readers.read_now()) == []
