"""Stored files that are cut, longer, gone or changed: nobody gets a wrong byte, and where the
upstream is there, nobody notices.
"""

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.images import Image, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, some_bytes, until_idle, until_stored
from tests.support.replies import error_of

SMALL, LARGE = some_bytes(3_000), some_bytes(300_000, 1)
APP = "library/app"
LATEST = "/v2/app/manifests/latest"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


HARMS = {"size": (cut, grow, empty), "missing": (Path.unlink,)}
CASES = [(harm, reason) for reason, harms in HARMS.items() for harm in harms]
Harm = Callable[[Path], None]


def stored(mirror: House, digest: str) -> Path:
    (path,) = (mirror.storage / "blobs").rglob(digest.partition(":")[2])
    return path


def set_aside(mirror: House) -> list[Path]:
    return [path for path in (mirror.storage / "damaged").rglob("*") if path.is_file()]


async def pulled(mirror: House, path: str, data: bytes) -> None:
    """Downloaded, stored and known to the index."""
    assert (await mirror.get(path)).body == data
    await until_idle(mirror)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("harm", "reason"), CASES)
async def test_a_damaged_file_is_fetched_again_in_the_same_request(
    registry: FakeRegistry, tmp_path: Path, data: bytes, harm: Harm, reason: str
) -> None:
    path = add_layer(registry, data)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        await pulled(mirror, path, data)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        harm(stored(mirror, digest_of(data)))
        for _ in range(2):
            assert (await mirror.get(path)).body == data
            await until_stored(mirror, data)
        assert registry.count("GET", "blob") == 2
        assert len(set_aside(mirror)) == (0 if reason == "missing" else 1)
        assert await mirror.metric("mirror_damaged_blobs_total", reason=reason) == 1
        assert await mirror.metric("mirror_damaged_blobs_total") == 1


@pytest.mark.parametrize("harm", [cut, grow, Path.unlink])
async def test_a_blob_that_is_open_is_looked_at_each_time(
    registry: FakeRegistry, tmp_path: Path, harm: Harm
) -> None:
    path = add_layer(registry, LARGE)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        await pulled(mirror, path, LARGE)
        assert (await mirror.get(path)).body == LARGE, "it is open from now on"
        harm(stored(mirror, digest_of(LARGE)))
        answers = await asyncio.gather(*(mirror.get(path) for _ in range(5)))
        assert {answer.body for answer in answers} == {LARGE}
        assert registry.count("GET", "blob") == 2
        assert await mirror.metric("mirror_damaged_blobs_total") == 1
        await until_idle(mirror)
        assert await mirror.metric("mirror_cache_bytes", state="stored") == len(LARGE)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("harm", [cut, Path.unlink])
async def test_without_the_upstream_there_is_an_error_and_no_wrong_byte(
    registry: FakeRegistry, tmp_path: Path, data: bytes, harm: Harm
) -> None:
    path = add_layer(registry, data)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        await pulled(mirror, path, data)
    await registry.stop()
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        harm(stored(mirror, digest_of(data)))
        for _ in range(2):
            assert error_of(await mirror.get(path))[0] in (502, 504)


@pytest.mark.parametrize("harm", [flip, cut, grow, empty, Path.unlink])
async def test_a_damaged_manifest_is_fetched_again_in_the_same_request(
    registry: FakeRegistry, tmp_path: Path, harm: Harm
) -> None:
    image = registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        harm(stored(mirror, image.digest))
        for path in (LATEST, f"/v2/app/manifests/{image.digest}"):
            assert (await mirror.get(path)).body == image.manifest
        assert registry.count("GET", "manifest") == 2
        assert stored(mirror, image.digest).read_bytes() == image.manifest
        assert await mirror.metric("mirror_damaged_blobs_total") == 1


def pipe(path: Path) -> None:
    os.mkfifo(path)


def socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def device(path: Path) -> None:
    """One that is never empty, or one that there is no driver for."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("left out: making a device takes the right to")


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("put", [pipe, socket, device, Path.mkdir])
@pytest.mark.parametrize("is_restarted", [True, False], ids=["restarted", "running"])
async def test_what_is_no_file_makes_way_for_the_blob_in_the_same_request(
    registry: FakeRegistry, tmp_path: Path, data: bytes, put: Harm, is_restarted: bool
) -> None:
    path = add_layer(registry, data)

    def take_its_place(mirror: House) -> None:
        place = stored(mirror, digest_of(data))
        place.unlink()
        put(place)

    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        await pulled(mirror, path, data)
        take_its_place(mirror)
        if not is_restarted:
            await assert_made_way(registry, mirror, path, data)
    if is_restarted:
        async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
            await assert_made_way(registry, mirror, path, data)


async def assert_made_way(registry: FakeRegistry, mirror: House, path: str, data: bytes) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert (await mirror.get(path)).body == data
        await until_stored(mirror, data)
        await until_idle(mirror)
    assert registry.count("GET", "blob") == 2
    assert stored(mirror, digest_of(data)).read_bytes() == data
    (aside,) = (mirror.storage / "damaged").glob("*/*")
    assert not aside.is_file()
    assert await mirror.metric("mirror_damaged_blobs_total", reason="unreadable") == 1


async def test_a_small_blob_with_a_wrong_byte_is_not_served(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = add_layer(registry, SMALL)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        await pulled(mirror, path, SMALL)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        flip(stored(mirror, digest_of(SMALL)))
        assert (await mirror.get(path)).body == SMALL
        assert await mirror.metric("mirror_damaged_blobs_total", reason="bytes") == 1
        (aside,) = set_aside(mirror)
        assert digest_of(aside.read_bytes()) != digest_of(SMALL), "kept for the operator to look at"


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return registry.add_image(APP)


async def test_a_file_that_the_disk_does_not_give_is_one_that_is_not_here(
    registry: FakeRegistry, tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = f"/v2/app/blobs/{image.config}"
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path in (LATEST, blob):
            assert (await mirror.get(path)).status == 200
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        inodes = {stored(mirror, each).stat().st_ino for each in (image.digest, image.config)}
        pread = os.pread

        def failing(descriptor: int, count: int, offset: int) -> bytes:
            if os.fstat(descriptor).st_ino in inodes:
                raise OSError(errno.EIO, "Input/output error")
            return pread(descriptor, count, offset)

        monkeypatch.setattr(os, "pread", failing)
        assert (await mirror.get(LATEST)).body == image.manifest
        assert digest_of((await mirror.get(blob)).body) == image.config
        assert await mirror.metric("mirror_damaged_blobs_total", reason="unreadable") == 2


async def test_a_file_that_fails_while_it_is_sent_is_not_served_again(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_layer(registry, LARGE)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        await pulled(mirror, path, LARGE)
        bad = stored(mirror, digest_of(LARGE)).stat().st_ino
        pread = os.pread

        def sendfile(_out: int, file: int, *_: object) -> int:
            raise OSError(errno.EIO if os.fstat(file).st_ino == bad else errno.EINVAL, "no")

        def failing(descriptor: int, count: int, offset: int) -> bytes:
            if os.fstat(descriptor).st_ino == bad:
                raise OSError(errno.EIO, "Input/output error")
            return pread(descriptor, count, offset)

        monkeypatch.setattr(os, "sendfile", sendfile)
        monkeypatch.setattr(os, "pread", failing)
        first, second = await mirror.get(path), await mirror.get(path)
        assert LARGE.startswith(first.body)
        assert second.body == LARGE
        assert await mirror.metric("mirror_damaged_blobs_total", reason="unreadable") == 1
        await until_stored(mirror, LARGE)


async def test_a_damaged_blob_is_logged_once_however_many_ask(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = add_layer(registry, LARGE)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        await pulled(mirror, path, LARGE)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        cut(stored(mirror, digest_of(LARGE)))
        with structlog.testing.capture_logs() as logs:
            answers = await asyncio.gather(*(mirror.get(path) for _ in range(10)))
        assert {answer.body for answer in answers} == {LARGE}
        told = [line for line in logs if line["event"] == "a stored blob is damaged"]
        assert [(line["digest"], line["damage"]) for line in told] == [(digest_of(LARGE), "size")]


async def test_what_was_damaged_before_is_kept_beside(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = add_layer(registry, SMALL)
    for _ in range(3):
        async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
            await pulled(mirror, path, SMALL)
            cut(stored(mirror, digest_of(SMALL)))
    name = digest_of(SMALL).partition(":")[2]
    damaged = (tmp_path / "data" / "damaged").glob("sha256/*")
    assert {path.name for path in damaged} == {name, f"{name}.1"}


async def test_a_blob_that_cannot_be_opened_is_fetched_past_the_disk(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_layer(registry, LARGE)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        await pulled(mirror, path, LARGE)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        name = stored(mirror, digest_of(LARGE))
        open_file = Path.open

        def refuse(self: Path, *arguments: str, **options: int) -> object:
            if self == name:
                raise OSError(errno.EMFILE, "Too many open files")
            return open_file(self, *arguments, **options)  # type: ignore[call-overload]

        with monkeypatch.context() as context:
            context.setattr(Path, "open", refuse)
            answer = await mirror.get(path)
        assert answer.status != 200 or answer.body == LARGE
        assert set_aside(mirror) == [], "that says nothing about the blob"
        assert (await mirror.get(path)).body == LARGE
