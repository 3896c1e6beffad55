"""Whatever the disk does while a download is written, every client gets the right bytes."""

import asyncio
import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.downloads import writeback
from tests.fakes.faults import NoLength
from tests.fakes.images import Image, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.faulty_disk import Fault, FaultyDisk
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, some_bytes, until_idle

APP = "library/app"
LAYER = some_bytes(700_000)
SMALL_DISK_BYTES = 8_000_000


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return registry.add_image(APP, layers=[LAYER])


async def pull(
    house: House,
    image: Image,
    ranges: tuple[str | None, ...] = (None,),
    *,
    right: bytes = LAYER,
    tag: str = "latest",
) -> None:
    """Everything of the image, right byte for byte; `right` is its layer."""
    assert (await house.get(f"/v2/app/manifests/{tag}")).body == image.manifest
    layer = f"/v2/app/blobs/{image.layers[0]}"
    wanted = [{"Range": each} if each else {} for each in ranges]
    config, *layers = await asyncio.gather(
        house.get(f"/v2/app/blobs/{image.config}"), *(house.get(layer, each) for each in wanted)
    )
    assert digest_of(config.body) == image.config
    for answer, asked in zip(layers, ranges, strict=True):
        expected = right[300_000:400_000] if asked else right
        assert (answer.status, answer.ended) == (206 if asked else 200, "complete")
        assert answer.body == expected


def assert_whole(house: House) -> None:
    """Nothing wrong has a final name."""
    for path in (house.storage / "blobs").glob("*/*/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("fault", ["EIO", "ENOSPC", "short write"])
async def test_every_operation_may_fail(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    lasting: bool,
) -> None:
    """Each in its turn, and each under an image of its own, of which nothing is here."""
    disk = FaultyDisk(monkeypatch)
    monkeypatch.setattr(writeback, "BEGIN_BYTES", len(LAYER) // 2)  # the disk begins in time
    nth, has_failed = 0, True
    async with mirroring(tmp_path, {"docker.io": registry}) as house:
        while has_failed:
            layer, tag = some_bytes(len(LAYER), seed=nth + 1), f"v{nth}"
            image = registry.add_image(APP, tag, [layer])
            disk.fail(fault, nth, lasting=lasting)
            await pull(house, image, (None, "bytes=300000-399999"), right=layer, tag=tag)
            await until_idle(house)
            has_failed = disk.failed
            disk.heal()
            await pull(house, image, right=layer, tag=tag)
            await until_idle(house)
            of_it = {image.digest, image.config, image.layers[0]}
            assert len(house.stored_blobs() & of_it) >= 2, "what can be stored again is"
            assert_whole(house)
            # So that the next image needs its folders, too.
            await asyncio.to_thread(shutil.rmtree, house.storage / "blobs" / "sha256")
            nth += 1
    assert nth > 10, "so many operations there are at least"


async def test_a_read_that_fails_within_a_slice_cuts_one_answer_and_no_other(
    registry: FakeRegistry, tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v2/app/blobs/{image.layers[0]}"
    async with mirroring(tmp_path, {"docker.io": registry}) as house:
        assert (await house.get(path)).body == LAYER
        await until_idle(house)
        bad = next(house.storage.glob(f"blobs/*/*/{image.layers[0][7:]}")).stat().st_ino
        sendfile = os.sendfile

        def failing(out: int, file: int, offset: int, count: int) -> int:
            if os.fstat(file).st_ino == bad and offset >= 100_000:
                raise OSError(errno.EIO, "Input/output error")
            return sendfile(out, file, offset, min(count, 100_000))

        monkeypatch.setattr(os, "sendfile", failing)
        first, second = await house.get(path), await house.get(path)
        assert (first.ended, LAYER.startswith(first.body)) == ("short", True)
        assert (second.ended, second.body) == ("complete", LAYER)
        assert await house.metric("mirror_damaged_blobs_total", reason="unreadable") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for little."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = f"size={SMALL_DISK_BYTES}"
    mount = ["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"mounting a small disk: {mounted.stderr.decode()}")
        pytest.skip("left out: a file system that is really full takes the right to mount one")
    yield folder
    subprocess.run(["/bin/umount", "--lazy", folder], check=True)


async def test_a_disk_that_is_really_full(
    registry: FakeRegistry, small_disk: Path, image: Image
) -> None:
    large = some_bytes(2 * SMALL_DISK_BYTES, seed=1)
    registry.add_blob(APP, large)
    async with mirroring(small_disk, {"docker.io": registry}) as house:
        answer = await house.get(f"/v2/app/blobs/{digest_of(large)}")
        assert answer.body == large, "more than the disk could ever hold"
        await until_idle(house)
        assert house.staged() == []
        ballast = small_disk / "ballast"
        await asyncio.to_thread(_fill, ballast)
        assert (await house.get("/readyz")).status == 503
        for _ in range(2):
            await pull(house, image, (None, "bytes=300000-399999"))
        assert await house.metric("mirror_requests_total", kind="blob", cache="unstored") > 0
        assert_whole(house)
        ballast.unlink()
        assert (await house.get("/readyz")).status == 200
        await pull(house, image)
        await until_idle(house)
        assert digest_of(LAYER) in house.stored_blobs()


async def test_a_range_of_a_blob_of_untold_length_passes_the_full_disk_too(
    registry: FakeRegistry, small_disk: Path, tmp_path: Path
) -> None:
    path = add_layer(registry, LAYER)
    registry.fail(NoLength(), kind="blob")
    storage = {"path": str(small_disk)}
    async with mirroring(tmp_path, {UPSTREAM: registry}, storage=storage) as house:
        await asyncio.to_thread(_fill, small_disk / "ballast")
        for wanted in ("bytes=100-", "bytes=-100"):
            answer = await house.get(path, {"Range": wanted})
            assert answer.ended == "complete"
            first = 100 if wanted == "bytes=100-" else len(LAYER) - 100
            assert answer.body == (LAYER[first:] if answer.status == 206 else LAYER)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
