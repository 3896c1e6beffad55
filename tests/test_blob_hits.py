"""Blobs that are here: from memory where they are small, by sendfile where they are not; and the
same answers while they are still arriving.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.client import RawResponse
from tests.fakes.faults import Trickle
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import APP, UPSTREAM, add_layer, path_of, some_bytes, until_idle

SMALL = some_bytes(2100)
LARGE = some_bytes(300_000, seed=1)
COLD = some_bytes(300_000, seed=2)


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house


@pytest.fixture
async def blobs(house: House, registry: FakeRegistry) -> list[tuple[str, bytes]]:
    """Paths and contents: one in memory, one in a file, one that the first GET begins to fetch."""
    registry.fail(Trickle(20_000_000, chunk_bytes=20_000), kind="blob", reference=digest_of(COLD))
    for data in (SMALL, LARGE):
        await house.get(add_layer(registry, data))
    await until_idle(house)
    registry.forget()
    return [(add_layer(registry, data), data) for data in (SMALL, LARGE, COLD)]


def assert_is_octets(answer: RawResponse, data: bytes) -> None:
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == f'"{digest_of(data)}"'
    assert answer.headers["Docker-Content-Digest"] == digest_of(data)
    assert answer.headers["OCI-Namespace"] == UPSTREAM
    assert "Content-Encoding" not in answer.headers
    assert int(answer.headers["Content-Length"]) == len(answer.body)


async def test_the_whole(house: House, blobs: list[tuple[str, bytes]]) -> None:
    for path, data in blobs:
        answer = await house.get(path, {"Accept-Encoding": "gzip, zstd"})
        assert (answer.status, answer.ended, answer.body) == (200, "complete", data)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert_is_octets(answer, data)


async def test_a_hit_asks_nobody(house: House, registry: FakeRegistry) -> None:
    for data in (SMALL, LARGE):
        path = add_layer(registry, data)
        await house.get(path)
        await until_idle(house)
        registry.forget()
        for headers in ({}, {"Range": "bytes=5-"}, {"Range": "bytes=1-2,5-6"}):
            assert (await house.get(path, headers)).ended == "complete"
        assert (await house.head(path)).status == 200
        assert registry.count() == 0
    assert await house.metric("mirror_requests_total", cache="hit", kind="blob") == 8


async def test_hits_outlive_the_process(registry: FakeRegistry, tmp_path: Path) -> None:
    paths = {add_layer(registry, data): data for data in (SMALL, LARGE)}
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        for path, data in paths.items():
            assert (await house.get(path)).body == data
            await until_idle(house)
    registry.forget()
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        for path, data in paths.items():
            assert (await house.get(path)).body == data
        assert await house.metric("mirror_cache_blobs") == 2
        assert await house.metric("mirror_cache_bytes") == len(SMALL) + len(LARGE)
    assert registry.count() == 0


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, None),
        ("bytes=-500", -500, None),
        ("bytes=0-", 0, None),
        ("bytes=2000-999999", 2000, None),
        ("bytes=-999999", 0, None),
        ("bytes=2000-99999999999999999999", 2000, None),
        ("Bytes = 5-6", 5, 7),
        ("bytes=5-6,999999-", 5, 7),
    ],
)
async def test_one_range(
    house: House, blobs: list[tuple[str, bytes]], wanted: str, start: int, end: int | None
) -> None:
    for path, data in blobs:
        answer = await house.get(path, {"Range": wanted, "Accept-Encoding": "gzip"})
        first, stop, _ = slice(start, end).indices(len(data))
        assert (answer.status, answer.ended, answer.body) == (206, "complete", data[first:stop])
        assert answer.headers["Content-Range"] == f"bytes {first}-{stop - 1}/{len(data)}"
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert_is_octets(answer, data)


@pytest.mark.parametrize(
    "wanted", ["bytes=500-0", "bytes=500000-1000000", "bytes=-0", "bytes=5-3,9-8"]
)
async def test_ranges_that_cannot_be(
    house: House, blobs: list[tuple[str, bytes]], wanted: str
) -> None:
    for path, data in blobs:
        answer = await house.get(path, {"Range": wanted})
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(data)}")
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "wanted",
    [
        "lines=0-9",
        "bytes=-",
        "bytes=a-b",
        "bytes=0-9;10-19",
        "bytes=1-2,x",
        "bytes=" + ",".join(f"{each}-{each}" for each in range(1025)),
        "bytes=" + ",".join(["0-1000"] * 500),
    ],
    ids=lambda wanted: str(wanted)[:20],
)
async def test_ranges_that_are_overlooked(
    house: House, blobs: list[tuple[str, bytes]], wanted: str
) -> None:
    for path, data in blobs:
        answer = await house.get(path, {"Range": wanted})
        assert (answer.status, answer.body, answer.ended) == (200, data, "complete")
        assert "Content-Range" not in answer.headers
        assert_is_octets(answer, data)


def parts_of(answer: RawResponse) -> list[tuple[str, bytes]]:
    """Content-Range and bytes of each part."""
    boundary = answer.headers["Content-Type"].removeprefix("multipart/byteranges; boundary=")
    first, *parts, last = answer.body.split(f"\r\n--{boundary}".encode())
    assert (first, last) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        lines = head.decode().strip().split("\r\n")
        fields = dict(line.split(": ") for line in lines)
        assert fields["Content-Type"] == "application/octet-stream"
        found.append((fields["Content-Range"], body))
    return found


@pytest.mark.parametrize(
    ("wanted", "slices"),
    [
        ("bytes=0-9,20-29", [(0, 10), (20, 30)]),
        ("bytes=1000-1999, 5-5 ,-1", [(1000, 2000), (5, 6), (-1, None)]),
        ("bytes=5-9,7-11", [(5, 10), (7, 12)]),
        ("bytes=0-0,999999-,-100", [(0, 1), (-100, None)]),
        ("bytes=2000-,0-10", [(2000, None), (0, 11)]),
        (
            "bytes=" + ",".join(f"{each}-{each}" for each in range(1023, -1, -1)),
            [(each, each + 1) for each in range(1023, -1, -1)],
        ),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_several_ranges(
    house: House, blobs: list[tuple[str, bytes]], wanted: str, slices: list[tuple[int, int | None]]
) -> None:
    for path, data in blobs:
        answer = await house.get(path, {"Range": wanted})
        assert (answer.status, answer.ended) == (206, "complete")
        assert_is_octets(answer, data)
        windows = [slice(*each).indices(len(data)) for each in slices]
        assert parts_of(answer) == [
            (f"bytes {start}-{end - 1}/{len(data)}", data[start:end]) for start, end, _ in windows
        ]


@pytest.mark.parametrize(
    ("name", "condition", "status"),
    [
        ("If-None-Match", '"{digest}"', 304),
        ("If-None-Match", 'W/"{digest}"', 304),
        ("If-None-Match", '"x", "{digest}"', 304),
        ("If-None-Match", "*", 304),
        ("If-None-Match", '"x"', 206),
        ("If-Range", '"{digest}"', 206),
        ("If-Range", '"x"', 200),
        ("If-Range", 'W/"{digest}"', 200),
        ("If-Range", "Wed, 21 Oct 2015 07:28:00 GMT", 200),
    ],
)
async def test_conditions(
    house: House, blobs: list[tuple[str, bytes]], name: str, condition: str, status: int
) -> None:
    for path, data in blobs:
        value = condition.replace("{digest}", digest_of(data))
        answer = await house.get(path, {name: value, "Range": "bytes=5-9"})
        assert answer.status == status
        assert answer.body == {304: b"", 206: data[5:10], 200: data}[status]
        assert answer.headers["ETag"] == f'"{digest_of(data)}"'


async def test_head_takes_no_range(house: House, blobs: list[tuple[str, bytes]]) -> None:
    for path, data in blobs:
        for headers in ({}, {"Range": "bytes=5-9"}, {"Range": "bytes=999999-"}):
            answer = await house.head(path, headers)
            assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(data)))
            assert answer.headers["Accept-Ranges"] == "bytes"
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert "Content-Range" not in answer.headers


async def test_head_with_the_digest_that_is_known(
    house: House, blobs: list[tuple[str, bytes]]
) -> None:
    for path, data in blobs:
        answer = await house.head(path, {"If-None-Match": f'"{digest_of(data)}"'})
        assert answer.status == 304


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_sha512(house: House, registry: FakeRegistry, data: bytes) -> None:
    digest = digest_of(data, "sha512")
    registry.contents[digest] = data
    registry.repository(APP).blobs.add(digest)
    for wanted, status, expected in ((None, 200, data), ("bytes=5-", 206, data[5:])):
        answer = await house.get(path_of(digest), {"Range": wanted} if wanted else None)
        assert (answer.status, answer.body, answer.ended) == (status, expected, "complete")
        assert answer.headers["Docker-Content-Digest"] == digest
    await until_idle(house)
    assert registry.count() == 1
    assert house.stored_blobs() == {digest}


async def test_bytes_that_look_compressed_stay_as_they_are(
    house: House, registry: FakeRegistry
) -> None:
    data = b"\x1f\x8b\x08\x00" + some_bytes(100_000)
    path = add_layer(registry, data)
    for encoding in ("gzip", "identity", "gzip;q=1.0, *;q=0.5"):
        answer = await house.get(path, {"Accept-Encoding": encoding})
        assert answer.body == data
    assert registry.requests[0].headers["Accept-Encoding"] == "identity"


async def test_a_client_that_stays_gets_one_answer_after_the_other(
    house: House, registry: FakeRegistry
) -> None:
    """Sendfile, memory and several ranges on one connection, as a client's pool uses it."""
    large, small = add_layer(registry, LARGE), add_layer(registry, SMALL)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for path, data in ((large, LARGE), (small, SMALL), (large, LARGE), (small, SMALL)):
            async with session.get(house.url + path) as answer:
                assert await answer.read() == data
            ranged = {"Range": "bytes=1-2,5-"}
            async with session.get(house.url + path, headers=ranged) as answer:
                assert answer.status == 206
                assert data[5:] in await answer.read()
