"""A front process by itself: what it does with what the owner gives, and says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from mirror.workers import sending
from mirror.workers.legs import Leg
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.layers import UPSTREAM, add_layer, some_bytes

DATA = some_bytes(1_000_000)


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
    async with mirroring(tmp_path, {UPSTREAM: registry}, fronted=True) as house:
        with capture_logs():
            answer = await house.get(path)
    assert (answer.status, answer.ended, answer.body) == (200, "short", DATA[:500_000])
