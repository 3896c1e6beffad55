"""Upstreams that are slow to connect, to answer or to go on; and room for the quick questions."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import mirror.web.registry
from mirror.workers import relay
from tests.fakes.auth import BearerAuth
from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.faults import Delay, Gate, Stall, Status, Trickle
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.replies import error_of, message_of

APP = "org/app"
TAG = f"/v2/hub.test/{APP}/manifests/latest"
DATA = bytes(range(256)) * 80


def blob(digest: str) -> str:
    return f"/v2/hub.test/{APP}/blobs/{digest}"


def impatient(*endpoints: str, **settings: Any) -> dict[str, Any]:
    return {
        "endpoints": list(endpoints),
        "connect_timeout": "300ms",
        "idle_timeout": "400ms",
        **settings,
    }


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    registry.add_image(APP)
    async with mirroring(tmp_path, {"hub.test": impatient(registry.url)}) as house:
        yield house


async def test_an_upstream_that_takes_no_connections(black_hole: str, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {"hub.test": impatient(black_hole)}) as house:
        async with asyncio.timeout(SOON_SECONDS):
            answer = await house.get(TAG)
        assert answer.status == 504
        assert b"no answer in time" in answer.body


async def test_the_next_endpoint_is_asked_instead(
    black_hole: str, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    described = impatient(black_hole, registry.url, connect_timeout="2s")
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        assert (await house.get(TAG)).status == 200


async def test_an_upstream_whose_answer_does_not_begin(
    registry: FakeRegistry, house: House
) -> None:
    digest = registry.add_blob(APP, DATA)
    registry.fail(Stall(-1))
    for path in (TAG, blob(digest), f"/v2/hub.test/{APP}/tags/list"):
        answer = await house.get(path)
        assert answer.status == 504
        assert b"no answer in time" in answer.body


async def test_an_upstream_whose_manifest_does_not_go_on(
    registry: FakeRegistry, house: House
) -> None:
    registry.fail(Stall(10), kind="manifest", method="GET")
    assert (await house.get(TAG)).status == 504
    registry.heal()
    assert (await house.get(TAG)).status == 200


async def test_a_blob_that_does_not_go_on_is_asked_for_again_from_there(
    registry: FakeRegistry, house: House
) -> None:
    digest = registry.add_blob(APP, DATA)
    registry.fail(Stall(1000), kind="blob", times=1)
    assert (await house.get(blob(digest))).body == DATA
    assert [seen.headers.get("Range") for seen in registry.requests] == [None, "bytes=1000-"]


async def test_the_time_for_an_answer_is_one_however_many_waits_it_takes(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token, HEAD, and GET are late, none of them too late for itself."""
    monkeypatch.setattr(mirror.web.registry, "ANSWER_SECONDS", 0.5)
    registry.auth = BearerAuth()
    registry.add_image(APP)
    registry.fail(Delay(0.2))
    async with mirroring(tmp_path, {"hub.test": registry}) as house:
        started = asyncio.get_running_loop().time()
        answer = await house.get(TAG)
        assert asyncio.get_running_loop().time() - started < 5
        assert error_of(answer) == (504, "UNAVAILABLE")
        assert "so try again" in message_of(answer)
        assert (await house.get_until(TAG, lambda answer: answer.status == 200)).body
        assert registry.count("HEAD", "manifest", status=200) <= 1, "the question had gone on"


def test_it_is_less_than_containerd_waits() -> None:
    """Whose 30 seconds for an answer's headers cannot be configured; fronts wait for the owner."""
    assert mirror.web.registry.ANSWER_SECONDS < relay.ANSWER_SECONDS < 30


async def test_an_answer_that_has_begun_takes_as_long_as_it_takes(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.registry, "ANSWER_SECONDS", 0.5)
    digest = registry.add_blob(APP, DATA)
    registry.fail(Trickle(20_000, chunk_bytes=1000), kind="blob")
    async with mirroring(tmp_path, {"hub.test": registry}) as house:
        assert (await house.get(blob(digest))).body == DATA


async def test_a_transfer_may_take_longer_than_any_silence(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """Longer than both time-outs together, with never a pause as long as one of them."""
    data = DATA[:9_000]
    digest = registry.add_blob(APP, data)
    registry.fail(Trickle(2_000, chunk_bytes=100), kind="blob")
    described = impatient(registry.url, connect_timeout="2s", idle_timeout="2s")
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        started = asyncio.get_running_loop().time()
        assert (await house.get(blob(digest))).body == data
        assert asyncio.get_running_loop().time() - started > 4
    assert registry.count("GET", "blob") == 1


async def test_manifests_and_tokens_do_not_wait_behind_blobs(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.auth = BearerAuth()
    registry.add_image("org/other")
    connections = 20
    many = connections + 4
    digests = [registry.add_blob(APP, b"%d" % n + DATA) for n in range(many)]
    gate = Gate(1000)
    registry.fail(gate, kind="blob", method="GET")
    described = {"endpoints": [registry.url], "max_connections": connections * 3 // 2}
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(house.get(blob(digest))) for digest in digests]
            await registry.until(lambda: sum(s.held for s in registry.requests) >= many - 4)
            assert (await house.get("/v2/hub.test/org/other/manifests/latest")).status == 200
            assert (await house.get(f"/v2/hub.test/{APP}/tags/list")).status == 200
            assert registry.in_flight("blob") == connections
            gate.open()
        assert [task.result().body[-len(DATA) :] for task in tasks] == [DATA] * many
    assert registry.count(kind="token") == 2


@pytest.mark.parametrize("status", [200, 401, 403, 404, 429, 500, 503])
async def test_connections_are_used_again_whatever_was_answered(
    registry: FakeRegistry, house: House, status: int
) -> None:
    if status != 200:
        registry.fail(Status(status, {"Retry-After": "0"}, b'{"errors": []}'))
    for number in range(12):
        registry.add_image(APP, str(number), [b"%d" % number])
        answer = await house.get(f"/v2/hub.test/{APP}/manifests/{number}")
        assert answer.status == {401: 403, 500: 502, 503: 502}.get(status, status)
    assert registry.count() >= 12
    assert registry.connections_accepted == 1
