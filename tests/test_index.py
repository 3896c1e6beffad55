"""The index: what it remembers, over closing and opening."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from mirror.errors import StorageFailed
from mirror.manifest import Descriptor
from mirror.names import Digest, Repository, Tag
from mirror.store import remembered
from mirror.store.index import Index
from mirror.store.links import Link
from mirror.store.remembered import RememberedListing, RememberedTag
from mirror.store.schema import IndexTooNew
from tests.fakes.deadline import DEADLINE_SECONDS

HERE, THERE = Repository("docker.io", "org/app"), Repository("quay.io", "org/app")
ONE, TWO = Digest.of(b"one"), Digest.of(b"two", "sha512")
LATEST = Tag("latest")


async def test_usage_counts_each_blob_once(index: Index) -> None:
    assert await index.usage() == (0, 0)
    assert [await index.add_blob(ONE, 10, now) for now in (1.0, 2.0)] == [True, False]
    assert await index.add_blob(TWO, 1 << 40, 3.0)
    assert await index.usage() == (2, 10 + (1 << 40))


async def test_tags_move_and_go(index: Index) -> None:
    assert await index.tag(HERE, LATEST) is None
    for each in (RememberedTag(ONE, 1.5), RememberedTag(TWO, 2.5)):
        await index.set_tag(HERE, LATEST, each)
        assert await index.tag(HERE, LATEST) == each
    await index.set_tag(THERE, LATEST, RememberedTag(ONE, 1.5))
    await index.drop_tag(HERE, LATEST)
    await index.drop_tag(HERE, Tag("never"))
    assert await index.tag(HERE, LATEST) is None
    assert await index.tag(THERE, LATEST) == RememberedTag(ONE, 1.5)


async def test_the_newest_lists_are_kept(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MAX_LISTINGS", 3)
    for number in range(5):
        listing = RememberedListing(b"%d" % number, {}, float(number))
        await index.set_listing(HERE, f"question {number}", listing)
    kept = [await index.listing(HERE, f"question {number}") for number in range(5)]
    assert [listing.body for listing in kept if listing] == [b"2", b"3", b"4"]
    assert await index.listing(THERE, "question 4") is None


async def test_a_current_index_opens_without_a_write(index_file: Path) -> None:
    await (await Index.open(index_file)).aclose()
    with sqlite3.connect(index_file) as writer:
        writer.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(DEADLINE_SECONDS):
            second = await Index.open(index_file)
        await second.ping()
        await second.aclose()
    writer.close()


async def test_repositories_come_in_the_order_of_their_names(index: Index) -> None:
    names = ["a", "a/b", "a-b", "a.b", "ab"]
    for name in names:
        await index.set_tag(Repository("quay.io", name), LATEST, RememberedTag(ONE, 1.0))
    found = [each.name for each in await index.repositories("quay.io", "", 9)]
    assert found == sorted(names)


async def test_repositories_are_those_of_tags_and_contents(index: Index) -> None:
    other = Repository("quay.io", "a")
    await index.link(THERE, [Link(Descriptor(ONE, "", 1), proven=False)])
    await index.set_tag(other, LATEST, RememberedTag(ONE, 1.0))
    await index.set_tag(HERE, LATEST, RememberedTag(ONE, 1.0))
    await index.link(HERE, [Link(Descriptor(each, "", 1), proven=True) for each in (ONE, TWO)])
    assert await index.repositories(None, "", 9) == [HERE, other, THERE]
    assert await index.repositories("quay.io", "", 9) == [other, THERE]
    assert await index.repositories("ghcr.io", "", 9) == []


async def test_everything_is_there_after_closing(index_file: Path) -> None:
    first = await Index.open(index_file)
    await first.add_blob(ONE, 10, 1.0)
    link = Link(Descriptor(ONE, "a/type", 10), proven=True)
    await first.link(HERE, [link])
    await first.set_tag(HERE, LATEST, RememberedTag(ONE, 1.5))
    await first.set_listing(HERE, "question", RememberedListing(b"[]", {}, 2.5))
    await first.aclose()
    for _ in range(2):
        second = await Index.open(index_file)
        assert await second.usage() == (1, 10)
        assert await second.linked(HERE, [ONE]) == [link]
        assert await second.tag(HERE, LATEST) == RememberedTag(ONE, 1.5)
        assert await second.listing(HERE, "question") == RememberedListing(b"[]", {}, 2.5)
        await second.aclose()


async def test_an_index_of_a_later_version_is_left_alone(index_file: Path) -> None:
    await (await Index.open(index_file)).aclose()
    with sqlite3.connect(index_file) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(IndexTooNew, match="99"):
        await Index.open(index_file)


async def test_a_file_that_is_no_index_is_a_storage_failure(index_file: Path) -> None:
    await asyncio.to_thread(index_file.write_bytes, b"this is no database" * 1000)
    with pytest.raises(StorageFailed, match="index"):
        await Index.open(index_file)


async def test_an_index_that_breaks_is_a_storage_failure(index: Index, index_file: Path) -> None:
    with sqlite3.connect(index_file) as connection:
        connection.execute("DROP TABLE tags")
    connection.close()
    with pytest.raises(StorageFailed, match="operator"):
        await index.tag(HERE, LATEST)
    with pytest.raises(StorageFailed, match="operator"):
        await index.ping()
    assert await index.usage() == (0, 0)


async def test_failures_are_counted_each_and_told_once_in_a_while(index_file: Path) -> None:
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    index = await Index.open(index_file, count)
    await index.ping()
    with sqlite3.connect(index_file) as connection:
        connection.execute("DROP TABLE tags")
    connection.close()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(StorageFailed):
                await index.tag(HERE, LATEST)
    await index.aclose()
    assert counted == 3
    assert [line["event"] for line in logs] == ["the index fails"]


async def test_blobs_are_known_until_they_are_forgotten(index: Index) -> None:
    await index.add_blob(ONE, 10, 1.0)
    assert await index.blob_size(ONE) == 10
    assert await index.blob_size(TWO) is None
    assert [await index.forget_blob(ONE) for _ in range(2)] == [10, None]
    assert await index.blob_size(ONE) is None


FIRST_VERSION = """
    CREATE TABLE blobs (digest VARCHAR NOT NULL, size_bytes INTEGER NOT NULL,
        created_at FLOAT NOT NULL, PRIMARY KEY (digest));
    CREATE TABLE links (upstream VARCHAR NOT NULL, repository VARCHAR NOT NULL,
        digest VARCHAR NOT NULL, media_type VARCHAR NOT NULL, size_bytes INTEGER,
        PRIMARY KEY (upstream, repository, digest));
    CREATE TABLE tags (upstream VARCHAR NOT NULL, repository VARCHAR NOT NULL,
        tag VARCHAR NOT NULL, digest VARCHAR NOT NULL, checked_at FLOAT NOT NULL,
        PRIMARY KEY (upstream, repository, tag));
    CREATE TABLE listings (upstream VARCHAR NOT NULL, repository VARCHAR NOT NULL,
        question VARCHAR NOT NULL, body BLOB NOT NULL, headers VARCHAR NOT NULL,
        checked_at FLOAT NOT NULL, PRIMARY KEY (upstream, repository, question));
    CREATE INDEX ix_listings_checked_at ON listings (checked_at);
    PRAGMA user_version = 1;
"""


async def test_an_index_of_the_first_version_becomes_a_current_one(
    index_file: Path, tmp_path: Path
) -> None:
    old = sqlite3.connect(index_file)
    old.executescript(FIRST_VERSION)
    old.execute("INSERT INTO blobs VALUES (?, 10, 1.0)", [str(ONE)])
    old.commit()
    old.close()
    index = await Index.open(index_file)
    assert await index.usage() == (1, 10)
    assert await index.blobs_to_check(1.0, 10) == [ONE], "nobody knows when it was checked"
    await index.aclose()
    await (await Index.open(tmp_path / "new.db")).aclose()
    assert shape_of(index_file) == shape_of(tmp_path / "new.db")


def shape_of(index_file: Path) -> dict[str, list[tuple[object, ...]]]:
    """The columns of each table and index."""
    with closing(sqlite3.connect(index_file)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master").fetchall()
        return {
            name: sorted(
                row[1:4]
                for what in ("table_info", "index_info")
                for row in connection.execute(f"PRAGMA {what}({name})")
            )
            for (name,) in names
        }


async def test_a_migration_that_fails_changes_nothing(index_file: Path) -> None:
    old = sqlite3.connect(index_file)
    old.executescript(FIRST_VERSION + "DROP TABLE links;")
    old.close()
    for _ in range(2):
        before = shape_of(index_file)
        with pytest.raises(StorageFailed):
            await Index.open(index_file)
        assert shape_of(index_file) == before


async def test_another_programs_lock_holds_up_one_change_and_no_question(
    index: Index, index_file: Path
) -> None:
    await index.set_tag(HERE, LATEST, RememberedTag(ONE, 1.5))
    with closing(sqlite3.connect(index_file)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = asyncio.get_running_loop().time()
        for _ in range(20):
            with pytest.raises(StorageFailed):
                await index.add_blob(TWO, 1, 1.0)
            assert await index.tag(HERE, LATEST) is not None
        assert asyncio.get_running_loop().time() - started < 10
        other.rollback()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tags SET digest = 'x'",
        "UPDATE tags SET checked_at = 'never'",
        "UPDATE links SET digest = x'00'",
        "UPDATE links SET size_bytes = 'much'",
        "UPDATE blobs SET size_bytes = 'much'",
        "UPDATE listings SET headers = '['",
    ],
)
async def test_what_makes_no_sense_is_a_failure_of_the_index(
    index: Index, index_file: Path, statement: str
) -> None:
    await index.set_tag(HERE, LATEST, RememberedTag(ONE, 1.5))
    await index.link(HERE, [Link(Descriptor(ONE, "x", 1), proven=True)])
    await index.add_blob(ONE, 10, 1.0)
    await index.set_listing(HERE, "q", RememberedListing(b"[]", {}, 1.0))
    with closing(sqlite3.connect(index_file)) as other, other:
        other.execute(statement)
    failures = 0
    for question in (
        lambda: index.tag(HERE, LATEST),
        lambda: index.linked(HERE, [ONE]),
        lambda: index.blob_size(ONE),
        lambda: index.listing(HERE, "q"),
    ):
        try:
            await question()
        except StorageFailed:
            failures += 1
    assert failures <= 1
    assert failures == 1 or "x'00'" in statement, "such a row is not even found"
