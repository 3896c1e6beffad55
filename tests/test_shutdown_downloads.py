"""Closing a mirror while blobs are on their way in."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.client import raw_get
from tests.fakes.faults import Cut, Fault, Gate
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, eventually, read_some, some_bytes, until_idle

DATA = some_bytes(10_000_000)


async def open_when_closing(house: House, gate: Gate) -> None:
    async def is_closing() -> bool:
        try:
            return (await house.get("/readyz")).status == 503
        except ConnectionRefusedError:
            return True

    await eventually(is_closing)
    gate.open()


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Tasks that were destroyed, and exceptions that nobody saw, are told in asyncio's log."""
    yield
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_a_download_without_clients_is_left_for_the_next_start(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    gate = Gate(5_000_000)
    registry.fail(gate, kind="blob")
    path = add_layer(registry, DATA)
    async with mirroring(tmp_path, {UPSTREAM: registry}, shutdown_grace="1h") as house:
        await read_some(house.url + path, 4_000_000)
    assert house.stored_blobs() == set()
    gate.open()
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert (await house.get(path)).body == DATA
    assert int(registry.requests[-1].headers["Range"][6:-1]) >= 3_999_999


async def test_an_answer_may_end_with_its_download(registry: FakeRegistry, tmp_path: Path) -> None:
    gate = Gate(5_000_000)
    registry.fail(gate, kind="blob")
    async with (
        asyncio.TaskGroup() as tasks,
        mirroring(tmp_path, {UPSTREAM: registry}, shutdown_grace="20s") as house,
    ):
        client = tasks.create_task(raw_get(house.url + add_layer(registry, DATA)))
        await gate.reached.wait()
        tasks.create_task(open_when_closing(house, gate))
    assert (client.result().status, client.result().ended) == (200, "complete")
    assert client.result().body == DATA
    assert house.stored_blobs() == {digest_of(DATA)}


@pytest.mark.parametrize("wanted", [None, "bytes=9000000-"])
@pytest.mark.parametrize("faults", [[], [Cut(5_000_001)]], ids=repr)
async def test_beyond_the_grace_it_is_cut_off_cleanly(
    registry: FakeRegistry, tmp_path: Path, wanted: str | None, faults: list[Fault]
) -> None:
    gate, far = Gate(500_000), Gate(100_000)
    path = add_layer(registry, DATA)
    registry.fail(gate, *faults, kind="blob", times=1)
    registry.fail(far, *faults, kind="blob")
    headers = {"Range": wanted} if wanted else None
    async with (
        asyncio.TaskGroup() as tasks,
        mirroring(tmp_path, {UPSTREAM: registry}, shutdown_grace="0.1s") as house,
    ):
        client = tasks.create_task(raw_get(house.url + path, headers))
        await (far if wanted == "bytes=9000000-" else gate).reached.wait()
    assert client.result().ended == "short"
    assert house.stored_blobs() == set()
    registry.heal()
    registry.forget()
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert (await house.get(path)).body == DATA
        await until_idle(house)
        assert house.staged() == []
    assert registry.body_bytes() < len(DATA) - 400_000
