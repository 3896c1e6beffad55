"""What the commands do to a cache that is being served from."""

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from mirror.manifest import Named
from mirror.names import Digest
from mirror.store import anatomy
from mirror.store.blobs import BlobStore
from mirror.store.inventory import Inventory, Tagged
from mirror.upkeep import sweeping
from mirror.upkeep.lines import Refused
from tests.fakes.client import raw_open
from tests.fakes.faults import Gate
from tests.fakes.images import Image, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.commands import A_DAY, pull, told
from tests.support.house import House, mirroring
from tests.support.layers import some_bytes, until_idle

HUB = "docker.io"
# What asks so may be given the same answer again (see web/repeats.py).
KEPT_OPEN = {"Connection": "keep-alive"}
BASE, ONE, TWO = (some_bytes(size, seed) for seed, size in enumerate((50_000, 30_000, 20_000)))


def two_images(registry: FakeRegistry) -> tuple[Image, Image]:
    """Tagged `one` and `two`, with a base in common."""
    one = registry.add_image("library/app", "one", [BASE, ONE])
    return one, registry.add_image("library/app", "two", [BASE, TWO])


def stored_by(image: Image) -> set[str]:
    return {image.digest, image.config, *image.layers}


# --- ls -------------------------------------------------------------------------------------------


async def test_images_are_listed_with_all_that_they_link_to(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    one, two = two_images(registry)
    arm = registry.add_image("org/multi", None, [b"arm"], platform="linux/arm64")
    amd = registry.add_image("org/multi", None, [b"amd"])
    index = registry.add_index("org/multi", "v1", {"linux/arm64": arm, "linux/amd64": amd})
    storage = {"path": str(tmp_path / "data"), "max_size": "1GiB"}
    async with mirroring(tmp_path, {HUB: registry}, storage=storage) as house:
        await pull(house, one, tag="one")
        await pull(house, two, tag="two")
        await pull(house, index, "org/multi", "v1")
        await pull(house, amd, "org/multi")
        listed = await told(house.storage, "ls", pattern=None)
        named = {each["image"]: each for each in listed.items}
        assert list(named) == [
            "docker.io/library/app:one",
            "docker.io/library/app:two",
            "docker.io/org/multi:v1",
        ]
        first = named["docker.io/library/app:one"]
        config = registry.contents[one.config]
        assert first["size_bytes"] == len(one.manifest) + len(config) + len(BASE) + len(ONE)
        assert first["digest"] == one.digest
        assert (first["platforms_here"], first["platforms"], first["blobs"]) == (1, 1, 4)
        assert time.time() - first["used_at"] < 60
        assert not first["pinned"]
        multi = named["docker.io/org/multi:v1"]
        assert (multi["platforms_here"], multi["platforms"], multi["blobs"]) == (1, 2, 4)
        total = listed.result
        assert (total["images"], total["blobs"]) == (3, len(house.stored_blobs()))
        assert total["blobs_bytes"] == total["images_bytes"]
        assert total["max_bytes"] == 1024**3


async def test_a_pattern_chooses(registry: FakeRegistry, tmp_path: Path) -> None:
    two_images(registry)
    expected = {"app": 2, "app:one": 1, "app:*": 2, "docker.io/*": 2, "*two": 1, "?": 0, "x": 0}
    async with mirroring(tmp_path, {HUB: registry}) as house:
        for tag in ("one", "two"):
            await house.get(f"/v2/app/manifests/{tag}")
        for pattern, count in expected.items():
            listed = await told(house.storage, "ls", pattern=pattern)
            assert listed.result["images"] == count, pattern


async def test_what_a_tag_has_left_behind_is_an_image_by_digest(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    one, two = two_images(registry)
    registry.tag("library/app", "latest", one.digest)
    due = {"endpoints": [registry.url], "tag_ttl": "0s"}
    async with mirroring(tmp_path, {HUB: due}) as house:
        await house.get("/v2/app/manifests/latest")
        registry.tag("library/app", "latest", two.digest)
        await house.get("/v2/app/manifests/latest")
        names = {each["image"] for each in (await told(house.storage, "ls")).items}
        assert names == {
            f"docker.io/library/app@{one.digest}",
            "docker.io/library/app:latest",
        }


async def test_what_arrives_while_all_is_looked_at_is_not_listed_yet(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = two_images(registry)
    tags = Inventory.tags

    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")

        async def meanwhile(inventory: Inventory) -> AsyncIterator[list[Tagged]]:
            await pull(house, two)
            async for page in tags(inventory):
                yield page

        monkeypatch.setattr(Inventory, "tags", meanwhile)
        listed = await told(house.storage, "ls", pattern=None)
        assert [each["digest"] for each in listed.items] == [one.digest]


# --- rm -------------------------------------------------------------------------------------------


async def test_an_image_goes_and_leaves_what_others_need(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    one, two = two_images(registry)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        await pull(house, two, tag="two")
        done = (await told(house.storage, "rm", image="app:one")).result
        assert (done["tags"], done["removed_blobs"], done["kept_blobs"]) == (["one"], 3, 1)
        assert done["kept_bytes"] == len(BASE)
        assert house.stored_blobs() == stored_by(two)
        assert await house.metric("mirror_cache_blobs") == 4
        registry.forget()
        await pull(house, two, tag="two")
        assert registry.count() == 0, "the other one lacks nothing"
        await pull(house, one, tag="one")
        assert registry.count("GET", "manifest") == 1
        assert house.stored_blobs() == stored_by(one) | stored_by(two)


@pytest.mark.parametrize("fronts", [0, 2])
async def test_what_went_is_not_served_any_more_from_memory(
    registry: FakeRegistry, tmp_path: Path, fronts: int
) -> None:
    one, _ = two_images(registry)
    named = [f"/v2/app/manifests/{each}" for each in ("one", one.digest)]
    paths = [*named, *(f"/v2/app/blobs/{each}" for each in (one.config, *one.layers))]
    async with mirroring(tmp_path, {HUB: registry}, fronts=fronts) as house:
        await pull(house, one, tag="one")
        served = [house.by_front(number) for number in range(max(fronts, 1))]
        for each in served * 2:
            for path in paths:
                assert (await each.get(path, KEPT_OPEN)).status == 200
        await told(house.storage, "rm", image="app:one")
        await registry.stop()
        for each in served:
            for gone in paths:
                assert (await each.get(gone, KEPT_OPEN)).status in (502, 504), gone


async def test_of_two_tags_one_goes_and_the_image_stays(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    one, _ = two_images(registry)
    registry.tag("library/app", "same", one.digest)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        await house.get("/v2/app/manifests/same")
        done = (await told(house.storage, "rm", image="docker.io/library/app:one")).result
        assert (done["removed_blobs"], done["kept_blobs"]) == (0, 4)
        assert done["other_names"] == ["docker.io/library/app:same"]
        done = (await told(house.storage, "rm", image=f"app@{one.digest}")).result
        assert (done["tags"], done["removed_blobs"]) == (["same"], 4)
        assert house.stored_blobs() == set()
        assert (await told(house.storage, "ls")).items == []


async def test_a_part_of_an_image_stays_with_it(registry: FakeRegistry, tmp_path: Path) -> None:
    amd = registry.add_image("library/app", None, [b"amd"])
    index = registry.add_index("library/app", "latest", {"linux/amd64": amd})
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, index, tag="latest")
        await pull(house, amd)
        with pytest.raises(Refused, match="a part of another image"):
            await told(house.storage, "rm", image=f"app@{amd.digest}")
        done = (await told(house.storage, "rm", image="app")).result
        assert done["removed_blobs"] == 4
        assert house.stored_blobs() == set()


async def test_an_image_under_two_names_goes_by_name(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    one, _ = two_images(registry)
    again = registry.add_image("org/copy", "one", [BASE, ONE])
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        await pull(house, again, "org/copy", "one")
        done = (await told(house.storage, "rm", image="org/copy:one")).result
        assert (done["removed_blobs"], done["kept_blobs"]) == (0, 4)
        await registry.stop()
        assert (await house.get(f"/v2/app/blobs/{one.layers[0]}")).status == 200
        assert (await house.get(f"/v2/org/copy/blobs/{one.layers[0]}")).status == 504


async def test_what_is_not_here_cannot_go(registry: FakeRegistry, tmp_path: Path) -> None:
    reasons = {
        "app:none": "is not here",
        "App": "is not a repository name",
        "app:a b": "is not a tag",
        "app@sha256:1": "is not a digest",
        f"app@{digest_of(b'')}": "is not here",
        "nowhere.example/app": "is not here, and nowhere.example is not an upstream",
        "mirror.example:5000/docker.io/app:one": "mirror's own address is left out",
        digest_of(b""): "does not tell the repository",
        "nowhere.example": "is not an upstream",
        "app\x1b[31m": "not a",
        "x" * 2000: "no more than",
        "": "not a",
    }
    async with mirroring(tmp_path, {HUB: registry}) as house:
        for image, reason in reasons.items():
            with pytest.raises(Refused, match=reason) as refused:
                await told(house.storage, "rm", image=image)
            assert refused.value.message.isprintable()


async def test_nothing_goes_while_a_manifest_cannot_be_read(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    one, two = two_images(registry)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        await pull(house, two, tag="two")
        file_of(house, two.digest).write_bytes(b"{}")
        for command, arguments in (
            ("rm", {"image": "app:one"}),
            ("gc", {"older_than_seconds": 0.0, "removes": True}),
        ):
            with pytest.raises(Refused, match="mirror verify"):
                await told(house.storage, command, **arguments)
        assert len(house.stored_blobs()) == 7


def file_of(house: House, digest: str) -> Path:
    algorithm, _, name = digest.partition(":")
    return house.storage / "blobs" / algorithm / name[:2] / name


async def test_what_arrives_while_all_is_looked_at_keeps_what_it_needs(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = two_images(registry)
    reading, may_go_on = threading.Event(), threading.Event()

    def slow(store: BlobStore, digest: Digest) -> Named | None:
        reading.set()
        may_go_on.wait(10)
        return anatomy.read_named(store, digest)

    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        monkeypatch.setattr("mirror.upkeep.survey.read_named", slow)
        asked = asyncio.ensure_future(told(house.storage, "rm", image="app:one"))
        await asyncio.to_thread(reading.wait)
        await pull(house, two, tag="two")
        may_go_on.set()
        assert (await asked).result["kept_bytes"] == len(BASE)
        assert house.stored_blobs() == stored_by(two)


# --- While others are at work ---------------------------------------------------------------------


async def test_who_reads_slowly_reads_on_while_it_goes(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    data = some_bytes(8_000_000)
    image = registry.add_image("library/app", "latest", [data])
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, image, tag="latest")
        async with raw_open(f"{house.url}/v2/app/blobs/{image.layers[0]}") as stream:
            body = await stream.read(1000)
            done = (await told(house.storage, "rm", image="app")).result
            assert done["removed_blobs"] == 3
            assert house.stored_blobs() == set()
            while piece := await stream.read():
                body += piece
            assert (digest_of(body), stream.ended) == (image.layers[0], "complete")


@pytest.mark.parametrize("command", ["rm", "gc"])
async def test_what_is_on_its_way_arrives(
    registry: FakeRegistry, tmp_path: Path, command: str
) -> None:
    data = some_bytes(300_000)
    image = registry.add_image("library/app", "latest", [data])
    gate = Gate(100_000)
    registry.fail(gate, kind="blob", method="GET")
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await house.get("/v2/app/manifests/latest")
        pulling = asyncio.ensure_future(house.get(f"/v2/app/blobs/{image.layers[0]}"))
        await gate.reached.wait()
        if command == "rm":
            await told(house.storage, "rm", image="app")
        else:
            await told(house.storage, "gc", older_than_seconds=0.0, removes=True)
        gate.open()
        assert (await pulling).body == data
        await until_idle(house)
        assert image.layers[0] in house.stored_blobs()
        assert not house.staged()


# --- gc -------------------------------------------------------------------------------------------


async def test_orphans_are_shown_and_then_removed(registry: FakeRegistry, tmp_path: Path) -> None:
    one, _ = two_images(registry)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
    orphan, young, damaged = b"nobody's", b"nobody's yet", b"wrong"
    add_file(tmp_path / "data", orphan, days=2)
    add_file(tmp_path / "data", young, days=0)
    aside = tmp_path / "data" / "damaged" / "sha256"
    aside.mkdir(parents=True)
    (aside / ("0" * 64)).write_bytes(damaged)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        before = house.stored_blobs()
        shown = await told(house.storage, "gc", older_than_seconds=A_DAY, removes=False)
        assert [(each["kind"], each["name"]) for each in shown.items] == [
            ("unknown", digest_of(orphan))
        ]
        assert (shown.result["removed"], shown.result["count"]) == (False, 1)
        assert house.stored_blobs() == before
        await told(house.storage, "gc", older_than_seconds=A_DAY, removes=True)
        assert house.stored_blobs() == before - {digest_of(orphan)}
        all_of_it = await told(house.storage, "gc", older_than_seconds=-1.0, removes=True)
        assert {each["kind"] for each in all_of_it.items} == {"unknown", "damaged"}
        assert house.stored_blobs() == stored_by(one)
        assert not (aside / ("0" * 64)).exists()
        assert await house.metric("mirror_cache_bytes", state="damaged") == 0


async def test_what_was_only_ever_pulled_by_digest_is_no_orphan(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """As Kubernetes pulls; nor what only an index names."""
    one = registry.add_image("library/app", None, [BASE, ONE])
    arm = registry.add_image("org/multi", None, [b"arm"], platform="linux/arm64")
    index = registry.add_index("org/multi", None, {"linux/arm64": arm})
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one)
        assert (await house.get(f"/v2/org/multi/manifests/{index.digest}")).status == 200
        await pull(house, arm, "org/multi")
    with closing(sqlite3.connect(tmp_path / "data" / "index.db")) as database:
        database.execute("DELETE FROM links WHERE digest NOT IN (?, ?)", (one.digest, index.digest))
        database.commit()
    async with mirroring(tmp_path, {HUB: registry}) as house:
        before = house.stored_blobs()
        assert before == stored_by(one) | stored_by(arm) | {index.digest}
        removed = await told(house.storage, "gc", older_than_seconds=-1.0, removes=True)
        assert removed.items == []
        assert house.stored_blobs() == before


async def test_much_that_goes_ends_with_its_asker_between_two_steps(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mirroring(tmp_path, {HUB: registry}):
        pass
    orphans = [some_bytes(100, seed) for seed in range(20)]
    for each in orphans:
        add_file(tmp_path / "data", each, days=2)
    monkeypatch.setattr(sweeping, "STEP_BLOBS", 5)
    begun, may_go_on = threading.Event(), threading.Event()
    delete = BlobStore._delete

    def slow(store: BlobStore, inodes: Mapping[Digest, int]) -> None:
        begun.set()
        may_go_on.wait(10)
        delete(store, inodes)

    async with mirroring(tmp_path, {HUB: registry}) as house:
        monkeypatch.setattr(BlobStore, "_delete", slow)
        asked = asyncio.ensure_future(
            told(house.storage, "gc", older_than_seconds=0.0, removes=True)
        )
        await asyncio.to_thread(begun.wait)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await asyncio.sleep(0.2)  # that it hung up is told
        may_go_on.set()
        swept = await told(house.storage, "gc", older_than_seconds=0.0, removes=False)
        assert swept.result["count"] == 15


async def test_what_the_index_knows_of_nobody_goes_too(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """As after an index was made anew: files, but no word of who holds them."""
    one, two = two_images(registry)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        await pull(house, two, tag="two")
    for name in ("index.db", "index.backup.db", "index.sound"):
        (tmp_path / "data" / name).unlink(missing_ok=True)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await house.get("/v2/app/manifests/one")
        swept = await told(house.storage, "gc", older_than_seconds=-1.0, removes=True)
        assert {each["kind"] for each in swept.items} == {"orphan"}
        assert house.stored_blobs() == stored_by(one), "what an image needs stays"
        assert await house.metric("mirror_cache_blobs") == 4


async def test_what_nobody_goes_on_with_goes(registry: FakeRegistry, tmp_path: Path) -> None:
    image = registry.add_image("library/app", "latest", [some_bytes(300_000)])
    gate = Gate(200_000)
    registry.fail(gate, kind="blob", method="GET")
    async with mirroring(tmp_path, {HUB: registry}, shutdown_grace="100ms") as house:
        await house.get("/v2/app/manifests/latest")
        pulling = asyncio.ensure_future(house.get(f"/v2/app/blobs/{image.layers[0]}"))
        await gate.reached.wait()
    await asyncio.gather(pulling, return_exceptions=True)
    registry.heal()
    async with mirroring(tmp_path, {HUB: registry}) as house:
        assert house.staged()
        shown = await told(house.storage, "gc", older_than_seconds=A_DAY, removes=True)
        assert (shown.items, bool(house.staged())) == ([], True)
        shown = await told(house.storage, "gc", older_than_seconds=-1.0, removes=True)
        assert [each["kind"] for each in shown.items] == ["begun"]
        assert not house.staged()


def add_file(storage: Path, data: bytes, days: int) -> None:
    digest = digest_of(data).removeprefix("sha256:")
    path = storage / "blobs" / "sha256" / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    at = time.time() - days * A_DAY
    os.utime(path, (at, at))


# --- verify ---------------------------------------------------------------------------------------


async def test_all_that_is_right_is_found_right(registry: FakeRegistry, tmp_path: Path) -> None:
    one, _ = two_images(registry)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        done = await told(house.storage, "verify", refetches=False)
        assert (done.items, done.result["wrong"], done.result["checked_blobs"]) == ([], 0, 4)
        assert done.result["checked_bytes"] == done.result["all_bytes"]


async def test_a_blob_that_the_index_forgot_is_known_again_once_it_was_read(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """As after a kill between the index and the disk, where an image that came later needs it."""
    one, _ = two_images(registry)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
    with closing(sqlite3.connect(tmp_path / "data" / "index.db")) as index, index:
        index.execute("DELETE FROM blobs WHERE digest = ?", [one.layers[0]])
    async with mirroring(tmp_path, {HUB: registry}) as house:
        assert (await told(house.storage, "ls")).result["blobs"] == 3
        done = await told(house.storage, "verify", refetches=False)
        assert (done.items, done.result["checked_blobs"]) == ([], 4)
        listed = (await told(house.storage, "ls")).result
        assert (listed["blobs"], listed["images_bytes"]) == (4, listed["blobs_bytes"])
        assert await house.metric("mirror_cache_blobs") == 4
        assert (await told(house.storage, "rm", image="app:one")).result["removed_blobs"] == 4
        assert house.stored_blobs() == set()


@pytest.mark.parametrize("refetches", [False, True])
async def test_what_is_wrong_is_set_aside_and_fetched_again(
    registry: FakeRegistry, tmp_path: Path, refetches: bool
) -> None:
    one, _ = two_images(registry)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        wrong = [one.layers[0], one.digest]
        for digest in wrong:
            file_of(house, digest).write_bytes(bytes(file_of(house, digest).stat().st_size))
        file_of(house, one.layers[1]).unlink()
        done = await told(house.storage, "verify", refetches=refetches)
        found = {each["digest"]: each for each in done.items if "size_bytes" in each}
        assert {digest: each["finding"] for digest, each in found.items()} == {
            **dict.fromkeys(wrong, "damaged"),
            one.layers[1]: "missing",
        }
        assert found[one.digest]["repositories"] == ["docker.io/library/app"]
        assert (done.result["wrong"], done.result["refetched"]) == (3, 3 * refetches)
        left = stored_by(one) if refetches else {one.config}
        assert house.stored_blobs() == left
        again = await told(house.storage, "verify", refetches=False)
        assert again.items == []
        assert len([path for path in (house.storage / "damaged").rglob("*") if path.is_file()]) == 2


async def test_nothing_is_fetched_again_but_what_was_wrong(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """Not the layers of a manifest, as if a client were about to ask for them."""
    one, _ = two_images(registry)
    ahead = {"endpoints": [registry.url], "prefetch": True}
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await house.get("/v2/app/manifests/one")
    async with mirroring(tmp_path, {HUB: ahead}) as house:
        file_of(house, one.digest).write_bytes(b"wrong")
        done = await told(house.storage, "verify", refetches=True)
        assert done.result["refetched"] == 1
        await asyncio.sleep(0.1)
        await until_idle(house)
        assert house.stored_blobs() == {one.digest}


async def test_what_cannot_be_fetched_again_is_told(registry: FakeRegistry, tmp_path: Path) -> None:
    one, _ = two_images(registry)
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, one, tag="one")
        file_of(house, one.layers[0]).unlink()
        await registry.stop()
        done = await told(house.storage, "verify", refetches=True)
        (_, last) = done.items
        assert last["finding"] == "not refetched"
        assert "docker.io" in last["reason"]
        assert done.result["refetched"] == 0


async def test_it_keeps_to_its_rate_and_tells_how_far_it_is(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image("library/app", "latest", [some_bytes(3 * 1024 * 1024)])
    async with mirroring(tmp_path, {HUB: registry}) as house:
        await pull(house, image, tag="latest")
        asked = asyncio.ensure_future(
            told(house.storage, "verify", bytes_per_second=4 * 1024 * 1024, refetches=False)
        )
        await asyncio.sleep(0.2)
        with pytest.raises(Refused, match="under way"):
            await told(house.storage, "verify", refetches=False)
        assert (await house.get(f"/v2/app/blobs/{image.config}")).status == 200
        done = await asked
        assert done.progress
        assert done.progress[0]["all_bytes"] == done.result["checked_bytes"]
