"""A front process by itself: what it does with what the owner gives, and says."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from mirror.names import Digest
from mirror.store.paths import Paths
from mirror.web.tally import Tally
from mirror.web.told import ToldFile
from mirror.workers import sending
from mirror.workers.files import Files
from mirror.workers.legs import Leg
from mirror.workers.owner import Owner
from mirror.workers.teller import Teller
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.layers import UPSTREAM, add_layer, some_bytes

DATA = some_bytes(1_000_000)
DIGEST = Digest.parse(f"sha256:{'0' * 64}")


class SlowOwner:
    """Takes its time to hear, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Mapping[str, Any]] = []
        self.asked = asyncio.Event()

    async def tell_counts(self, told: Mapping[str, Any]) -> None:
        self.asked.set()
        await asyncio.sleep(0.05)
        self.heard.append(told)


async def test_no_count_is_lost_with_who_tells_it() -> None:
    owner, tally = SlowOwner(), Tally()
    teller = Teller(cast(Owner, owner), tally)
    tally.connection_refused()
    telling = asyncio.ensure_future(teller.tell())
    await owner.asked.wait()
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling
    assert [told["refused"] for told in owner.heard] == [1]
    assert tally.take() is None


async def stored_file(folder: Path, data: bytes) -> ToldFile:
    """In the store's folder, and as the owner tells of it."""
    path = Paths(folder).blob(DIGEST)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name("beside")
    beside.write_bytes(data)
    beside.replace(path)
    inode = path.stat().st_ino
    return ToldFile(str(DIGEST), inode, True, 0, len(data), is_whole=True, completes=True)


async def test_a_file_that_gave_too_little_is_opened_anew(tmp_path: Path) -> None:
    """By then the owner, which sends the bytes itself meanwhile, has looked at it."""
    files = Files(Paths(tmp_path))
    blob = await files.open(await stored_file(tmp_path, b"damaged"))
    assert blob is not None
    blob.doubt()
    blob.close()
    assert files.find_open(DIGEST) is None
    assert await files.open(await stored_file(tmp_path, b"damaged")) is None
    again = await files.open(await stored_file(tmp_path, b"whole"))
    assert again is not None
    assert again.size_bytes == len(b"whole")
    again.close()
    await files.aclose()


async def test_no_second_answer_is_written_into_a_body(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in the middle of one."""

    async def send_half(
        _request: web.BaseRequest,
        response: web.StreamResponse,
        _leg: Leg,
        _start: int,
        _end: int | None,
        note_sent: Callable[[int, bool], None],
    ) -> None:
        await response.write(DATA[:500_000])
        note_sent(500_000, False)
        raise RuntimeError("what nobody expects")

    monkeypatch.setattr(sending, "send_leg", send_half)
    path = add_layer(registry, DATA)
    async with mirroring(tmp_path, {UPSTREAM: registry}, fronts=1) as house:
        with capture_logs():
            answer = await house.get(path)
    assert (answer.status, answer.ended, answer.body) == (200, "short", DATA[:500_000])
