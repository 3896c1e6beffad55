"""A disk that takes no writes when the mirror starts: what is here is served, the rest passes."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from mirror.store import recovery
from mirror.store.blobs import BlobStore
from mirror.store.folder import FolderInUse
from mirror.store.schema import IndexTooNew
from tests.fakes.faults import Status
from tests.fakes.images import Image, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import some_bytes, until_idle

APP = "library/app"
LATEST = "/v2/app/manifests/latest"
LAYER = some_bytes(300_000)
OTHER = some_bytes(200_000, seed=1)
DISK_BYTES = 8_000_000
TOLD = "the disk takes no writes"


@dataclass
class Disk:
    """A tmpfs. The settings' file is elsewhere, the cache on it."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def read_only(self) -> None:
        self._mount("-o", "remount,ro")

    def full(self) -> None:
        """To the last byte."""
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    def heal(self) -> None:
        self._mount("-o", "remount,rw")
        (self.folder / "ballast").unlink(missing_ok=True)

    def mount(self) -> None:
        options = f"size={DISK_BYTES}"
        self._mount("-t", "tmpfs", "-o", options, "tmpfs")

    def _mount(self, *arguments: str) -> None:
        subprocess.run(
            ["/bin/mount", *arguments, str(self.folder)], capture_output=True, check=True
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    try:
        disk.mount()
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI"):
            pytest.fail(f"mounting a disk: {error.stderr.decode()}")
        pytest.skip("left out: a disk that takes nothing takes the right to mount one")
    yield disk
    subprocess.run(["/bin/umount", "--lazy", folder], check=True)


Harm = Callable[[Disk], None]
HARMS = pytest.mark.parametrize("harm", [Disk.read_only, Disk.full], ids=["read-only", "full"])


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    registry.add_blob(APP, OTHER)
    return registry.add_image(APP, layers=[LAYER])


def layer_of(image: Image) -> str:
    return f"/v2/app/blobs/{image.layers[0]}"


def other() -> str:
    return f"/v2/app/blobs/{digest_of(OTHER)}"


async def fill(registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image) -> None:
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest
        assert (await mirror.get(layer_of(image))).body == LAYER
        await until_idle(mirror)
    registry.forget()


def upstreams(registry: FakeRegistry) -> dict[str, Any]:
    return {"docker.io": {"endpoints": [registry.url], "tag_ttl": "0s"}}


def on(disk: Disk) -> dict[str, str]:
    return {"path": str(disk.cache)}


async def assert_kept(mirror: House, disk: Disk, image: Image) -> None:
    """A new blob is stored, without a restart."""
    assert (await mirror.get("/readyz")).status == 200
    assert (await mirror.get(other())).body == OTHER
    await until_idle(mirror)
    assert (disk.cache / "blobs/sha256" / digest_of(OTHER)[7:9] / digest_of(OTHER)[7:]).exists()
    assert (await mirror.get(LATEST)).body == image.manifest


@HARMS
async def test_what_is_here_is_served_and_the_rest_passes(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image, harm: Harm
) -> None:
    await fill(registry, tmp_path, disk, image)
    await asyncio.to_thread(harm, disk)
    with structlog.testing.capture_logs() as logs:
        async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
            told = [line for line in logs if line["event"].startswith(TOLD)]
            assert [line["index"] for line in told] == ["in memory until the end"]
            ready = await mirror.get("/readyz")
            assert (ready.status, b"disk fails" in ready.body) == (503, True)
            assert await mirror.metric("mirror_storage_writable") == 0
            assert (await mirror.get(LATEST)).body == image.manifest
            assert (await mirror.get(layer_of(image))).body == LAYER
            assert registry.count("GET", "blob") == 0
            for _ in range(2):
                assert (await mirror.get(other())).body == OTHER
            assert registry.count("GET", "blob") >= 2, "it is not kept"
            registry.fail(Status(503))
            assert (await mirror.get(LATEST)).body == image.manifest
            assert (await mirror.get(layer_of(image))).body == LAYER
            registry.heal()
            await asyncio.to_thread(disk.heal)
            await assert_kept(mirror, disk, image)
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        assert (await mirror.get("/readyz")).status == 200
        assert (await mirror.get(other())).body == OTHER


@HARMS
async def test_a_cache_that_is_still_to_be_made(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image, harm: Harm
) -> None:
    await asyncio.to_thread(disk.cache.mkdir)
    await asyncio.to_thread(harm, disk)
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest
        assert (await mirror.get(layer_of(image))).body == LAYER
        assert (await mirror.get("/readyz")).status == 503
        second = BlobStore(disk.cache)
        with pytest.raises(FolderInUse):
            await second.open()
        await asyncio.to_thread(disk.heal)
        with pytest.raises(FolderInUse):
            await second.open()
        await assert_kept(mirror, disk, image)


@HARMS
async def test_a_log_that_a_kill_has_left_is_read(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image, harm: Harm
) -> None:
    aside = tmp_path / "aside"
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest
        sockets = shutil.ignore_patterns("*.sock")
        await asyncio.to_thread(shutil.copytree, disk.cache, aside, ignore=sockets)

    def killed() -> None:
        assert (aside / "index.db-wal").stat().st_size
        shutil.rmtree(disk.cache)
        shutil.copytree(aside, disk.cache)
        harm(disk)

    await asyncio.to_thread(killed)
    registry.fail(Status(503))
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest
        registry.heal()
        await asyncio.to_thread(disk.heal)
        await assert_kept(mirror, disk, image)
    await assert_known_without_an_upstream(registry, tmp_path, disk, image)


async def assert_known_without_an_upstream(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image
) -> None:
    """After a restart: also what has come since the disk was healed."""
    assert sorted(path.name for path in disk.cache.glob("index.db*")) == ["index.db"]
    registry.fail(Status(503))
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest
        assert (await mirror.get(other())).body == OTHER
        there = len([path for path in disk.cache.glob("blobs/*/*/*") if path.is_file()])
        assert await mirror.metric("mirror_cache_blobs") == there


@HARMS
async def test_what_was_remembered_meanwhile_is_known_after_a_restart(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image, harm: Harm
) -> None:
    await fill(registry, tmp_path, disk, image)
    await asyncio.to_thread(harm, disk)
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        await asyncio.to_thread(disk.heal)
        await assert_kept(mirror, disk, image)
    await assert_known_without_an_upstream(registry, tmp_path, disk, image)


@HARMS
async def test_a_disk_that_takes_nothing_at_the_end_either_keeps_what_it_had(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image, harm: Harm
) -> None:
    await fill(registry, tmp_path, disk, image)
    before = await asyncio.to_thread((disk.cache / "index.db").read_bytes)
    await asyncio.to_thread(harm, disk)
    with structlog.testing.capture_logs() as logs:
        async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
            assert (await mirror.get(other())).body == OTHER
    assert [line["event"] for line in logs if "is lost" in line["event"]]
    assert await asyncio.to_thread((disk.cache / "index.db").read_bytes) == before
    assert not list(disk.cache.glob("*.new*"))


async def test_a_damaged_index_is_read_as_far_as_it_goes_and_set_aside_at_the_end(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image
) -> None:
    await fill(registry, tmp_path, disk, image)

    def damage() -> None:
        (disk.cache / "index.backup.db").unlink()
        with closing(sqlite3.connect(disk.cache / "index.db")) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_master SET sql = 'x' WHERE name = 'ix_links_digest'")
            connection.commit()
        disk.read_only()

    await asyncio.to_thread(damage)
    registry.fail(Status(503))
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        assert await mirror.metric("mirror_cache_blobs") == 2
        await asyncio.to_thread(disk.heal)
    names = sorted(path.name for path in disk.cache.glob("index.db*"))
    assert (len(names), names[0]) == (2, "index.db")
    assert names[1].startswith("index.db.damaged-")


async def test_an_index_that_is_gone_comes_from_its_backup(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image
) -> None:
    await fill(registry, tmp_path, disk, image)
    await asyncio.to_thread((disk.cache / "index.db").unlink)
    await asyncio.to_thread(disk.read_only)
    async with mirroring(tmp_path, upstreams(registry), storage=on(disk)) as mirror:
        registry.fail(Status(503))
        assert (await mirror.get(LATEST)).body == image.manifest
        assert (await mirror.get(layer_of(image))).body == LAYER


async def test_askers_that_go_away_do_not_empty_the_index(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image
) -> None:
    await fill(registry, tmp_path, disk, image)
    await asyncio.to_thread(disk.read_only)
    store = BlobStore(disk.cache)
    await store.open()
    index = await recovery.open_index(store)
    try:
        for turns in range(40):
            asking = [asyncio.ensure_future(index.usage()) for _ in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        assert (await index.usage())[0] == 2
    finally:
        await recovery.close_index(index, store)
        await store.aclose()


@HARMS
async def test_a_folder_in_use_still_ends_the_start(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image, harm: Harm
) -> None:
    await fill(registry, tmp_path, disk, image)
    await asyncio.to_thread(harm, disk)
    first, second = BlobStore(disk.cache), BlobStore(disk.cache)
    await first.open()
    with pytest.raises(FolderInUse):
        await second.open()
    await first.aclose()


async def test_a_newer_index_still_ends_the_start(
    registry: FakeRegistry, tmp_path: Path, disk: Disk, image: Image
) -> None:
    await fill(registry, tmp_path, disk, image)

    def age() -> None:
        with closing(sqlite3.connect(disk.cache / "index.db")) as connection:
            connection.execute("PRAGMA user_version = 99")
        disk.read_only()

    await asyncio.to_thread(age)
    with pytest.raises(IndexTooNew):
        async with mirroring(tmp_path, upstreams(registry), storage=on(disk)):
            pass


async def test_a_path_that_cannot_be_made_still_ends_the_start(
    registry: FakeRegistry, tmp_path: Path, disk: Disk
) -> None:
    await asyncio.to_thread(disk.read_only)
    with pytest.raises(OSError, match="Read-only"):
        async with mirroring(tmp_path, upstreams(registry), storage=on(disk)):
            pass
