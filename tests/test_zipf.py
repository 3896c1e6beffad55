"""A mirror whose cache is a third of what is asked of it: it keeps to its size, and keeps what is
worth most. bench/zipf.py has longer streams, and sizes as of real layers.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.policies import Stream, least_recently_used, upper_bound
from bench.zipf import zipf
from mirror.store.blobs import BlobStore
from mirror.store.staging import StagedBlob
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, on_disk_bytes, path_of, until_idle

IMAGES, BASES, PULLS = 40, 5, 110
KIB = 1024


# --- What a stream could come to ------------------------------------------------------------------


@st.composite
def small_streams(draw: Callable[[Any], Any]) -> tuple[Stream, int]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    asked = draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=9))
    return Stream(asked, sizes), draw(st.integers(1, 20))


def best(stream: Stream, room_bytes: int, gain_of: Callable[[int], int]) -> int:
    """By trying everything that a cache could do."""
    reached = {frozenset[int](): 0}
    for blob in stream.asked:
        following: Counter[frozenset[int]] = Counter()
        for held, gained in reached.items():
            more = gained + (gain_of(stream.sizes[blob]) if blob in held else 0)
            for kept in _some_of(held | {blob}):
                if sum(stream.sizes[each] for each in kept) <= room_bytes:
                    following[kept] = max(following[kept], more)
        reached = dict(following)
    return max(reached.values())


def _some_of(held: frozenset[int]) -> list[frozenset[int]]:
    every: list[frozenset[int]] = [frozenset()]
    for each in held:
        every += [some | {each} for some in every]
    return every


@given(small_streams())
def test_no_cache_has_more_than_the_bound(given_: tuple[Stream, int]) -> None:
    stream, room_bytes = given_
    bound = upper_bound(stream, room_bytes)
    most = best(stream, room_bytes, lambda _: 1), best(stream, room_bytes, lambda size: size)
    assert most[0] <= bound.requests + 1e-9
    assert most[1] <= bound.bytes + 1e-9
    recent = least_recently_used(stream, room_bytes)
    assert recent.requests <= most[0]
    assert recent.bytes <= most[1]


def test_the_bound_of_a_cache_that_holds_all_is_all_but_the_first() -> None:
    stream = Stream([0, 1, 0, 1, 0], [3, 5])
    assert upper_bound(stream, 8).rates(stream) == (3 / 5, 11 / 19)
    assert least_recently_used(stream, 8).rates(stream) == (3 / 5, 11 / 19)


# --- A mirror -------------------------------------------------------------------------------------


@dataclass
class Watched:
    """The most that lay on the disk after any write: whole blobs, and what is on its way in."""

    folder: Path
    most_bytes: int = 0
    writes: int = 0

    def look(self) -> None:
        self.most_bytes = max(self.most_bytes, on_disk_bytes(self.folder))
        self.writes += 1


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched(tmp_path / "data")

    def looked_after(room: type, name: str) -> None:
        write = getattr(room, name)

        def watching(*arguments: Any) -> None:
            write(*arguments)
            watched.look()

        monkeypatch.setattr(room, name, watching)

    looked_after(BlobStore, "commit")
    looked_after(StagedBlob, "write")
    return watched


def fill(registry: FakeRegistry) -> list[dict[str, int]]:
    """Images of a base, which several have, and a layer of their own; of each its paths at the
    mirror, in the order in which a client asks for them, with their sizes in bytes.
    """
    chance = random.Random(5)
    bases = [chance.randbytes(chance.randint(50, 200) * KIB) for _ in range(BASES)]
    images = []
    for number in range(IMAGES):
        own = chance.randbytes(min(300 * KIB, int(chance.lognormvariate(10, 1.2))))
        layers = [bases[number % BASES], own]
        image = registry.add_image("org/app", f"v{number}", layers)
        paths = {f"/v2/{UPSTREAM}/org/app/manifests/v{number}": len(image.manifest)}
        paths[path_of(image.config)] = len(registry.contents[image.config])
        images.append(paths | {path_of(digest_of(each)): len(each) for each in layers})
    return images


async def counted(house: House, cache: str) -> int:
    """Of manifests and blobs."""
    return int(await house.metric("mirror_requests_total", cache=cache))


@pytest.mark.timeout(120)
async def test_a_cache_a_third_of_the_working_set(
    registry: FakeRegistry, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.config.values.MIN_MEMORY_BYTES", 0)  # all is read from the disk
    images = fill(registry)
    sizes = {path: size for image in images for path, size in image.items()}
    numbers = {path: number for number, path in enumerate(sizes)}
    pulled = [images[n] for n in zipf(IMAGES, PULLS, 0.9)]
    stream = Stream([numbers[path] for image in pulled for path in image], list(sizes.values()))
    max_kib = sum(sizes.values()) // 3 // KIB
    max_bytes = max_kib * KIB
    storage = {"path": str(tmp_path / "data"), "max_size": f"{max_kib}KiB"}
    settings: dict[str, Any] = {"storage": storage, "cache_memory": "1KiB"}
    async with mirroring(tmp_path, {UPSTREAM: registry}, **settings) as house:
        for image in pulled:
            for path, size in image.items():
                assert len((await house.get(path)).body) == size
                assert watched.most_bytes <= max_bytes, f"after {path}"
        await until_idle(house)
        hits, misses = await counted(house, "hit"), await counted(house, "miss")
        joined = await counted(house, "joined")
        assert await counted(house, "unstored") == 0
        assert await house.metric("mirror_evicted_blobs_total") > 30
    fetched = registry.count("GET", "blob") + registry.count("GET", "manifest")
    assert fetched == misses, "what was no hit was fetched, once"
    assert hits + misses + joined == len(stream.asked)
    assert watched.writes > misses
    assert watched.most_bytes > 0.8 * max_bytes
    ours = (len(stream.asked) - misses) / len(stream.asked)
    recent, _ = least_recently_used(stream, max_bytes).rates(stream)
    bound, _ = upper_bound(stream, max_bytes).rates(stream)
    assert recent < ours <= bound, (recent, ours, bound)
