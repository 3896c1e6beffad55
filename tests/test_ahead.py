"""What a manifest names begins to arrive when it is served, before anybody asks for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.downloads import shares
from mirror.proxy import ahead
from mirror.store.folder import Folder
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import Delay, Gate, HangUp, Status, Trickle
from tests.fakes.images import Image, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.faulty_disk import FaultyDisk
from tests.support.house import House, mirroring
from tests.support.images import foreign_image
from tests.support.layers import (
    APP,
    UPSTREAM,
    add_layer,
    eventually,
    path_of,
    some_bytes,
    until_idle,
    until_stored,
)

LAYERS = [some_bytes(30_000 + n, seed=n) for n in range(8)]


@asynccontextmanager
async def mirroring_ahead(
    folder: Path, registry: FakeRegistry, rules: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[House]:
    upstream = {"endpoints": [registry.url], "prefetch": True, **(rules or {})}
    async with mirroring(folder, {UPSTREAM: upstream}, **settings) as house:
        yield house


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    async with mirroring_ahead(tmp_path, registry) as house:
        yield house


def manifest_path(reference: str) -> str:
    return f"/v2/{UPSTREAM}/{APP}/manifests/{reference}"


async def ask_for(house: House, reference: str = "latest") -> None:
    assert (await house.get(manifest_path(reference))).status == 200


def blobs_asked(registry: FakeRegistry) -> list[str]:
    return [seen.reference for seen in registry.requests if seen.kind == "blob"]


async def until_all_stored(house: House, image: Image) -> None:
    async def check() -> bool:
        return {image.config, *image.layers} <= house.stored_blobs()

    await eventually(check)


async def nothing_more(house: House) -> None:
    """Long enough for what would begin to have begun."""
    await asyncio.sleep(0.15)
    await until_idle(house)


async def test_all_blobs_of_a_manifest_come_unasked(house: House, registry: FakeRegistry) -> None:
    image = registry.add_image(APP, layers=LAYERS)
    await ask_for(house)
    await until_all_stored(house, image)
    assert sorted(blobs_asked(registry)) == sorted([image.config, *image.layers])
    size_bytes = sum(len(registry.contents[each]) for each in (image.config, *image.layers))
    assert await house.metric("mirror_prefetched_bytes_total", upstream=UPSTREAM) == size_bytes
    await until_idle(house)
    registry.forget()
    answer = await house.get(path_of(image.layers[3]))
    assert answer.body == LAYERS[3]
    assert registry.count() == 0
    assert await house.metric("mirror_requests_total", kind="blob", cache="hit") == 1


async def test_clients_join_what_is_coming(house: House, registry: FakeRegistry) -> None:
    image = registry.add_image(APP, layers=LAYERS)
    gate = Gate(1000)
    registry.fail(gate, kind="blob")
    await ask_for(house)
    await registry.until_count(1 + len(LAYERS), kind="blob")
    async with asyncio.TaskGroup() as clients:
        asked = [clients.create_task(house.get(path_of(each))) for each in image.layers]
        await asyncio.sleep(0.1)
        gate.open()
    assert [each.result().body for each in asked] == LAYERS
    assert sorted(blobs_asked(registry)) == sorted([image.config, *image.layers])
    assert await house.metric("mirror_requests_total", cache="joined") == len(LAYERS)


async def test_of_an_index_only_what_is_asked_for_comes(
    house: House, registry: FakeRegistry
) -> None:
    images = {
        platform: registry.add_image(APP, None, [some_bytes(5000, n)], platform=platform)
        for n, platform in enumerate(("linux/amd64", "linux/arm64"))
    }
    registry.add_index(APP, "latest", images)
    await ask_for(house)
    await nothing_more(house)
    assert blobs_asked(registry) == []
    wanted = images["linux/arm64"]
    await ask_for(house, wanted.digest)
    await until_all_stored(house, wanted)
    assert sorted(blobs_asked(registry)) == sorted([wanted.config, *wanted.layers])


async def test_it_never_spends_a_pull(house: House, registry: FakeRegistry) -> None:
    """Of all that is here to be fetched, only what clients asked for by GET counts as one."""
    images = {
        platform: registry.add_image(APP, None, [some_bytes(5000, n)], platform=platform)
        for n, platform in enumerate(("linux/amd64", "linux/arm64"))
    }
    index = registry.add_index(APP, "latest", images)
    plain = registry.add_image(APP, "plain", LAYERS[:2])
    wanted = images["linux/arm64"]
    asked = [index.digest, wanted.digest, plain.digest]
    for reference in ("latest", wanted.digest, "plain", *asked):
        await ask_for(house, reference)
    await until_all_stored(house, wanted)
    await until_all_stored(house, plain)
    await nothing_more(house)
    pulled = [
        seen
        for seen in registry.requests
        if seen.kind == "manifest" and seen.method == "GET" and seen.status == 200
    ]
    assert len(pulled) == len(asked)
    assert {seen.reference for seen in pulled} <= {"latest", "plain", *asked}
    assert images["linux/amd64"].digest not in {seen.reference for seen in pulled}
    assert len(blobs_asked(registry)) == 2 + 3
    assert await house.metric("mirror_pulls_spent_total", upstream=UPSTREAM) == len(asked)


async def test_head_brings_nothing(house: House, registry: FakeRegistry) -> None:
    registry.add_image(APP, layers=LAYERS)
    assert (await house.head(manifest_path("latest"))).status == 200
    await nothing_more(house)
    assert blobs_asked(registry) == []


async def test_what_is_here_is_not_fetched(house: House, registry: FakeRegistry) -> None:
    image = registry.add_image(APP, layers=LAYERS[:2])
    await house.get(path_of(image.layers[0]))
    registry.forget()
    await ask_for(house)
    await until_all_stored(house, image)
    assert sorted(blobs_asked(registry)) == sorted([image.config, image.layers[1]])


async def test_layers_that_are_not_distributed_are_left_out(
    house: House, registry: FakeRegistry
) -> None:
    foreign = foreign_image(LAYERS[:2])
    for data in LAYERS[:2]:
        registry.add_blob(APP, data)
    registry.add_manifest(APP, *foreign, tag="latest")
    await ask_for(house)
    await nothing_more(house)
    assert blobs_asked(registry) == []


async def test_it_can_be_switched_off(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(APP, layers=LAYERS)
    async with mirroring_ahead(tmp_path, registry, {"prefetch": False}) as house:
        await ask_for(house)
        await nothing_more(house)
    assert blobs_asked(registry) == []


async def test_so_many_at_once_and_no_more(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "MAX_AHEAD", 3)
    image = registry.add_image(APP, layers=LAYERS)
    gate = Gate(1000)
    registry.fail(gate, kind="blob")
    await ask_for(house)
    await registry.until(lambda: sum(seen.held for seen in registry.requests) == 3)
    gate.open()
    await until_all_stored(house, image)
    assert registry.most_at_once == 3


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_WAITING", 3), ("MAX_WAITING_BYTES", 3 * 30_100)]
)
async def test_so_much_waits_and_no_more(
    house: House,
    registry: FakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
) -> None:
    monkeypatch.setattr(ahead, limit, value)
    registry.add_image(APP, layers=LAYERS)
    await ask_for(house)
    await nothing_more(house)
    assert 3 <= len(blobs_asked(registry)) <= 4


async def test_who_asks_does_not_wait_behind_what_nobody_asked_for(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that waits begins at once; of those that were begun one makes room, and comes again
    when it is asked for, from where it was.
    """
    monkeypatch.setattr(shares, "MAX_AHEAD", 2)
    monkeypatch.setattr(shares, "CONNECTIONS", 2)
    image = registry.add_image(APP, layers=LAYERS)
    gate = Gate(10_000)
    registry.fail(gate, kind="blob", times=1)
    second = Gate(10_000)
    registry.fail(second, kind="blob", times=1)
    await ask_for(house)
    await registry.until(lambda: sum(seen.held for seen in registry.requests) >= 1)
    last = await asyncio.wait_for(house.get(path_of(image.layers[-1])), DEADLINE_SECONDS)
    assert last.body == LAYERS[-1]
    second.open()
    gate.open()
    for data, digest in zip(LAYERS, image.layers, strict=True):
        assert (await asyncio.wait_for(house.get(path_of(digest)), DEADLINE_SECONDS)).body == data
    await until_all_stored(house, image)


async def test_what_made_room_keeps_what_had_come(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "CONNECTIONS", 1)
    data = some_bytes(2_000_000, seed=50)
    registry.add_manifest(APP, *foreign_image([], [data]), tag="latest")
    registry.add_blob(APP, data)
    registry.add_blob(APP, b"{}")
    registry.fail(Gate(1_500_000), kind="blob", reference=digest_of(data), times=1)
    await ask_for(house)
    await registry.until(lambda: any(seen.held for seen in registry.requests))
    await asyncio.sleep(0.1)
    assert (await house.get(add_layer(registry, b"another one"))).body == b"another one"
    await registry.until(lambda: any(seen.hung_up for seen in registry.requests))
    assert (await house.get(path_of(digest_of(data)))).body == data
    ranges = [seen.headers.get("Range") for seen in registry.requests if seen.kind == "blob"]
    assert any(each and int(each[6:].split("-")[0]) > 1_000_000 for each in ranges)


async def test_its_failures_are_nobodys(
    house: House, registry: FakeRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    image = registry.add_image(APP, layers=LAYERS)
    registry.fail(Status(404), kind="blob", reference=image.layers[0], times=1)
    registry.fail(HangUp(), kind="blob", reference=image.layers[1], times=1)
    registry.fail(Status(500), kind="blob", reference=image.layers[2], times=1)
    await ask_for(house)
    await nothing_more(house)
    for data, digest in zip(LAYERS, image.layers, strict=True):
        answer = await house.get_until(path_of(digest), lambda answer: answer.status == 200)
        assert answer.body == data
    lines = capfd.readouterr().out.splitlines()
    assert {"debug" in line for line in lines if "download failed" in line} == {True}


async def test_who_joins_one_that_fails_gets_a_download_of_its_own(
    house: House, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP, layers=LAYERS[:1])
    registry.fail(Delay(0.3), Status(404), kind="blob", reference=image.layers[0], times=1)
    await ask_for(house)
    await registry.until(lambda: image.layers[0] in blobs_asked(registry))
    answer = await house.get(path_of(image.layers[0]))
    assert (answer.status, answer.body) == (200, LAYERS[0])


async def test_not_offline(registry: FakeRegistry, tmp_path: Path) -> None:
    image = registry.add_image(APP, layers=LAYERS)
    async with mirroring_ahead(tmp_path, registry, {"prefetch": False}) as house:
        await ask_for(house)
    registry.forget()
    async with mirroring_ahead(tmp_path, registry, offline=True) as house:
        await ask_for(house, image.digest)
        await nothing_more(house)
    assert registry.count() == 0


@pytest.mark.parametrize("status", [Status(429, {"Retry-After": "60"}), HangUp()], ids=repr)
async def test_not_while_the_upstream_has_trouble_with_blobs(
    house: House, registry: FakeRegistry, status: Status | HangUp
) -> None:
    path = add_layer(registry, b"something else")
    image = registry.add_image(APP, layers=LAYERS)
    registry.fail(status, kind="blob")
    assert (await house.get(path)).status >= 400
    registry.forget()
    await ask_for(house)
    await nothing_more(house)
    assert blobs_asked(registry) == []
    assert (await house.get(manifest_path(image.digest))).status == 200


async def test_not_while_the_disk_is_short_of_room(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There would be room for the layer, but little would be left for what is asked for."""
    data = some_bytes(100_000)
    image = registry.add_image(APP, layers=[data])
    monkeypatch.setattr(Folder, "room_bytes", lambda *_: 150_000)
    await ask_for(house)
    await nothing_more(house)
    assert image.layers[0] not in blobs_asked(registry)
    assert (await house.get(path_of(image.layers[0]))).body == data
    await until_stored(house, data)


async def test_not_while_the_disk_fails(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_image(APP, layers=LAYERS)
    FaultyDisk(monkeypatch).fail("ENOSPC", 0, lasting=True)
    await ask_for(house)
    await nothing_more(house)
    assert blobs_asked(registry) == []


async def test_what_was_asked_for_takes_the_room_of_what_was_not(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = some_bytes(100_000)
    registry.add_image(APP, layers=[data])
    monkeypatch.setattr(Folder, "room_bytes", lambda *_: 250_000)
    registry.fail(Gate(1000), kind="blob", reference=digest_of(data))
    await ask_for(house)
    await registry.until(lambda: any(seen.held for seen in registry.requests))
    other = some_bytes(200_000, seed=1)
    answer = await house.get(add_layer(registry, other))
    assert answer.body == other
    await until_stored(house, other)


async def test_when_the_mirror_ends_nobody_waits_for_it(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP, layers=LAYERS)
    registry.fail(Trickle(1000), kind="blob")
    async with mirroring_ahead(tmp_path, registry, shutdown_grace="20s") as house:
        await ask_for(house)
        await registry.until_count(3, kind="blob")
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 5


async def test_another_upstreams_clients_do_not_wait_for_it(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    data = LAYERS[0]
    async with FakeRegistry() as other:
        other.add_image(APP, layers=[data])
        other.fail(Gate(100), kind="blob")
        path = add_layer(registry, data)
        rules = {"endpoints": [other.url], "prefetch": True}
        async with mirroring(tmp_path, {UPSTREAM: registry, "other.test": rules}) as house:
            assert (await house.get(f"/v2/other.test/{APP}/manifests/latest")).status == 200
            await other.until(lambda: any(seen.held for seen in other.requests))
            assert (await house.get(path)).body == data
            await until_stored(house, data)


async def test_a_hot_manifest_is_looked_at_now_and_then(
    house: House, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP, layers=LAYERS[:1])
    registry.fail(Status(404), kind="blob", reference=image.layers[0])
    for _ in range(20):
        await ask_for(house)
    await nothing_more(house)
    assert blobs_asked(registry).count(image.layers[0]) == 1
