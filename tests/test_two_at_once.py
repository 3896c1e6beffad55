"""Two things wrong at the same time: what the client gets is as honest as with either."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.faults import Status
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
