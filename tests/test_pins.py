"""Pinned images stay, whatever room is needed, and so does what of them arrives later."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.upkeep.lines import Refused
from tests.fakes.images import Image, Index
from tests.fakes.registry import FakeRegistry
from tests.support.commands import pull, told
from tests.support.house import House, mirroring
from tests.support.layers import some_bytes, until_idle

HUB = "docker.io"
NAME = "library/app"


def stored_by(image: Image) -> set[str]:
    return {image.digest, image.config, *image.layers}


def layer_path(registry: FakeRegistry, seed: int) -> str:
    return f"/v2/org/other/blobs/{registry.add_blob('org/other', some_bytes(250_000, seed))}"


async def fill(house: House, registry: FakeRegistry) -> None:
    """More than there is room for."""
    for seed in range(10, 15):
        assert (await house.get(layer_path(registry, seed))).status == 200
    await until_idle(house)


def bounded(folder: Path) -> dict[str, Any]:
    return {"storage": {"path": str(folder / "data"), "max_size": "1MiB"}}


def platforms(registry: FakeRegistry, seed: int = 0, tag: str = "latest") -> tuple[Index, Image]:
    """An index, and its image for one of two platforms."""
    arm = registry.add_image(NAME, None, [some_bytes(100, seed)], platform="linux/arm64")
    amd = registry.add_image(NAME, None, [some_bytes(100_000, seed + 1)])
    index = registry.add_index(NAME, tag, {"linux/arm64": arm, "linux/amd64": amd})
    return index, amd


async def test_a_pinned_image_is_never_evicted_until_it_is_unpinned(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    index, amd = platforms(registry)
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await pull(house, index, tag="latest")
        await pull(house, amd)
        done = (await told(house.storage, "pin", image="app")).result
        assert (done["blobs"], done["digest"]) == (4, index.digest)
        assert done["size_bytes"] == done["pinned_bytes"] > 100_000
        await fill(house, registry)
        assert await house.metric("mirror_evicted_blobs_total") > 0
        assert house.stored_blobs() >= {index.digest, *stored_by(amd)}
        (listed,) = (await told(house.storage, "ls", pattern="app:latest")).items
        assert listed["pinned"]
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        done = (await told(house.storage, "unpin", image="app:latest")).result
        assert done["pinned_bytes"] == 0
        for _ in range(2):
            await fill(house, registry)
        assert amd.layers[0] not in house.stored_blobs()


async def test_what_arrives_later_is_pinned_as_it_comes(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    index, amd = platforms(registry)
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await pull(house, index, tag="latest")
        assert (await told(house.storage, "pin", image="app")).result["blobs"] == 1
        await pull(house, amd)
        await fill(house, registry)
        assert house.stored_blobs() >= {index.digest, *stored_by(amd)}


async def test_a_layer_that_was_here_is_pinned_once_a_manifest_names_it(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    index, amd = platforms(registry)
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await house.get(f"/v2/app/blobs/{amd.layers[0]}")
        await until_idle(house)
        await pull(house, index, tag="latest")
        await told(house.storage, "pin", image="app")
        await house.get(f"/v2/app/manifests/{amd.digest}")
        await fill(house, registry)
        assert amd.layers[0] in house.stored_blobs()


async def test_a_pin_follows_its_tag(registry: FakeRegistry, tmp_path: Path) -> None:
    old = registry.add_image(NAME, "latest", [some_bytes(100_000, 1)])
    due = {"endpoints": [registry.url], "tag_ttl": "0s"}
    async with mirroring(tmp_path, {HUB: due}, **bounded(tmp_path)) as house:
        await pull(house, old, tag="latest")
        await told(house.storage, "pin", image="app")
        new = registry.add_image(NAME, "latest", [some_bytes(100_000, 2)])
        await pull(house, new, tag="latest")
        for _ in range(2):
            await fill(house, registry)
        assert house.stored_blobs() >= stored_by(new)
        assert old.layers[0] not in house.stored_blobs()
        with pytest.raises(Refused, match="is pinned, as latest, and stays"):
            await told(house.storage, "rm", image="app")
        with pytest.raises(Refused, match="is pinned, as latest, and stays"):
            await told(house.storage, "rm", image=f"app@{new.digest}")


async def test_a_digest_that_is_pinned_stays_as_its_tag_moves(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    old = registry.add_image(NAME, "latest", [some_bytes(100_000, 1)])
    due = {"endpoints": [registry.url], "tag_ttl": "0s"}
    async with mirroring(tmp_path, {HUB: due}, **bounded(tmp_path)) as house:
        await pull(house, old, tag="latest")
        await told(house.storage, "pin", image=f"app@{old.digest}")
        new = registry.add_image(NAME, "latest", [some_bytes(100_000, 2)])
        await pull(house, new, tag="latest")
        await fill(house, registry)
        assert house.stored_blobs() >= stored_by(old)
        with pytest.raises(Refused, match=f"by that name; .* are: {old.digest}"):
            await told(house.storage, "unpin", image="app")
        done = (await told(house.storage, "rm", image="app:latest")).result
        assert done["removed_blobs"] > 0
        assert house.stored_blobs() >= stored_by(old)


async def test_what_two_pins_need_stays_while_one_of_them_does(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    base = some_bytes(100_000, 1)
    images = [registry.add_image(NAME, tag, [base, tag.encode()]) for tag in ("one", "two")]
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        for tag, image in zip(("one", "two"), images, strict=True):
            await pull(house, image, tag=tag)
            await told(house.storage, "pin", image=f"app:{tag}")
        await told(house.storage, "unpin", image="app:one")
        done = (await told(house.storage, "rm", image="app:one")).result
        assert (done["removed_blobs"], done["kept_blobs"]) == (3, 1)
        await fill(house, registry)
        assert house.stored_blobs() >= stored_by(images[1])


async def test_a_damaged_layer_of_a_pinned_image_comes_back_pinned(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(NAME, "latest", [some_bytes(100_000, 1)])
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await pull(house, image, tag="latest")
        await told(house.storage, "pin", image="app")
        (file,) = (house.storage / "blobs").glob(f"*/*/{image.layers[0].removeprefix('sha256:')}")
        file.write_bytes(b"wrong")
        done = await told(house.storage, "verify", refetches=True)
        assert done.result["refetched"] == 1
        await fill(house, registry)
        assert house.stored_blobs() >= stored_by(image)


async def test_pins_outlive_an_index_that_is_made_anew(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(NAME, "latest", [some_bytes(100_000, 1)])
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await pull(house, image, tag="latest")
        await told(house.storage, "pin", image="app")
    (tmp_path / "data" / "index.db").unlink()
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await fill(house, registry)
        assert house.stored_blobs() >= stored_by(image)


@contextmanager
def no_needs_written(house: House) -> Iterator[None]:
    """The index takes everything but what pins need, as if the disk failed right there."""
    with closing(sqlite3.connect(house.storage / "index.db")) as connection:
        connection.execute(
            "CREATE TRIGGER sabotage BEFORE INSERT ON needs BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        yield
        connection.execute("DROP TRIGGER sabotage")


async def test_a_pin_that_cannot_be_written_again_stays_what_it_was(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(NAME, "latest", [some_bytes(100_000, 1)])
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await pull(house, image, tag="latest")
        with no_needs_written(house), pytest.raises(Refused, match="index fails"):
            await told(house.storage, "pin", image="app")
        with pytest.raises(Refused, match="is not pinned"):
            await told(house.storage, "unpin", image="app")
        await told(house.storage, "pin", image="app")
        with no_needs_written(house), pytest.raises(Refused, match="index fails"):
            await told(house.storage, "pin", image="app")
        for _ in range(2):
            await fill(house, registry)
        assert house.stored_blobs() >= stored_by(image)
        assert (await told(house.storage, "unpin", image="app")).result["pinned_bytes"] == 0


async def test_a_pin_that_cannot_follow_its_tag_keeps_what_it_kept_until_it_can(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    old = registry.add_image(NAME, "latest", [some_bytes(100_000, 1)])
    due = {"endpoints": [registry.url], "tag_ttl": "0s"}
    async with mirroring(tmp_path, {HUB: due}, **bounded(tmp_path)) as house:
        await pull(house, old, tag="latest")
        await told(house.storage, "pin", image="app")
        new = registry.add_image(NAME, "latest", [some_bytes(100_000, 2)])
        with no_needs_written(house):
            await pull(house, new, tag="latest")
    async with mirroring(tmp_path, {HUB: due}, **bounded(tmp_path)) as house:
        await fill(house, registry)
        assert house.stored_blobs() >= stored_by(old)
        await pull(house, new, tag="latest")
        for _ in range(2):
            await fill(house, registry)
        assert house.stored_blobs() >= stored_by(new)
        assert old.layers[0] not in house.stored_blobs()


async def test_what_two_pins_need_is_noted_for_both_as_it_arrives(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """Of one content under two manifests, as when an image is annotated anew."""
    layer = some_bytes(100_000, 1)
    copy = registry.add_image(NAME, "copy", [layer], annotations={"built": "again"})
    amd = registry.add_image(NAME, None, [layer])
    index = registry.add_index(NAME, "latest", {"linux/amd64": amd})
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await pull(house, index, tag="latest")
        await told(house.storage, "pin", image="app:latest")
        await pull(house, copy, tag="copy")
        await told(house.storage, "pin", image="app:copy")
        await pull(house, amd)
        await told(house.storage, "unpin", image="app:copy")
        for _ in range(2):
            await fill(house, registry)
        assert house.stored_blobs() >= stored_by(amd)


async def test_nothing_goes_where_all_that_may_go_is_not_enough(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    pinned = registry.add_image(NAME, "latest", [some_bytes(700_000, 1)])
    small = registry.add_image("org/small", None, [some_bytes(100_000, 2)])
    large = registry.add_image("org/large", None, [some_bytes(500_000, 3)])
    async with mirroring(tmp_path, {HUB: registry}, **bounded(tmp_path)) as house:
        await pull(house, pinned, tag="latest")
        await told(house.storage, "pin", image="app")
        await pull(house, small, "org/small")
        await pull(house, large, "org/large")
        assert large.layers[0] not in house.stored_blobs(), "it went past the disk"
        assert small.layers[0] in house.stored_blobs()


async def test_what_is_not_here_cannot_be_pinned(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(NAME, "latest")
    async with mirroring(tmp_path, {HUB: registry}) as house:
        for command, reason in (("pin", "pull it once"), ("unpin", "is not pinned")):
            with pytest.raises(Refused, match=reason):
                await told(house.storage, command, image="app")
        await house.head("/v2/app/manifests/latest")
        with pytest.raises(Refused, match="pull it once"):
            await told(house.storage, "pin", image="app")
