"""Bytes that are not what was asked for: nobody gets the whole of them, and they are not kept."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.client import RawResponse
from tests.fakes.faults import Fault, Garbage, Gate, NoLength, OtherBody, Status, WrongByte
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import (
    APP,
    UPSTREAM,
    add_layer,
    eventually,
    get_behind_gate,
    path_of,
    some_bytes,
    until_idle,
    until_stored,
)
from tests.support.replies import error_of

SOME = some_bytes(300_000)
MISMATCHES = "mirror_digest_mismatches_total"


@pytest.fixture(params=[0, 1], ids=["one process", "fronted"])
async def house(
    registry: FakeRegistry, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}, fronts=request.param) as house:
        yield house


async def assert_nothing_is_kept(house: House, mismatches: int = 1) -> None:
    await until_idle(house)
    assert house.stored_blobs() == set()
    assert house.staged() == []
    assert await house.metric(MISMATCHES, upstream=UPSTREAM) == mismatches


def is_cut_short(answer: RawResponse, size: int) -> bool:
    return answer.ended == "short" and len(answer.body) < size


@pytest.mark.parametrize(
    ("framing", "size", "at"),
    [
        *(
            ([], size, at)
            for size in (1, 1024, 1025, 300_000, 5_000_000)
            for at in sorted({0, size // 2, size - 1})
        ),
        ([NoLength()], 1024, 0),
        ([NoLength()], 300_000, 299_999),
        ([NoLength(chunked=False)], 1024, 0),
        ([NoLength(chunked=False)], 300_000, 299_999),
    ],
)
async def test_a_wrong_byte_in_flight(
    house: House, registry: FakeRegistry, framing: list[Fault], size: int, at: int
) -> None:
    data = some_bytes(size)
    path = add_layer(registry, data)
    gate = Gate(0)
    registry.fail(gate, WrongByte(at), *framing, kind="blob", times=1)
    answer = await get_behind_gate(house.url + path, gate)
    assert answer.status == 200
    assert is_cut_short(answer, size)
    await assert_nothing_is_kept(house)
    answer = await house.get(path)
    assert (answer.status, answer.body, answer.ended) == (200, data, "complete")
    await until_stored(house, data)
    assert await house.metric(MISMATCHES) == 1


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=0-",
        "bytes=0-299999",
        "bytes=0-999999",
        "bytes=-300000",
        "bytes=200000-",
        "bytes=200000-999999",
        "bytes=0-99,100-",
        "bytes=100-,0-99",
        "bytes=100000-,0-99999",
    ],
)
async def test_no_range_completes_a_wrong_blob(
    house: House, registry: FakeRegistry, wanted: str
) -> None:
    """Neither alone, nor together with what the client had before a break."""
    data = some_bytes(300_000)
    path = add_layer(registry, data)
    gate = Gate(0)
    registry.fail(gate, WrongByte(5), kind="blob", times=1)
    answer = await get_behind_gate(house.url + path, gate, {"Range": wanted})
    assert (answer.status, answer.ended) == (206, "short")
    await assert_nothing_is_kept(house)


async def test_a_herd_and_its_late_comers_are_all_cut_short(
    house: House, registry: FakeRegistry
) -> None:
    data = some_bytes(3_000_000)
    path = add_layer(registry, data)
    gate = Gate(2_000_000)
    registry.fail(gate, WrongByte(1_000_000), kind="blob", times=1)
    async with asyncio.TaskGroup() as clients:
        herd = [clients.create_task(house.get(path)) for _ in range(10)]
        await gate.reached.wait()
        herd += [clients.create_task(house.get(path)) for _ in range(10)]

        async def is_complete() -> bool:
            return await house.metric("mirror_download_followers") == len(herd)

        await eventually(is_complete)
        gate.open()
    assert all(is_cut_short(each.result(), len(data)) for each in herd)
    assert registry.count() == 1
    await assert_nothing_is_kept(house)
    assert (await house.get(path)).body == data


@pytest.mark.parametrize(
    "faults", [[Status(200, {}, b"")], [Status(200, {}, b""), NoLength()]], ids=repr
)
async def test_nothing_in_place_of_a_blob_is_not_taken_for_one(
    house: House, registry: FakeRegistry, faults: list[Fault]
) -> None:
    data = some_bytes(5000)
    path = add_layer(registry, data)
    registry.fail(*faults, kind="blob")
    answers = [await house.get(path) for _ in range(5)]
    assert all(answer.status == 502 or answer.ended == "short" for answer in answers)
    await until_idle(house)
    assert house.stored_blobs() == set()
    registry.heal()
    assert (await house.get(path)).body == data


async def test_a_web_page_in_place_of_a_blob(house: House, registry: FakeRegistry) -> None:
    data = some_bytes(5000)
    path = add_layer(registry, data)
    registry.fail(Garbage(), kind="blob", times=1)
    assert error_of(await house.get(path)) == (502, "UNKNOWN")
    await assert_nothing_is_kept(house, mismatches=0)
    assert (await house.get(path)).body == data


async def test_a_wrong_manifest_is_a_bad_gateway(house: House, registry: FakeRegistry) -> None:
    image = registry.add_image(APP)
    path = f"/v2/{UPSTREAM}/{APP}/manifests/{image.digest}"
    registry.fail(WrongByte(20), kind="manifest", method="GET", times=1)
    answer = await house.get(path)
    assert answer.status == 502
    assert image.digest.encode() in answer.body
    await assert_nothing_is_kept(house)
    answer = await house.get(path)
    assert (answer.status, answer.body) == (200, image.manifest)


async def test_a_wrong_manifest_behind_a_tag_is_a_bad_gateway(
    house: House, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP, "latest")
    path = f"/v2/{UPSTREAM}/{APP}/manifests/latest"
    registry.fail(WrongByte(20), kind="manifest", method="GET", times=1)
    assert (await house.get(path)).status == 502
    await assert_nothing_is_kept(house)
    answer = await house.get(path)
    assert (answer.status, answer.body) == (200, image.manifest)


@pytest.mark.parametrize("fault", [WrongByte(5), OtherBody(b"short"), Garbage()], ids=repr)
async def test_an_endpoint_that_sends_wrong_bytes_is_asked_last_for_them(
    registry: FakeRegistry, tmp_path: Path, fault: Fault
) -> None:
    path = add_layer(registry, SOME)
    registry.fail(fault, kind="blob", method="GET")
    async with FakeRegistry() as second:
        add_layer(second, SOME)
        described = {"endpoints": [registry.url, second.url]}
        async with mirroring(tmp_path, {UPSTREAM: described}) as house:
            await house.get(path)
            await until_idle(house)
            assert (await house.get(path)).body == SOME


async def test_a_size_that_a_manifest_makes_up_takes_no_layer_away(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """Whoever may push a manifest may name another image's layer, and any size."""
    image = registry.add_image(APP, layers=[SOME])
    made_up = json.loads(image.manifest)
    made_up["layers"][0]["size"] = 5
    registry.add_manifest(APP, json.dumps(made_up).encode(), image.media_type, "made-up")
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        for tag in ("latest", "made-up"):
            assert (await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/{tag}")).status == 200
        path = path_of(digest_of(SOME))
        answer = await house.get(path, {"Range": "bytes=10-99"})
        assert (answer.status, answer.body) == (206, SOME[10:100])
        assert (await house.get(path)).body == SOME
        await until_idle(house)
        assert (await house.head(path)).headers["Content-Length"] == str(len(SOME))
