"""What an earlier download left in staging is where the next one begins, and is never trusted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.downloads import tries
from mirror.downloads.arrival import Arrival
from mirror.downloads.downloads import Downloads
from tests.fakes.faults import (
    Cut,
    Fault,
    FromTheStart,
    HangUp,
    IgnoreRange,
    NoLength,
    Status,
    WrongTotal,
)
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, some_bytes, until_idle

DATA = some_bytes(3_000_000)
HALF = len(DATA) // 2


@pytest.fixture
def path(registry: FakeRegistry) -> str:
    return add_layer(registry, DATA)


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path, path: str) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house


def leave(folder: Path, data: bytes, progress: bytes) -> Path:
    """What a killed mirror leaves of DATA."""
    left = folder / "data" / "staging" / "sha256" / digest_of(DATA).removeprefix("sha256:")
    left.mkdir(parents=True)
    (left / "data").write_bytes(data)
    (left / "progress").write_bytes(progress)
    return left


async def pulled(house: House, registry: FakeRegistry, path: str) -> tuple[bytes, int]:
    """(what one client got, what the upstream sent for it)."""
    registry.forget()
    answer = await house.get(path)
    assert answer.status == 200
    await until_idle(house)
    return answer.body, registry.body_bytes()


@pytest.mark.parametrize(
    ("data", "progress", "fetched_bytes"),
    [
        (DATA[:HALF], b"0 %d\n" % HALF, len(DATA) - HALF + 1),
        (DATA[:HALF], b"0 1000\n1000 %d\n" % HALF, len(DATA) - HALF + 1),
        (DATA[:HALF], b"0 1000\n1000 15", len(DATA) - 999),
        (DATA[:1000], b"0 %d\n" % HALF, len(DATA) - 999),
        (DATA, b"0 %d\n" % len(DATA), 1),
        (DATA, b"0 1000\n2000000 3000000\n", 1_999_001),
        (DATA[:HALF], b"not a progress\n", len(DATA)),
        (b"", b"0 1000\n", len(DATA)),
    ],
    ids=[
        "half of it",
        "in two writes",
        "a torn line",
        "bytes that never reached the disk",
        "all of it, uncommitted",
        "its start and its end",
        "nonsense",
        "nothing",
    ],
)
async def test_a_download_goes_on_from_what_is_on_the_disk(
    registry: FakeRegistry,
    tmp_path: Path,
    path: str,
    data: bytes,
    progress: bytes,
    fetched_bytes: int,
) -> None:
    leave(tmp_path, data, progress)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        body, sent_bytes = await pulled(house, registry, path)
        assert body == DATA
        assert sent_bytes <= fetched_bytes
        assert house.stored_blobs() == {digest_of(DATA)}
        assert house.staged() == []


@pytest.mark.parametrize(
    ("data", "progress"),
    [
        (b"?" * HALF, b"0 %d\n" % HALF),
        (DATA + b"more than there is", b"0 %d\n" % (len(DATA) + 18)),
        (DATA + b"more", b"3000001 3000003\n"),
    ],
    ids=["wrong bytes", "too many", "behind the end"],
)
async def test_what_is_wrong_on_the_disk_is_dropped_from_the_start(
    registry: FakeRegistry, tmp_path: Path, path: str, data: bytes, progress: bytes
) -> None:
    leave(tmp_path, data, progress)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        first = await house.get(path)
        assert first.status == 502 or first.ended == "short"
        await until_idle(house)
        assert house.staged() == []
        assert await pulled(house, registry, path) == (DATA, len(DATA))


async def test_an_upstream_without_ranges_is_skipped_forward(
    registry: FakeRegistry, tmp_path: Path, path: str
) -> None:
    leave(tmp_path, DATA[:HALF], b"0 %d\n" % HALF)
    registry.fail(IgnoreRange(), kind="blob")
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert await pulled(house, registry, path) == (DATA, len(DATA))


async def test_what_is_on_the_disk_is_not_given_before_the_upstream_answers(
    registry: FakeRegistry, tmp_path: Path, path: str
) -> None:
    """Who asks now may not be who began it."""
    leave(tmp_path, DATA, b"0 %d\n" % len(DATA))
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert (await house.get(path.replace("org/app", "org/other"))).status == 404
        assert (await house.get(path)).body == DATA


async def test_a_download_that_gave_up_is_gone_on_with(
    house: House, registry: FakeRegistry, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    registry.fail(Cut(HALF), kind="blob", times=1)
    registry.fail(HangUp(), kind="blob")
    assert (await house.get(path)).ended == "short"
    await until_idle(house)
    registry.heal()
    body, sent_bytes = await pulled(house, registry, path)
    assert body == DATA
    assert sent_bytes <= len(DATA) - HALF + 1


@pytest.mark.parametrize("faults", [[], [NoLength()]], ids=repr)
async def test_what_came_before_a_break_counts_however_late_it_is_taken(
    house: House,
    registry: FakeRegistry,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    faults: list[Fault],
) -> None:
    """All of it lies in memory, and the connection is gone, before anybody looks."""
    check_room = Downloads._check_room

    async def check_room_slowly(downloads: Downloads, arrival: Arrival) -> None:
        await asyncio.sleep(0.3)
        await check_room(downloads, arrival)

    monkeypatch.setattr(Downloads, "_check_room", check_room_slowly)
    registry.fail(Cut(HALF), *faults, kind="blob", times=1)
    assert (await house.get(path)).body == DATA
    first, second = [seen for seen in registry.requests if seen.kind == "blob"]
    assert "Range" not in first.headers
    assert second.headers["Range"] == f"bytes={HALF}-"


async def test_a_blob_without_a_told_size_goes_on_too(
    registry: FakeRegistry, tmp_path: Path, path: str
) -> None:
    leave(tmp_path, DATA[:HALF], b"0 %d\n" % HALF)
    registry.fail(NoLength(), kind="blob")
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        body, sent_bytes = await pulled(house, registry, path)
        assert body == DATA
        assert sent_bytes <= len(DATA) - HALF + 1


@pytest.mark.parametrize("count", [None, 10])
async def test_a_part_that_was_not_asked_for_is_no_way_on(
    house: House,
    registry: FakeRegistry,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    count: int | None,
) -> None:
    """A whole is taken as one; a little of it again and again is given up."""
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    registry.fail(Cut(HALF), kind="blob", times=1)
    registry.fail(FromTheStart(count), kind="blob")
    answer = await house.get(path)
    assert registry.count("GET", "blob") <= 1 + tries.MAX_IDLE_TRIES
    if count is None:
        assert answer.body == DATA
    else:
        assert answer.ended == "short"


async def test_where_parts_are_of_another_size_the_whole_is_asked_for(
    house: House, registry: FakeRegistry, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    registry.fail(Cut(HALF), kind="blob", times=1)
    registry.fail(WrongTotal(5), kind="blob")
    assert (await house.get(path)).body == DATA
    ranges = [seen.headers.get("Range") is not None for seen in registry.requests]
    assert ranges == [False, True, False]


@pytest.mark.parametrize("status", [401, 403, 404, 416])
async def test_a_refusal_on_the_way_is_not_the_end(
    house: House,
    registry: FakeRegistry,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    registry.fail(Cut(HALF), kind="blob", times=1)
    registry.fail(Status(status), kind="blob", times=2)
    assert (await house.get(path)).body == DATA
    assert registry.requests[-1].headers["Range"] == f"bytes={HALF}-", "nothing was dropped"
