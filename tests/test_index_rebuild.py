"""An index that is gone or damaged is made anew at the next start, and what it cost is told."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

import mirror.store.backup
from mirror.errors import StorageFailed
from mirror.manifest import Descriptor
from mirror.names import Digest, Repository, Tag
from mirror.store import backup as backup_module
from mirror.store import soundness
from mirror.store.backup import IndexBackup, back_up
from mirror.store.blobs import BlobStore
from mirror.store.index import Index
from mirror.store.links import Link
from mirror.store.recovery import Recovered, close_index, open_index, recover
from mirror.store.remembered import RememberedListing, RememberedTag
from mirror.store.schema import IndexTooNew
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.images import Image
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import until_idle
from tests.support.replies import error_of, manifests_asked

APP = "library/app"
LATEST = "/v2/app/manifests/latest"
HERE = Repository("docker.io", APP)
PAGE_BYTES = 4096


def gone(index: Path) -> None:
    index.unlink()


def garbage(index: Path) -> None:
    index.write_bytes(b"this is no database" * 1000)


def empty(index: Path) -> None:
    os.truncate(index, 0)


def cut(index: Path) -> None:
    os.truncate(index, PAGE_BYTES + 100)


def scribbled(index: Path) -> None:
    """Each page but the first."""
    data = bytearray(index.read_bytes())
    for page in range(PAGE_BYTES, len(data), PAGE_BYTES):
        data[page : page + 200] = b"\x5a" * 200
    index.write_bytes(data)


def unreadable_wal(index: Path) -> None:
    index.with_name(f"{index.name}-wal").mkdir()


def a_folder(index: Path) -> None:
    index.unlink()
    index.mkdir()


def a_pipe(index: Path) -> None:
    index.unlink()
    os.mkfifo(index)


def a_table_short(index: Path) -> None:
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("DROP TABLE tags")


HARMS = [gone, garbage, empty, cut, scribbled, unreadable_wal, a_folder, a_pipe, a_table_short]
Harm = Callable[[Path], None]
Line = MutableMapping[str, Any]


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return registry.add_image(APP)


async def pull(mirror: House, image: Image) -> None:
    assert (await mirror.get(LATEST)).body == image.manifest
    for digest in (image.config, *image.layers):
        assert (await mirror.get(f"/v2/app/blobs/{digest}")).status == 200


@contextmanager
def rebuilt() -> Iterator[list[Line]]:
    """The lines about it that come in the block."""
    found: list[Line] = []
    with structlog.testing.capture_logs() as logs:
        yield found
    found += [line for line in logs if line["event"] == "the index was rebuilt"]


def damaged_files(mirror: House) -> list[str]:
    return [path.name for path in mirror.storage.glob("index.db.damaged-*")]


@pytest.mark.parametrize("harm", HARMS)
async def test_a_backup_brings_everything_back(
    registry: FakeRegistry, tmp_path: Path, image: Image, harm: Harm
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await pull(mirror, image)
        await until_idle(mirror)
    await registry.stop()
    harm(mirror.storage / "index.db")
    with rebuilt() as lines:
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            await pull(mirror, image)
    (line,) = lines
    assert line["source"] == "backup"
    assert (line["tags"], line["unlinked_blobs"], line["missing_blobs"]) == (1, 0, 0)
    assert line["blobs"] == len({image.digest, image.config, *image.layers})
    assert bool(damaged_files(mirror)) == (harm is not gone)
    with rebuilt() as lines:
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            await pull(mirror, image)
    assert lines == [], "it is sound again"


@pytest.mark.parametrize("harm", [gone, garbage, scribbled, a_table_short])
async def test_without_a_backup_the_upstreams_word_is_enough(
    registry: FakeRegistry, tmp_path: Path, image: Image, harm: Harm
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await pull(mirror, image)
        await until_idle(mirror)
    (mirror.storage / "index.backup.db").unlink()
    harm(mirror.storage / "index.db")
    downloads = registry.count("GET", "blob")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await pull(mirror, image)
    assert registry.count("GET", "blob") == downloads
    assert manifests_asked(registry)[1] == 1


async def test_a_private_blob_stays_where_it_was(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await pull(mirror, image)
    for name in ("index.db", "index.backup.db"):
        (mirror.storage / name).unlink()
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        other = await mirror.get(f"/v2/docker.io/org/other/blobs/{image.config}")
        assert error_of(other) == (404, "BLOB_UNKNOWN")
        await registry.stop()
        assert (await mirror.get(f"/v2/app/blobs/{image.config}")).status == 504


async def test_a_later_version_is_refused_and_left_alone(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        pass
    with closing(sqlite3.connect(mirror.storage / "index.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(IndexTooNew, match="99"):
        async with mirroring(tmp_path, {"docker.io": registry}):
            pass
    assert damaged_files(mirror) == []


# --- by itself ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    for folder in ("blobs", "staging"):
        (tmp_path / folder).mkdir()
    return BlobStore(tmp_path)


async def fill(store: BlobStore, count: int, tags: int = 0) -> None:
    """Blobs that are linked, and as many tags as are wanted; the files are empty."""
    index = await Index.open(store.paths.index)
    digests = [Digest.of(b"%d" % number) for number in range(count)]
    await index.link(HERE, [Link(Descriptor(each, "a/type", 0), proven=True) for each in digests])
    await index.set_listing(HERE, "tags/list?", RememberedListing(b"[]", {}, 1.0))
    await index.aclose()
    with closing(sqlite3.connect(store.paths.index)) as connection, connection:
        for digest in digests:
            store.paths.blob(digest).parent.mkdir(parents=True, exist_ok=True)
            store.paths.blob(digest).touch()
            connection.execute(
                "INSERT INTO blobs (digest, size_bytes, created_at, checked_at) "
                "VALUES (?, 0, 1.0, 1.0)",
                [str(digest)],
            )
        for number in range(tags):
            row = [HERE.upstream, HERE.name, f"v{number}", str(digests[number])]
            connection.execute("INSERT INTO tags VALUES (?, ?, ?, ?, 1.0)", row)


async def backed_up(store: BlobStore) -> bool:
    return await asyncio.to_thread(back_up, store.paths.index, store.paths.backup)


async def recovered(store: BlobStore) -> Recovered:
    found = await recover(store)
    assert found is not None
    return found


async def test_a_sound_index_is_left_alone(store: BlobStore) -> None:
    assert await recover(store) is None
    await fill(store, 10)
    before = store.paths.index.stat()
    assert await recover(store) is None
    assert store.paths.index.stat().st_mtime_ns == before.st_mtime_ns


async def test_what_can_be_read_of_a_damaged_file_is_kept(store: BlobStore) -> None:
    await fill(store, count=600, tags=300)
    data = bytearray(store.paths.index.read_bytes())
    for page in range(20, len(data) // PAGE_BYTES, 17):
        data[page * PAGE_BYTES : page * PAGE_BYTES + 300] = b"\x5a" * 300
    store.paths.index.write_bytes(data)
    found = await recovered(store)
    assert found.source == "damaged file"
    assert found.found.blobs == 600, "their files are there"
    assert 300 < found.found.links < 600
    assert 150 < found.found.tags <= 300
    assert found.lost_rows >= 600 - found.found.links
    index = await Index.open(store.paths.index)
    await index.ping()
    assert await index.usage() == (600, 0)
    assert len(await index.repositories(None, "", 9)) == 1
    await index.aclose()
    assert await recover(store) is None


async def test_the_index_is_compared_with_the_blobs_that_are_there(store: BlobStore) -> None:
    await fill(store, count=3)
    await backed_up(store)
    store.paths.index.unlink()
    store.paths.blob(Digest.of(b"0")).unlink()
    new = Digest.of(b"new", "sha512")
    await store.write(new, b"new")
    (store.paths.root / "blobs" / "sha256" / "00").mkdir(exist_ok=True)
    (store.paths.root / "blobs" / "sha256" / "00" / "no digest").touch()
    found = (await recovered(store)).found
    assert (found.blobs, found.added_blobs, found.missing_blobs) == (3, 1, 1)
    assert found.unlinked_blobs == 1
    index = await Index.open(store.paths.index)
    assert await index.blob_size(new) == 3
    assert (await index.blobs_to_check(1.0, 10)) == [new], "nobody knows whether it is right"
    await index.aclose()


async def test_links_are_read_out_of_tagged_manifests(store: BlobStore) -> None:
    image = FakeRegistry().add_image(APP)
    manifest = Digest.parse(image.digest)
    index = await Index.open(store.paths.index)
    await index.set_tag(HERE, Tag("latest"), RememberedTag(manifest, 1.0))
    await index.aclose()
    await backed_up(store)
    store.paths.index.unlink()
    await store.write(manifest, image.manifest)
    await recovered(store)
    index = await Index.open(store.paths.index)
    (link,) = await index.linked(HERE, [manifest])
    assert link == Link(Descriptor(manifest, image.media_type, len(image.manifest)), proven=True)
    parts = [Digest.parse(each) for each in (image.config, *image.layers)]
    named = await index.linked(HERE, parts)
    assert {each.descriptor.digest for each in named} == set(parts)
    assert not any(each.proven for each in named), "a manifest only names them"
    await index.aclose()


@pytest.mark.parametrize("harm", [garbage, cut, empty, "newer"])
async def test_a_bad_backup_is_passed_over(store: BlobStore, harm: Harm | str) -> None:
    await fill(store, count=3)
    await backed_up(store)
    if callable(harm):
        harm(store.paths.backup)
    else:
        with closing(sqlite3.connect(store.paths.backup)) as connection:
            connection.execute("PRAGMA user_version = 99")
    store.paths.index.unlink()
    found = await recovered(store)
    assert (found.source, found.found.blobs, found.found.links) == ("blobs", 3, 0)


async def test_a_disk_that_fails_while_rebuilding_loses_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store, count=3)
    garbage(store.paths.index)
    true_replace = Path.replace

    def replace(path: Path, to: Path) -> Path:
        if to == store.paths.index:
            raise OSError(28, "No space left on device")
        return true_replace(path, to)

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", replace)
        with pytest.raises(OSError, match="No space"):
            await recover(store)
    assert (await recovered(store)).found.blobs == 3


# --- backups ------------------------------------------------------------------------------------


async def test_only_what_is_new_is_backed_up(store: BlobStore) -> None:
    assert not await backed_up(store), "there is no index"
    await fill(store, count=3)
    assert await backed_up(store)
    assert not await backed_up(store)
    index = await Index.open(store.paths.index)
    assert not await backed_up(store), "opening changes nothing"
    await index.add_blob(Digest.of(b"new"), 3, 1.0)
    assert await backed_up(store)
    await index.aclose()
    with closing(sqlite3.connect(store.paths.backup)) as connection:
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (4,)
    assert [path.name for path in store.paths.root.glob("*.new*")] == []


@pytest.mark.parametrize("every_seconds", [0.01, 3600])
async def test_backups_are_made_while_serving(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, every_seconds: float
) -> None:
    monkeypatch.setattr(mirror.store.backup, "FIRST_AFTER_SECONDS", 0.02)
    await fill(store, count=3)
    backup = IndexBackup(store, every_seconds)
    backup.open()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not store.paths.backup.exists():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await backup.aclose()


async def test_no_backup_is_made_on_a_disk_that_fails(store: BlobStore) -> None:
    await fill(store, count=3)
    store.folder.note_written(is_taken=False)
    await IndexBackup(store).make()
    assert not store.paths.backup.exists()
    store.folder.note_written(is_taken=True)
    await IndexBackup(store).make()
    assert store.paths.backup.exists()


@pytest.mark.parametrize("harm", [scribbled, garbage, empty, "no room"])
async def test_a_backup_that_fails_leaves_the_last_one(
    store: BlobStore, harm: Harm | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store, count=100)
    assert await backed_up(store)
    good = store.paths.backup.read_bytes()
    if callable(harm):
        harm(store.paths.index)
    else:
        os.utime(store.paths.index)
        monkeypatch.setattr(backup_module, "MIN_FREE_COPIES", 1 << 60)
    with structlog.testing.capture_logs():
        await IndexBackup(store).make()
    assert store.paths.backup.read_bytes() == good
    assert [path.name for path in store.paths.root.glob("*.new*")] == []


async def test_after_a_clean_end_the_index_is_not_read_again(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def damage_of(path: Path) -> None:
        read.append(path)

    monkeypatch.setattr("mirror.store.sqlite.damage_of", damage_of)
    await fill(store, count=3)
    index = await open_index(store)
    assert read == [store.paths.index], "nobody knows how it was left"
    await close_index(index, store)
    await close_index(await open_index(store), store)
    assert len(read) == 1
    with store.paths.index.open("ab") as file:
        file.write(b"x")
    await close_index(await open_index(store), store)
    assert len(read) == 2, "somebody has changed it"


async def test_after_a_kill_the_index_is_read_again_if_the_system_ended_or_it_had_failed(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[Path] = []

    def damage_of(path: Path) -> None:
        read.append(path)

    monkeypatch.setattr("mirror.store.sqlite.damage_of", damage_of)
    await fill(store, count=3)
    await (await open_index(store)).aclose()
    assert len(read) == 1
    index = await open_index(store)
    assert len(read) == 1, "it was killed, as far as we know"
    await index.add_blob(Digest.of(b"another"), 7, 1.0)
    await index.aclose()
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("another one")
    with monkeypatch.context() as patched:
        patched.setattr(soundness, "BOOT_ID", boot_id)
        index = await open_index(store)
    assert len(read) == 2, "so was the system"
    with closing(sqlite3.connect(store.paths.index)) as connection:
        connection.execute("ALTER TABLE tags RENAME TO others")
        with pytest.raises(StorageFailed):
            await index.ping()
        connection.execute("ALTER TABLE others RENAME TO tags")
    await index.aclose()
    await (await open_index(store)).aclose()
    assert len(read) == 3, "it had failed"
    shutil.copyfile(store.paths.index, tmp_path / "copy")
    (tmp_path / "copy").replace(store.paths.index)
    await (await open_index(store)).aclose()
    assert len(read) == 4, "it is another file"


@pytest.mark.parametrize("harm", HARMS)
async def test_what_happens_to_a_file_after_a_kill_is_noticed_as_it_is_used(
    store: BlobStore, harm: Harm
) -> None:
    """At the start, or at the one after that which had trouble with it."""
    await fill(store, count=300)
    await (await open_index(store)).aclose()
    harm(store.paths.index)
    index = await open_index(store)
    with contextlib.suppress(StorageFailed):
        await index.sources(Digest.of(b"1"))
        await index.repositories(None, "", 9)
        await index.least_worth(1000)
    await index.aclose()
    index = await open_index(store)
    assert (await index.usage())[0] == len(await index.least_worth(1000))
    await index.aclose()
