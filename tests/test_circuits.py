"""Endpoints that fail are left alone for a while, each class of request for itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.errors import UpstreamBroken, UpstreamUnreachable
from mirror.upstream import circuits
from mirror.upstream.circuits import Circuit, Failure
from tests.fakes.auth import BearerAuth
from tests.fakes.faults import Cut, Fault, Gate, HangUp, Status
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.replies import error_of, message_of
from tests.support.stopwatch import Stopwatch

APP = "org/app"
TAG = f"/v2/hub.test/{APP}/manifests/latest"
DATA = bytes(range(256)) * 100
DOWN = UpstreamUnreachable("hub.test", "no route")
BROKEN = UpstreamBroken("hub.test", "answered 500")


class Bench:
    """A circuit on a clock that is moved by hand, without jitter."""

    def __init__(self) -> None:
        self.now = 100.0
        self.changes: list[bool] = []
        self.circuit = Circuit(self._note, lambda: self.now, lambda: 1.0)

    def _note(self, error: str | None) -> None:
        self.changes.append(error is not None)

    def fail(self, failure: Failure) -> bool:
        """Whether a request was let through, to fail like this."""
        trial = self.circuit.enter()
        if trial is None:
            return False
        with trial:
            trial.failed(failure, DOWN)
        return True

    def answer(self, status: int) -> bool:
        trial = self.circuit.enter()
        if trial is None:
            return False
        with trial:
            trial.answered(status, BROKEN)
        return True


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("failures", "is_open"),
    [
        ([Failure.NO_CONNECTION], True),
        ([Failure.NO_ANSWER], True),
        ([Failure.BAD_ANSWER] * 4, False),
        ([Failure.BAD_ANSWER] * 5, True),
    ],
    ids=str,
)
def test_what_opens_a_circuit(bench: Bench, failures: list[Failure], is_open: bool) -> None:
    assert all(bench.fail(each) for each in failures)
    assert (bench.circuit.enter() is None) == is_open
    assert bench.changes == [True] * is_open


@pytest.mark.parametrize(("status", "is_open"), [(500, True), (503, True), (501, False)])
def test_five_times_5xx_opens_it(bench: Bench, status: int, is_open: bool) -> None:
    for _ in range(5):
        assert bench.answer(status)
    assert (bench.circuit.enter() is None) == is_open


@pytest.mark.parametrize("status", [200, 206, 401, 403, 404, 429, 501])
def test_an_answer_of_a_living_server_does_not_count_and_closes_it(
    bench: Bench, status: int
) -> None:
    for _ in range(3):
        for each in (500, 500, 500, 500, status):
            assert bench.answer(each)
    bench.fail(Failure.NO_CONNECTION)
    bench.now += 1
    assert bench.answer(status)
    assert bench.circuit.enter() is not None
    assert bench.changes == [True, False]


def test_it_stays_open_for_longer_each_time_its_probe_fails_and_begins_anew_once_closed(
    bench: Bench,
) -> None:
    bench.fail(Failure.NO_CONNECTION)
    for seconds in (1, 2, 4, 8, 10, 10):
        bench.now += seconds - 0.01
        assert bench.circuit.enter() is None
        bench.now += 0.02
        assert bench.fail(Failure.NO_CONNECTION)
    assert bench.changes == [True], "told once"
    bench.now += 11
    assert bench.answer(200)
    bench.fail(Failure.NO_CONNECTION)
    bench.now += 1.01
    assert bench.circuit.enter() is not None


def test_one_request_probes_and_the_others_are_kept_out_until_it_is_back(bench: Bench) -> None:
    bench.fail(Failure.NO_CONNECTION)
    bench.now += 1
    probe = bench.circuit.enter()
    assert probe is not None
    with probe:
        bench.now += 60
        assert bench.circuit.enter() is None
    # It was cancelled, say, and had nothing to tell: the next one probes.
    assert bench.circuit.enter() is not None


def test_requests_that_were_under_way_as_it_opened_do_not_keep_it_open_for_longer(
    bench: Bench,
) -> None:
    late = [bench.circuit.enter() for _ in range(9)]
    for trial in late:
        assert trial is not None
        trial.failed(Failure.NO_CONNECTION, DOWN)
    bench.now += 1
    assert bench.circuit.enter() is not None


def test_only_where_no_connection_was_to_be_had_is_there_nothing_to_ask(bench: Bench) -> None:
    assert bench.circuit.refusal("hub.test") is None
    bench.fail(Failure.NO_ANSWER)
    assert bench.circuit.refusal("hub.test") is None
    bench.now += 1
    bench.fail(Failure.NO_CONNECTION)
    bench.now += 0.5
    refusal = bench.circuit.refusal("hub.test")
    assert isinstance(refusal, UpstreamUnreachable)
    assert refusal.message.startswith("hub.test: no route")
    assert "the next try is in 1.5 s" in refusal.message


def test_the_time_open_is_jittered() -> None:
    times = []
    for _ in range(20):
        circuit = Circuit(clock=lambda: 0.0)
        with circuit.insist() as trial:
            trial.failed(Failure.NO_CONNECTION, DOWN)
        refusal = circuit._open
        assert refusal is not None
        times.append(refusal.ends_at)
    assert len(set(times)) > 10
    assert 0.75 <= min(times) <= max(times) <= 1


# --- Over sockets ---------------------------------------------------------------------------------


@pytest.fixture
async def second() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as second:
        second.add_image(APP)
        yield second


@pytest.fixture
def stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "FIRST_OPEN_SECONDS", 600)


def asked_each_time(*endpoints: str, **settings: Any) -> dict[str, Any]:
    return {"endpoints": list(endpoints), "tag_ttl": "0s", "not_found_ttl": "0s", **settings}


async def failed_requests(house: House) -> float:
    return await house.metric("mirror_upstream_requests_total", status="0")


async def is_open(house: House, endpoint: str, request_class: str = "control") -> bool:
    labels = {"upstream": "hub.test", "endpoint": endpoint, "class": request_class}
    return await house.metric("mirror_upstream_circuit_open", **labels) == 1


@pytest.mark.usefixtures("stays_open")
async def test_an_endpoint_that_refuses_connections_is_tried_once(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    await registry.stop()
    described = asked_each_time(registry.url, second.url)
    with capture_logs() as lines:
        async with mirroring(tmp_path, {"hub.test": described}) as house:
            for _ in range(10):
                assert (await house.get(TAG)).status == 200
            assert await failed_requests(house) == 1
            assert await is_open(house, registry.url)
            assert not await is_open(house, second.url)
            assert not await is_open(house, registry.url, "blobs")
    told = [line for line in lines if line["event"].startswith("endpoint")]
    assert [(line["event"], line["class"]) for line in told] == [
        ("endpoint is left alone", "control")
    ]


@pytest.mark.usefixtures("stays_open")
async def test_a_black_hole_costs_its_time_out_once_and_not_with_every_request(
    black_hole: str, second: FakeRegistry, tmp_path: Path
) -> None:
    for number in range(20):
        second.add_image(APP, f"t{number}", [b"%d" % number])
    described = asked_each_time(black_hole, second.url, connect_timeout="1s")
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        paths = [TAG.replace("latest", f"t{number}") for number in range(10)]
        with Stopwatch() as watch:
            answers = await asyncio.gather(*map(house.get, paths))
            assert {answer.status for answer in answers} == {200}
            assert await failed_requests(house) == 10, "each waited once, for HEAD or for GET"
            for number in range(10, 20):
                assert (await house.get(TAG.replace("latest", f"t{number}"))).status == 200
        assert await failed_requests(house) == 10
        assert watch.seconds < 8


@pytest.mark.usefixtures("stays_open")
async def test_where_nobody_can_be_connected_to_a_request_fails_at_once_and_says_why(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    await registry.stop()
    async with mirroring(tmp_path, {"hub.test": asked_each_time(registry.url)}) as house:
        for _ in range(4):
            assert error_of(await house.get(TAG)) == (504, "UNAVAILABLE")
        answer = await house.get(TAG)
        assert await failed_requests(house) == 1
        assert "cannot be reached: Connection refused." in message_of(answer)
        assert "the next try is in" in message_of(answer)


@pytest.mark.parametrize("fault", [Status(500), HangUp()], ids=repr)
@pytest.mark.usefixtures("stays_open")
async def test_an_endpoint_that_fails_for_one_blob_is_asked_for_others_all_the_same(
    registry: FakeRegistry, tmp_path: Path, fault: Fault
) -> None:
    bad, good = registry.add_blob(APP, b"bad"), registry.add_blob(APP, DATA)
    registry.fail(fault, kind="blob", reference=bad)
    async with mirroring(tmp_path, {"hub.test": registry}) as house:
        for _ in range(6):
            assert (await house.get(f"/v2/hub.test/{APP}/blobs/{bad}")).status in (502, 504)
        assert await is_open(house, registry.url, "blobs")
        assert (await house.get(f"/v2/hub.test/{APP}/blobs/{good}")).body == DATA
        assert not await is_open(house, registry.url, "blobs")


@pytest.mark.usefixtures("stays_open")
async def test_after_five_times_5xx_the_next_endpoint_is_asked_at_once(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    registry.fail(Status(503))
    described = asked_each_time(registry.url, second.url)
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        for _ in range(10):
            assert (await house.get(TAG)).status == 200
        assert registry.count() == 5
        assert (await house.get(TAG.replace("latest", "no-such-tag"))).status == 502
        assert registry.count() == 6, "what the second denies, the first might have had"


async def test_one_request_tries_whether_an_endpoint_is_back(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuits, "FIRST_OPEN_SECONDS", 0)
    registry.add_image(APP)
    for number in range(6):
        second.add_image(APP, f"t{number}", [b"%d" % number])
    await registry.stop()
    described = asked_each_time(registry.url, second.url)
    async with mirroring(tmp_path, {"hub.test": described}) as house, asyncio.TaskGroup() as group:
        assert (await house.get(TAG)).status == 200
        await registry.start()
        gate = Gate(-1)
        registry.fail(gate)
        probe = group.create_task(house.get(TAG))
        await gate.reached.wait()
        for number in range(6):
            assert (await house.get(TAG.replace("latest", f"t{number}"))).status == 200
        assert registry.count() == 1
        gate.open()
        assert (await probe).status == 200
        assert not await is_open(house, registry.url)


@pytest.mark.usefixtures("stays_open")
async def test_a_token_server_that_is_down_is_tried_once(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    async with FakeRegistry() as server:
        registry.auth = server.auth = BearerAuth(realm=f"{server.url}/token")
        described = asked_each_time(registry.url, token_realms=[server.authority])
        await server.stop()
        async with mirroring(tmp_path, {"hub.test": described}) as house:
            for _ in range(4):
                assert (await house.get(TAG)).status == 504
            assert await failed_requests(house) == 1
            assert await is_open(house, registry.url, "tokens")
            assert not await is_open(house, registry.url, "control")


async def test_a_transfer_that_gets_nowhere_goes_on_at_the_next_endpoint(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    digest = registry.add_blob(APP, DATA)
    second.add_blob(APP, DATA)
    registry.fail(Cut(0), kind="blob", method="GET")
    described = asked_each_time(registry.url, second.url)
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        assert (await house.get(f"/v2/hub.test/{APP}/blobs/{digest}")).body == DATA
    assert registry.count("GET", "blob") == 1
    assert second.count("GET", "blob") == 1
