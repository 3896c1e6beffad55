"""A disk that is full, an index that takes nothing more: what is here and what comes is served."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import structlog

from mirror.store import database
from tests.fakes.images import Image
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, eventually, some_bytes, until_idle
from tests.support.replies import error_of, json_of, manifests_asked

APP = "library/app"
LATEST = "/v2/app/manifests/latest"
TABLES = ("blobs", "links", "tags", "listings")


async def refuse_writes(mirror: House) -> None:
    """The index can be read, and no more than that."""

    def add_triggers() -> None:
        connection = sqlite3.connect(mirror.storage / "index.db")
        for table in TABLES:
            for change in ("INSERT", "UPDATE", "DELETE"):
                connection.execute(
                    f"CREATE TRIGGER no_{change}_{table} BEFORE {change} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
                )
        connection.close()

    await asyncio.to_thread(add_triggers)


def due(registry: FakeRegistry) -> dict[str, object]:
    return {"endpoints": [registry.url], "tag_ttl": "0s"}


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return registry.add_image(APP)


async def test_an_index_that_takes_nothing_new_costs_no_answer(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": due(registry)}) as mirror:
        await refuse_writes(mirror)
        for _ in range(2):
            assert (await mirror.get(LATEST)).body == image.manifest
            assert (await mirror.head(LATEST)).status == 200
            for digest in (image.config, *image.layers):
                assert (await mirror.get(f"/v2/app/blobs/{digest}")).status == 200
            assert json_of(await mirror.get("/v2/app/tags/list"))["tags"] == ["latest"]
        assert manifests_asked(registry)[1] == 1, "what could not be written down is known"
        assert registry.count("GET", "blob") == len({image.config, *image.layers})


async def test_a_tag_that_vanished_is_gone_all_the_same(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": due(registry)}) as mirror:
        await mirror.get(LATEST)
        await refuse_writes(mirror)
        registry.untag(APP, "latest")
        for _ in range(2):
            assert error_of(await mirror.get(LATEST)) == (404, "MANIFEST_UNKNOWN")


async def test_a_manifest_that_the_disk_does_not_take_is_served_from_memory(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await asyncio.to_thread(shutil.rmtree, mirror.storage / "staging")
        for path in (LATEST, LATEST, f"/v2/app/manifests/{image.digest}"):
            assert (await mirror.get(path)).body == image.manifest
        assert manifests_asked(registry) == (1, 1)
        assert mirror.stored_blobs() == set()
        assert await mirror.metric("mirror_cache_blobs") == 0


async def test_what_the_disk_refused_is_stored_when_it_comes_again(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        staging = mirror.storage / "staging"
        await asyncio.to_thread(shutil.rmtree, staging)
        assert (await mirror.get(LATEST)).status == 200
        await asyncio.to_thread(staging.mkdir)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest
        assert mirror.stored_blobs() == {image.digest}


@pytest.mark.parametrize("ends_at_once", [False, True])
async def test_what_the_disk_refused_is_written_with_what_is_stored_next_or_at_the_end(
    registry: FakeRegistry, tmp_path: Path, image: Image, ends_at_once: bool
) -> None:
    """It is served from memory, and so never comes again; the next outage may come first."""
    moved = registry.add_image(APP, "moved", [b"moved"])
    other = registry.add_image(APP, "other", [b"other"])
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        staging = mirror.storage / "staging"
        await asyncio.to_thread(shutil.rmtree, staging)
        for tag in ("latest", "moved"):
            assert (await mirror.get(f"/v2/app/manifests/{tag}")).status == 200
        await asyncio.to_thread(staging.mkdir)
        if not ends_at_once:
            assert (await mirror.get("/v2/app/manifests/other")).body == other.manifest

            async def all_are_stored() -> bool:
                return await mirror.metric("mirror_cache_blobs") == 3

            await eventually(all_are_stored)
            assert {image.digest, moved.digest, other.digest} == mirror.stored_blobs()
    await registry.stop()
    async with mirroring(tmp_path, {"docker.io": due(registry)}) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest
        assert (await mirror.get("/v2/app/manifests/moved")).body == moved.manifest


async def test_a_disk_that_takes_nothing_at_the_end_either_is_asked_once(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await asyncio.to_thread(shutil.rmtree, mirror.storage / "staging")
        with structlog.testing.capture_logs() as logs:
            for path in (LATEST, LATEST):
                assert (await mirror.get(path)).body == image.manifest
    refused = [line for line in logs if line.get("what") == "a manifest"]
    assert len(refused) == 1, "not with each answer from memory"
    assert mirror.stored_blobs() == set()


def tables_of(mirror: House) -> sqlite3.Connection:
    return sqlite3.connect(mirror.storage / "index.db", isolation_level=None)


async def hide_tables(mirror: House) -> None:
    """No question to the index can be answered."""

    def rename() -> None:
        with closing(tables_of(mirror)) as connection:
            for table in TABLES:
                connection.execute(f"ALTER TABLE {table} RENAME TO hidden_{table}")

    await asyncio.to_thread(rename)


async def show_tables(mirror: House) -> None:
    def rename() -> None:
        with closing(tables_of(mirror)) as connection:
            for table in TABLES:
                connection.execute(f"ALTER TABLE hidden_{table} RENAME TO {table}")

    await asyncio.to_thread(rename)


async def test_an_index_that_answers_nothing_costs_no_answer(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": due(registry)}) as mirror:
        await mirror.get(LATEST)
    async with mirroring(tmp_path, {"docker.io": due(registry)}) as mirror:
        await hide_tables(mirror)
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                assert (await mirror.get(LATEST)).body == image.manifest
                assert (await mirror.head(LATEST)).status == 200
                for digest in (image.config, *image.layers):
                    assert (await mirror.get(f"/v2/app/blobs/{digest}")).status == 200
                assert json_of(await mirror.get("/v2/app/tags/list"))["tags"] == ["latest"]
        assert [line["event"] for line in logs].count("the index fails") == 1
        assert await mirror.metric("mirror_index_errors_total") > 1
        assert manifests_asked(registry)[1] == 1, "the manifest is here, whoever remembers it"


async def test_readiness_tells_of_the_index_and_of_its_recovery(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await hide_tables(mirror)
        answer = await mirror.get("/readyz")
        assert answer.status == 503
        assert answer.body.startswith(b"this mirror's index fails: ")
        await show_tables(mirror)
        assert (await mirror.get("/readyz")).status == 200


async def test_the_metric_follows_what_the_disk_takes(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert await mirror.metric("mirror_storage_writable") == 1
        staging = mirror.storage / "staging"
        await asyncio.to_thread(shutil.rmtree, staging)
        assert (await mirror.get(LATEST)).status == 200
        assert await mirror.metric("mirror_storage_writable") == 0, "a write has failed"
        await asyncio.to_thread(staging.mkdir)
        assert (await mirror.get("/readyz")).status == 200
        assert await mirror.metric("mirror_storage_writable") == 1
        await asyncio.to_thread(shutil.rmtree, staging)
        assert (await mirror.get("/readyz")).status == 503
        assert await mirror.metric("mirror_storage_writable") == 0
        await asyncio.to_thread(staging.mkdir)
        registry.add_image(APP, tag="other", layers=[b"another"])
        assert (await mirror.get("/v2/app/manifests/other")).status == 200
        assert await mirror.metric("mirror_storage_writable") == 1, "a write has succeeded"


@pytest.mark.parametrize("ends_at_once", [False, True])
async def test_what_is_stored_while_another_program_holds_the_index_is_known_afterwards(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_at_once: bool
) -> None:
    monkeypatch.setattr(database, "BUSY_MILLISECONDS", 50)
    monkeypatch.setattr(database, "LOCKED_SECONDS", 0.2)
    layers = [add_layer(registry, some_bytes(100_000, seed)) for seed in range(3)]
    later = add_layer(registry, some_bytes(100_000, seed=9))
    async with mirroring(tmp_path, {UPSTREAM: registry}) as mirror:
        async with locked(mirror):
            for layer in layers:
                assert (await mirror.get(layer)).status == 200
            await until_idle(mirror)
            assert await known_blobs(mirror) == 0
            assert await mirror.metric("mirror_cache_blobs") == 3
        await asyncio.sleep(0.3)
        if not ends_at_once:
            assert (await mirror.get(later)).status == 200
            await until_idle(mirror)
            assert await known_blobs(mirror) == 4
            assert await mirror.metric("mirror_cache_blobs") == 4
    assert await known_blobs(mirror) == len(mirror.stored_blobs())


@asynccontextmanager
async def locked(mirror: House) -> AsyncIterator[None]:
    """Its index, by another program."""

    def lock() -> sqlite3.Connection:
        connection = sqlite3.connect(mirror.storage / "index.db", check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    other = await asyncio.to_thread(lock)
    try:
        yield
    finally:
        await asyncio.to_thread(other.close)


async def known_blobs(mirror: House) -> int:
    def count() -> int:
        with closing(sqlite3.connect(mirror.storage / "index.db")) as connection:
            return int(connection.execute("SELECT count(*) FROM blobs").fetchone()[0])

    return await asyncio.to_thread(count)
