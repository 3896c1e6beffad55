"""Links in the index: what a repository holds, and what a manifest merely names."""

import sqlite3
from pathlib import Path

import pytest

from mirror.manifest import Descriptor
from mirror.names import Digest, Repository
from mirror.store import links as links_module
from mirror.store.index import Index
from mirror.store.links import Link

HERE, SISTER = Repository("docker.io", "org/app"), Repository("docker.io", "org/other")
THERE = Repository("quay.io", "org/app")
ONE, TWO, THREE = Digest.of(b"one"), Digest.of(b"two", "sha512"), Digest.of(b"three")

# What files of version 1 have of interest.
FIRST_VERSION = """
    CREATE TABLE blobs (digest VARCHAR PRIMARY KEY, size_bytes INTEGER NOT NULL,
        created_at FLOAT NOT NULL);
    CREATE TABLE links (upstream VARCHAR NOT NULL, repository VARCHAR NOT NULL,
        digest VARCHAR NOT NULL, media_type VARCHAR NOT NULL, size_bytes INTEGER,
        PRIMARY KEY (upstream, repository, digest));
    PRAGMA user_version = 1;
"""


def proven(digest: Digest, media_type: str = "a/type", size_bytes: int | None = 3) -> Link:
    return Link(Descriptor(digest, media_type, size_bytes), proven=True)


def named(digest: Digest, media_type: str = "a/type", size_bytes: int | None = 3) -> Link:
    return Link(Descriptor(digest, media_type, size_bytes), proven=False)


async def test_links_belong_to_one_repository(index: Index) -> None:
    held = [proven(ONE), named(TWO, "", None), proven(ONE)]
    await index.link(HERE, held)
    await index.link(THERE, [])
    assert await index.linked(HERE, [ONE]) == held[:1]
    assert {link.descriptor.digest for link in await index.linked(HERE, [ONE, TWO, THREE])} == {
        ONE,
        TWO,
    }
    for elsewhere in (SISTER, THERE):
        assert await index.linked(elsewhere, [ONE, TWO]) == []


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (named(ONE, size_bytes=3), named(ONE, size_bytes=4), named(ONE, size_bytes=4)),
        (named(ONE, size_bytes=3), proven(ONE, size_bytes=4), proven(ONE, size_bytes=4)),
        (proven(ONE, size_bytes=3), named(ONE, size_bytes=4), proven(ONE, size_bytes=3)),
        (proven(ONE, size_bytes=3), proven(ONE, size_bytes=4), proven(ONE, size_bytes=4)),
    ],
)
async def test_the_newest_counts_and_a_name_never_undoes_a_proof(
    index: Index, first: Link, second: Link, kept: Link
) -> None:
    await index.link(HERE, [first])
    await index.link(HERE, [second])
    assert await index.linked(HERE, [ONE]) == [kept]


async def test_any_number_of_links_can_be_asked_for(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "MAX_DIGESTS_ASKED", 3)
    digests = [Digest.of(b"%d" % number) for number in range(10)]
    await index.link(HERE, [proven(digest) for digest in digests])
    found = await index.linked(HERE, digests)
    assert {link.descriptor.digest for link in found} == set(digests)
    assert await index.linked(HERE, []) == []


async def test_a_content_comes_from_where_it_is_proven(index: Index) -> None:
    assert await index.sources(ONE) == set()
    await index.link(HERE, [named(ONE)])
    assert await index.sources(ONE) == set()
    await index.link(SISTER, [proven(ONE)])
    await index.link(THERE, [named(ONE)])
    assert await index.sources(ONE) == {"docker.io"}
    await index.link(THERE, [proven(ONE)])
    assert await index.sources(ONE) == {"docker.io", "quay.io"}


async def test_what_an_older_version_noted_is_no_proof(index_file: Path) -> None:
    with sqlite3.connect(index_file) as older:
        older.executescript(FIRST_VERSION)
        for repository, digest in [(HERE, ONE), (SISTER, ONE), (HERE, TWO), (THERE, TWO)]:
            row = (repository.upstream, repository.name, str(digest), "a/type", 3)
            older.execute("INSERT INTO links VALUES (?, ?, ?, ?, ?)", row)
    older.close()
    index = await Index.open(index_file)
    assert await index.linked(HERE, [ONE]) == [named(ONE)]
    await index.link(HERE, [named(ONE), named(TWO)])
    await index.link(THERE, [named(ONE)])
    assert await index.sources(ONE) == {"docker.io"}, "nobody else can have brought it"
    assert await index.sources(TWO) == set(), "either one may have brought it"
    await index.link(THERE, [proven(TWO)])
    assert await index.sources(TWO) == {"quay.io"}
    await index.aclose()
