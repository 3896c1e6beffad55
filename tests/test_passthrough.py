"""Past the disk: what is promised of blobs holds there too."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.downloads import passthrough, tries
from tests.fakes.faults import Cut, Fault, Gate, NoLength, OtherBody, Stall, WrongByte
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.connections import answer_of, connected
from tests.support.house import House, mirroring
from tests.support.layers import (
    UPSTREAM,
    add_layer,
    eventually,
    path_of,
    read_some,
    some_bytes,
    until_idle,
)

DATA = some_bytes(700_000)


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    """Its staging folder cannot be made."""
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        staging = house.storage / "staging"
        await asyncio.to_thread(shutil.rmtree, staging)
        staging.write_bytes(b"in the way")
        yield house


@pytest.mark.parametrize(
    ("wanted", "body"),
    [
        (None, DATA),
        ("bytes=0-99", DATA[:100]),
        ("bytes=0-", DATA),
        ("bytes=0-699999", DATA),
        ("bytes=100000-", DATA[100_000:]),
        ("bytes=300000-399999", DATA[300_000:400_000]),
        ("bytes=-5", DATA[-5:]),
        ("bytes=699999-", DATA[-1:]),
    ],
)
@pytest.mark.parametrize("faults", [[], [Cut(200_000)], [NoLength()]], ids=repr)
async def test_ranges_are_right(
    house: House,
    registry: FakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str | None,
    body: bytes,
    faults: list[Fault],
) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    url = add_layer(registry, DATA)
    if faults:
        registry.fail(*faults, kind="blob", method="GET", times=1)
    answer = await house.get(url, {"Range": wanted} if wanted else {})
    assert (answer.status, answer.ended) == (206 if wanted else 200, "complete")
    assert answer.body == body
    assert await house.metric("mirror_requests_total", kind="blob", cache="unstored") == 1


@pytest.mark.parametrize("wanted", ["bytes=0-99,200-299", "bytes=0-349999,350000-699999"])
async def test_several_ranges_are_right(house: House, registry: FakeRegistry, wanted: str) -> None:
    answer = await house.get(add_layer(registry, DATA), {"Range": wanted})
    assert (answer.status, answer.ended) == (206, "complete")
    boundary = answer.headers["Content-Type"].partition("boundary=")[2].encode()
    parts = [part.partition(b"\r\n\r\n")[2] for part in answer.body.split(b"--" + boundary)[1:-1]]
    spans = [each.split("-") for each in wanted.removeprefix("bytes=").split(",")]
    assert [part.removesuffix(b"\r\n") for part in parts] == [
        DATA[int(first) : int(last) + 1] for first, last in spans
    ]


@pytest.mark.parametrize("at", [5, 350_000, 699_999])
async def test_nobody_gets_a_whole_wrong_blob(
    house: House, registry: FakeRegistry, at: int
) -> None:
    registry.fail(WrongByte(at), kind="blob", method="GET")
    answer = await house.get(add_layer(registry, DATA))
    assert (answer.status, answer.ended) == (200, "short")
    assert len(answer.body) < len(DATA)


async def test_what_has_no_end_is_given_up(
    house: House, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(passthrough, "MAX_UNTOLD_BYTES", 300_000)
    path = add_layer(registry, DATA)
    registry.fail(NoLength(), kind="blob")
    async with asyncio.timeout(10):
        answer = await house.get(path)
    assert (answer.status, answer.ended) == (200, "short")
    assert registry.count("GET", "blob") == 1


async def test_an_endpoint_that_brings_nothing_is_followed_by_the_next(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    path = add_layer(registry, DATA)
    async with FakeRegistry() as other:
        add_layer(other, DATA)
        registry.fail(Cut(0), kind="blob", method="GET")
        endpoints = {"endpoints": [registry.url, other.url]}
        async with mirroring(tmp_path, {UPSTREAM: endpoints}) as house:
            staging = house.storage / "staging"
            await asyncio.to_thread(shutil.rmtree, staging)
            staging.write_bytes(b"in the way")
            answer = await house.get(path)
    assert (answer.status, answer.ended, answer.body) == (200, "complete", DATA)
    assert registry.count("GET", "blob") == 1


@pytest.mark.parametrize("fault", [Stall(1000), WrongByte(5)], ids=repr)
async def test_one_upstream_is_not_held_up_by_what_another_brings(
    registry: FakeRegistry, tmp_path: Path, fault: Fault
) -> None:
    gate = Gate(100_000)
    async with FakeRegistry() as other:
        path = path_of(digest_of(DATA)).replace(UPSTREAM, "other.test")
        add_layer(other, DATA)
        good = add_layer(registry, DATA)
        other.fail(fault, gate, kind="blob")
        upstreams: dict[str, FakeRegistry | dict[str, Any]] = {
            UPSTREAM: registry,
            "other.test": other,
        }
        async with mirroring(tmp_path, upstreams, shutdown_grace="0s") as house:
            assert await read_some(house.url + path, 1)

            async def is_arriving() -> bool:
                return await house.metric("mirror_downloads_active") == 1

            await eventually(is_arriving)
            answer = await house.get(good)
            assert (answer.status, answer.body, answer.ended) == (200, DATA, "complete")
            answer = await house.get(good, {"Range": "bytes=0-99"})
            assert answer.body == DATA[:100]
            assert registry.count("GET", "blob") == 2


@pytest.mark.parametrize("more", [0, 5000], ids=["as long", "longer"])
async def test_what_takes_a_failing_files_place_in_mid_answer_is_hashed_as_well(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    path = add_layer(registry, DATA)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert (await house.get(path)).body == DATA
        await until_idle(house)
    registry.fail(OtherBody(bytes(len(DATA) + more)), NoLength(), kind="blob", method="GET")
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        (file,) = (house.storage / "blobs").glob("*/*/*")
        bad, pread = file.stat().st_ino, os.pread

        def sendfile(_out: int, _file: int, *_: object) -> int:
            raise OSError(errno.EINVAL, "not here")

        def failing(descriptor: int, count: int, offset: int) -> bytes:
            if offset >= 256 * 1024 and os.fstat(descriptor).st_ino == bad:
                raise OSError(errno.EIO, "Input/output error")
            return pread(descriptor, count, offset)

        monkeypatch.setattr(os, "sendfile", sendfile)
        monkeypatch.setattr(os, "pread", failing)
        answer = await house.get(path)
        assert answer.ended == "short"
        assert len(answer.body) < len(DATA)


async def test_an_old_client_is_not_left_without_a_size(
    house: House, registry: FakeRegistry
) -> None:
    registry.fail(NoLength(), kind="blob")
    path = add_layer(registry, DATA)
    async with connected(house.url) as (transport, wire):
        transport.write(f"GET {path} HTTP/1.0\r\nHost: mirror\r\n\r\n".encode())
        stream, body = await answer_of(wire)
    assert stream.status == 502
    assert b"HTTP/1.0 needs one" in body


async def test_after_wrong_bytes_another_endpoint_is_the_first_to_be_asked(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.fail(WrongByte(5), kind="blob")
    path = add_layer(registry, DATA)
    storage = {"path": str(tmp_path / "data"), "max_size": "512KiB"}
    async with FakeRegistry() as second:
        add_layer(second, DATA)
        upstream = {"endpoints": [registry.url, second.url]}
        async with mirroring(tmp_path, {UPSTREAM: upstream}, storage=storage) as house:
            answer = await house.get(path)
            assert (answer.status, answer.ended) == (200, "short")
            for _ in range(2):
                answer = await house.get(path)
                assert (answer.ended, answer.body) == ("complete", DATA)
        assert registry.count("GET", "blob") <= 2
        assert house.stored_blobs() == set()
