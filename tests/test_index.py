"""The index: what it remembers, over closing and opening."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.errors import StorageFailed
from mirror.manifest import Descriptor
from mirror.names import Digest, Repository, Tag
from mirror.store import index as index_module
from mirror.store.index import Index, RememberedListing, RememberedTag
from mirror.store.schema import IndexTooNew

HERE, THERE = Repository("docker.io", "org/app"), Repository("quay.io", "org/app")
ONE, TWO = Digest.of(b"one"), Digest.of(b"two", "sha512")
LATEST = Tag("latest")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


@pytest.fixture
async def index(path: Path) -> AsyncIterator[Index]:
    index = await Index.open(path)
    yield index
    await index.aclose()


async def test_usage_counts_each_blob_once(index: Index) -> None:
    assert await index.usage() == (0, 0)
    assert [await index.add_blob(ONE, 10, now) for now in (1.0, 2.0)] == [True, False]
    assert await index.add_blob(TWO, 1 << 40, 3.0)
    assert await index.usage() == (2, 10 + (1 << 40))


async def test_links_belong_to_one_repository(index: Index) -> None:
    held = [Descriptor(ONE, "a/type", 3), Descriptor(TWO, "", None), Descriptor(ONE, "a/type", 3)]
    await index.link(HERE, held)
    await index.link(THERE, [])
    assert await index.linked(HERE, ONE) == held[0]
    assert await index.linked(HERE, TWO) == held[1]
    assert await index.linked(THERE, ONE) is None
    await index.link(HERE, [Descriptor(TWO, "b/type", 4)])
    assert await index.linked(HERE, TWO) == Descriptor(TWO, "b/type", 4), "the newest counts"


async def test_tags_move_and_go(index: Index) -> None:
    assert await index.tag(HERE, LATEST) is None
    for remembered in (RememberedTag(ONE, 1.5), RememberedTag(TWO, 2.5)):
        await index.set_tag(HERE, LATEST, remembered)
        assert await index.tag(HERE, LATEST) == remembered
    await index.set_tag(THERE, LATEST, RememberedTag(ONE, 1.5))
    await index.drop_tag(HERE, LATEST)
    await index.drop_tag(HERE, Tag("never"))
    assert await index.tag(HERE, LATEST) is None
    assert await index.tag(THERE, LATEST) == RememberedTag(ONE, 1.5)


async def test_the_newest_lists_are_kept(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_LISTINGS", 3)
    for number in range(5):
        listing = RememberedListing(b"%d" % number, {}, float(number))
        await index.set_listing(HERE, f"question {number}", listing)
    kept = [await index.listing(HERE, f"question {number}") for number in range(5)]
    assert [listing.body for listing in kept if listing] == [b"2", b"3", b"4"]
    assert await index.listing(THERE, "question 4") is None


async def test_a_current_index_opens_without_a_write(path: Path) -> None:
    await (await Index.open(path)).aclose()
    with sqlite3.connect(path) as writer:
        writer.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(3):
            second = await Index.open(path)
        await second.ping()
        await second.aclose()
    writer.close()


async def test_repositories_come_in_the_order_of_their_names(index: Index) -> None:
    names = ["a", "a/b", "a-b", "a.b", "ab"]
    for name in names:
        await index.set_tag(Repository("quay.io", name), LATEST, RememberedTag(ONE, 1.0))
    found = [each.name for each in await index.repositories("quay.io")]
    assert found == sorted(names)


async def test_repositories_are_those_of_tags_and_contents(index: Index) -> None:
    other = Repository("quay.io", "a")
    await index.link(THERE, [Descriptor(ONE, "", 1)])
    await index.set_tag(other, LATEST, RememberedTag(ONE, 1.0))
    await index.set_tag(HERE, LATEST, RememberedTag(ONE, 1.0))
    await index.link(HERE, [Descriptor(ONE, "", 1), Descriptor(TWO, "", 1)])
    assert await index.repositories(None) == [HERE, other, THERE]
    assert await index.repositories("quay.io") == [other, THERE]
    assert await index.repositories("ghcr.io") == []


async def test_everything_is_there_after_closing(path: Path) -> None:
    first = await Index.open(path)
    await first.add_blob(ONE, 10, 1.0)
    await first.link(HERE, [Descriptor(ONE, "a/type", 10)])
    await first.set_tag(HERE, LATEST, RememberedTag(ONE, 1.5))
    await first.set_listing(HERE, "question", RememberedListing(b"[]", {}, 2.5))
    await first.aclose()
    for _ in range(2):
        second = await Index.open(path)
        assert await second.usage() == (1, 10)
        assert await second.linked(HERE, ONE) == Descriptor(ONE, "a/type", 10)
        assert await second.tag(HERE, LATEST) == RememberedTag(ONE, 1.5)
        assert await second.listing(HERE, "question") == RememberedListing(b"[]", {}, 2.5)
        await second.aclose()


async def test_an_index_of_a_later_version_is_left_alone(path: Path) -> None:
    await (await Index.open(path)).aclose()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(IndexTooNew, match="99"):
        await Index.open(path)


async def test_a_file_that_is_no_index_is_a_storage_failure(path: Path) -> None:
    await asyncio.to_thread(path.write_bytes, b"this is no database" * 1000)
    with pytest.raises(StorageFailed, match="index"):
        await Index.open(path)


async def test_an_index_that_breaks_is_a_storage_failure(index: Index, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE tags")
    connection.close()
    with pytest.raises(StorageFailed, match="operator"):
        await index.tag(HERE, LATEST)
    await index.ping()
    assert await index.usage() == (0, 0)
