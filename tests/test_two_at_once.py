"""Two things wrong at the same time: what the client gets is as honest as with either."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.faults import Fault, Status
from tests.fakes.images import Image
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import some_bytes, until_idle
from tests.support.replies import error_of, is_stale

APP = "library/app"
LATEST = "/v2/app/manifests/latest"
LAYER = some_bytes(300_000)
LIMITED = Status(429, {"Retry-After": "77"})

pytestmark = pytest.mark.parametrize("fronts", [0, 2])


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return registry.add_image(APP, layers=[LAYER])


def layer_of(image: Image) -> str:
    return f"/v2/app/blobs/{image.layers[0]}"


def due(registry: FakeRegistry, **settings: object) -> dict[str, object]:
    return {"endpoints": [registry.url], "tag_ttl": "0s", **settings}


async def spoil_disk(house: House) -> None:
    """Nothing can be staged, and so nothing stored."""
    staging = house.storage / "staging"
    await asyncio.to_thread(shutil.rmtree, staging)
    staging.write_bytes(b"in the way")


def damage(house: House, digest: str) -> None:
    os.truncate(stored(house, digest), 10)


def stored(house: House, digest: str) -> Path:
    (path,) = (house.storage / "blobs").rglob(digest.partition(":")[2])
    return path


async def pull(house: House, image: Image) -> None:
    assert (await house.get(LATEST)).body == image.manifest
    assert (await house.get(layer_of(image))).body == LAYER
    await until_idle(house)


# --- The upstream's limit is reached, and the disk takes nothing ----------------------------------


@pytest.mark.parametrize("method", ["GET", None], ids=["HEAD is free", "HEAD is not"])
@pytest.mark.parametrize("wanted", [None, "bytes=5-", "bytes=5-9", "bytes=5-9,20-29"])
async def test_a_limit_is_told_while_the_disk_takes_nothing(
    registry: FakeRegistry,
    tmp_path: Path,
    image: Image,
    fronts: int,
    method: str | None,
    wanted: str | None,
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}, fronts=fronts) as house:
        await spoil_disk(house)
        registry.fail(LIMITED, kind="blob", method=method)
        async with asyncio.timeout(SOON_SECONDS):
            answer = await house.get(layer_of(image), {"Range": wanted} if wanted else None)
        assert error_of(answer) == (429, "TOOMANYREQUESTS")
        assert 70 < int(answer.headers["Retry-After"]) <= 77


async def test_a_moved_tag_that_is_limited_stays_what_it_was_while_the_disk_takes_nothing(
    registry: FakeRegistry, tmp_path: Path, image: Image, fronts: int
) -> None:
    async with mirroring(tmp_path, {"docker.io": due(registry)}, fronts=fronts) as house:
        await pull(house, image)
    async with mirroring(tmp_path, {"docker.io": due(registry)}, fronts=fronts) as house:
        await spoil_disk(house)
        registry.add_image(APP, layers=[b"new"])
        registry.fail(LIMITED, kind="manifest", method="GET")
        for _ in range(3):
            answer = await house.get(LATEST)
            assert (answer.body, is_stale(answer)) == (image.manifest, True)
        assert (await house.get(layer_of(image))).body == LAYER


# --- What is stored is damaged, and the upstream has it no more, or gives it to nobody ------------


@pytest.mark.parametrize("is_cold", [True, False], ids=["never here", "damaged"])
async def test_a_fresh_tag_whose_manifest_is_nowhere_is_asked_for_anew(
    registry: FakeRegistry, tmp_path: Path, image: Image, fronts: int, is_cold: bool
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}, fronts=fronts) as house:
        head = await house.head(LATEST)
        assert head.headers["Docker-Content-Digest"] == image.digest
        if not is_cold:
            await pull(house, image)
    async with mirroring(tmp_path, {"docker.io": registry}, fronts=fronts) as house:
        if not is_cold:
            damage(house, image.digest)
        new = registry.add_image(APP, layers=[b"new"])
        registry.remove_manifest(APP, image.digest)
        for _ in range(2):
            assert (await house.get(LATEST)).body == new.manifest
        assert await house.metric("mirror_digest_mismatches_total") == 0


async def test_who_asks_by_digest_learns_that_a_fresh_tag_has_moved(
    registry: FakeRegistry, tmp_path: Path, image: Image, fronts: int
) -> None:
    """As containerd does: HEAD by tag, GET by the digest that it tells."""
    upstream = {"endpoints": [registry.url], "not_found_ttl": "0s"}
    async with mirroring(tmp_path, {"docker.io": upstream}, fronts=fronts) as house:
        assert (await house.head(LATEST)).status == 200
        new = registry.add_image(APP, layers=[b"new"])
        registry.remove_manifest(APP, image.digest)
        assert (await house.get(f"/v2/app/manifests/{image.digest}")).status == 404
        head = await house.head(LATEST)
        assert head.headers["Docker-Content-Digest"] == new.digest
        assert (await house.get(f"/v2/app/manifests/{new.digest}")).body == new.manifest


async def test_a_fresh_tag_that_is_gone_with_its_damaged_manifest_is_404_and_can_come_back(
    registry: FakeRegistry, tmp_path: Path, image: Image, fronts: int
) -> None:
    upstream = {"endpoints": [registry.url], "not_found_ttl": "0s"}
    async with mirroring(tmp_path, {"docker.io": upstream}, fronts=fronts) as house:
        await pull(house, image)
    async with mirroring(tmp_path, {"docker.io": upstream}, fronts=fronts) as house:
        damage(house, image.digest)
        registry.fail(Status(404), kind="manifest")
        for _ in range(2):
            assert error_of(await house.get(LATEST)) == (404, "MANIFEST_UNKNOWN")
        registry.heal()
        assert (await house.get(LATEST)).body == image.manifest
        assert (await house.get(layer_of(image))).body == LAYER


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(LIMITED, (429, "TOOMANYREQUESTS")), (Status(404), (404, "BLOB_UNKNOWN"))],
    ids=repr,
)
async def test_a_damaged_layer_that_cannot_be_had_is_that_error_and_comes_back(
    registry: FakeRegistry,
    tmp_path: Path,
    image: Image,
    fronts: int,
    fault: Fault,
    expected: tuple[int, str],
) -> None:
    """The tag is gone upstream, too, and is served on."""
    upstream = due(registry, when_gone="serve", not_found_ttl="0s")
    async with mirroring(tmp_path, {"docker.io": upstream}, fronts=fronts) as house:
        await pull(house, image)
    async with mirroring(tmp_path, {"docker.io": upstream}, fronts=fronts) as house:
        damage(house, image.layers[0])
        registry.fail(fault, kind="blob")
        registry.fail(Status(404), kind="manifest")
        for wanted in ({}, {"Range": "bytes=5-"}, {"Range": "bytes=5-9"}):
            answer = await house.get(LATEST)
            assert (answer.body, is_stale(answer)) == (image.manifest, True)
            answer = await house.get(layer_of(image), wanted)
            assert error_of(answer) == expected
            assert ("Retry-After" in answer.headers) == (expected[0] == 429)
        assert await house.metric("mirror_damaged_blobs_total", reason="size") == 1


async def test_what_is_damaged_passes_a_disk_that_takes_nothing(
    registry: FakeRegistry, tmp_path: Path, image: Image, fronts: int
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}, fronts=fronts) as house:
        await pull(house, image)
    async with mirroring(tmp_path, {"docker.io": registry}, fronts=fronts) as house:
        damage(house, image.digest)
        damage(house, image.layers[0])
        await spoil_disk(house)
        for _ in range(2):
            assert (await house.get(LATEST)).body == image.manifest
            assert (await house.get(layer_of(image))).body == LAYER
            answer = await house.get(layer_of(image), {"Range": "bytes=-5"})
            assert (answer.status, answer.body) == (206, LAYER[-5:])
