"""Contents: what the store and the index make of one another."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.errors import StorageFailed
from mirror.manifest import OCI_INDEX, Manifest
from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.proxy.contents import HOT_BLOB_BYTES, OVERHEAD_BYTES, Contents
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.handles import Handle, StoredBlob
from mirror.store.index import Index
from mirror.store.quarantine import Quarantine
from mirror.store.room import Limits
from mirror.store.usage import Usage
from tests.support.layers import some_bytes

LARGE = some_bytes(HOT_BLOB_BYTES + 1)
DIGEST = Digest.of(LARGE)
HOT_BYTES = 10_000


@dataclass
class Room:
    store: BlobStore
    index: Index
    contents: Contents

    async def add(self, data: bytes) -> None:
        await self.store.write(Digest.of(data), data)
        await self.index.add_blob(Digest.of(data), len(data), 1.0)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    store, metrics = BlobStore(tmp_path / "data"), Metrics()
    await store.open()
    index = await Index.open(store.paths.index)
    usage = Usage(metrics)
    quarantine = Quarantine(store, index, usage, metrics)
    eviction = Eviction(store, index, usage, metrics, Limits())
    contents = Contents(store, index, quarantine, usage, eviction, HOT_BYTES)
    yield Room(store, index, contents)
    await contents.aclose()
    await quarantine.aclose()
    await index.aclose()
    await store.aclose()


async def opened(room: Room) -> StoredBlob:
    found = await room.contents.find(DIGEST)
    assert isinstance(found, StoredBlob)
    return found


async def test_a_manifest_that_the_index_does_not_know_is_noted_when_it_comes_again(
    room: Room,
) -> None:
    manifest = Manifest(Digest.of(b"{}"), OCI_INDEX, b"{}")
    await room.store.write(manifest.digest, manifest.body)
    assert await room.index.blob_size(manifest.digest) is None, "it failed when the manifest came"
    for _ in range(2):
        await room.contents.keep(manifest)
        assert await room.index.usage() == (1, 2)


async def test_a_blob_that_is_doubted_while_another_opens_it_is_not_handed_out(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.add(LARGE)
    find = room.store.find
    doubted: list[StoredBlob] = []

    async def find_late(digest: Digest) -> Handle | None:
        """Somebody else was first, and found it bad."""
        handle = await find(digest)
        if not doubted:
            other = await find(digest)
            assert other is not None
            kept = room.store.keep(digest, other)
            assert kept is not None
            kept.doubt()
            doubted.append(kept)
        return handle

    monkeypatch.setattr(room.store, "find", find_late)
    assert await room.contents.find(DIGEST) is None
    doubted[0].close()
    assert not await room.store.has(DIGEST), "it is set aside"
    await room.add(LARGE)
    (await opened(room)).close()


async def test_what_is_in_memory_is_bounded(room: Room) -> None:
    most = 3
    contents = [some_bytes(HOT_BYTES // most - OVERHEAD_BYTES, seed) for seed in range(most + 2)]
    for data in contents:
        await room.add(data)
        assert await room.contents.find(Digest.of(data)) == data
    hot = [room.contents.hot(Digest.of(data)) for data in contents]
    assert hot == [None, None, *contents[-most:]]


async def test_what_is_larger_than_the_memory_is_read_each_time(room: Room) -> None:
    data = some_bytes(HOT_BYTES)
    await room.add(data)
    for _ in range(2):
        assert await room.contents.find(Digest.of(data)) == data
        assert room.contents.hot(Digest.of(data)) is None


async def test_a_manifest_that_is_about_to_be_written_as_the_end_comes_is_written(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refused it once, and takes all again."""
    refused, stored = (Manifest(Digest.of(each), OCI_INDEX, each) for each in (b"{}", b"[]"))
    write, begun = room.store.write, asyncio.Event()

    async def refuse(_digest: Digest, _content: bytes) -> None:
        raise StorageFailed("the disk is full")

    async def never_end(digest: Digest, content: bytes) -> None:
        if digest == refused.digest:
            begun.set()
            await asyncio.Event().wait()
        await write(digest, content)

    monkeypatch.setattr(room.store, "write", refuse)
    await room.contents.keep(refused)
    monkeypatch.setattr(room.store, "write", never_end)
    await room.contents.keep(stored)
    await begun.wait()
    monkeypatch.setattr(room.store, "write", write)
    await room.contents.aclose()
    assert await room.store.has(refused.digest)
