"""`offline: true`: what is here is served, the rest is 404, and no socket is opened."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mirror.names import Repository, Tag
from mirror.store.index import Index
from mirror.store.remembered import RememberedTag
from tests.fakes.images import Image, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.replies import error_of, is_stale, json_of, message_of

APP = "library/app"
LATEST = "/v2/app/manifests/latest"
YEARS_SECONDS = 3 * 365 * 86400


def strict(registry: FakeRegistry) -> dict[str, Any]:
    """An upstream whose answers are due at once and may not stand in for long."""
    return {"endpoints": [registry.url], "tag_ttl": "0s", "stale_for": "1s"}


@pytest.fixture
async def image(registry: FakeRegistry, tmp_path: Path) -> Image:
    """An image that was pulled years ago, when the mirror was not offline."""
    image = registry.add_image(APP)
    paths = [LATEST, "/v2/app/tags/list", f"/v2/app/referrers/{image.digest}"]
    paths += [f"/v2/app/blobs/{digest}" for digest in (image.config, *image.layers)]
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path in paths:
            assert (await mirror.get(path)).status == 200
    index = await Index.open(tmp_path / "data" / "index.db")
    repository, tag = Repository("docker.io", APP), Tag("latest")
    remembered = await index.tag(repository, tag)
    assert remembered is not None
    old = RememberedTag(remembered.digest, remembered.checked_at - YEARS_SECONDS)
    await index.set_tag(repository, tag, old)
    await index.aclose()
    registry.forget()
    registry.connections_accepted = 0
    return image


async def test_what_is_here_is_served_however_old(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": strict(registry)}, offline=True) as mirror:
        for ask in (mirror.get, mirror.head):
            answer = await ask(LATEST)
            assert (answer.status, is_stale(answer)) == (200, True)
            assert int(answer.headers["Age"]) >= YEARS_SECONDS
            assert answer.headers["Docker-Content-Digest"] == image.digest
        by_digest = await mirror.get(f"/v2/app/manifests/{image.digest}")
        assert (by_digest.body, is_stale(by_digest)) == (image.manifest, False)
        for digest in (image.config, *image.layers):
            blob = await mirror.get(f"/v2/app/blobs/{digest}")
            assert digest_of(blob.body) == digest
            assert (await mirror.head(f"/v2/app/blobs/{digest}")).status == 200
        assert json_of(await mirror.get("/v2/app/tags/list"))["tags"] == ["latest"]
        referrers = await mirror.get(f"/v2/app/referrers/{image.digest}")
        assert json_of(referrers)["manifests"] == []
        assert is_stale(referrers)
        assert json_of(await mirror.get("/v2/_catalog")) == {"repositories": [f"docker.io/{APP}"]}
        assert registry.connections_accepted == 0


async def test_a_copy_of_blobs_and_index_is_served_elsewhere(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    inside = tmp_path / "inside"
    shutil.copytree(tmp_path / "data" / "blobs", inside / "data" / "blobs")
    shutil.copy(tmp_path / "data" / "index.db", inside / "data")
    async with mirroring(inside, {"docker.io": strict(registry)}, offline=True) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest
        for digest in (image.config, *image.layers):
            assert digest_of((await mirror.get(f"/v2/app/blobs/{digest}")).body) == digest
        assert registry.connections_accepted == 0


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("manifests/other", "MANIFEST_UNKNOWN"),
        (f"manifests/{digest_of(b'x')}", "MANIFEST_UNKNOWN"),
        (f"blobs/{digest_of(b'x')}", "BLOB_UNKNOWN"),
        (f"referrers/{digest_of(b'x')}", "NAME_UNKNOWN"),
        ("tags/list?n=7", "NAME_UNKNOWN"),
    ],
)
async def test_the_rest_is_404_and_says_why(
    registry: FakeRegistry, tmp_path: Path, image: Image, path: str, code: str
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}, offline=True) as mirror:
        answer = await mirror.get(f"/v2/app/{path}")
        assert error_of(answer) == (404, code)
        assert "offline" in message_of(answer)
        assert answer.headers["OCI-Namespace"] == "docker.io"
        assert (await mirror.head(f"/v2/app/{path}")).status == 404
        assert registry.connections_accepted == 0


async def test_what_another_repository_holds_stays_there(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}, offline=True) as mirror:
        for path in (f"manifests/{image.digest}", f"blobs/{image.config}"):
            answer = await mirror.get(f"/v2/org/stranger/{path}")
            assert answer.status == 404
            assert "offline" in message_of(answer)
        assert registry.connections_accepted == 0


OTHER = "library/other"


async def pull(mirror: House, repository: str, image: Image, *, but: str = "") -> None:
    """As by a node that has the layer `but` already."""
    found = await mirror.get(f"/v2/{repository}/manifests/{image.digest}")
    assert found.body == image.manifest
    for digest in {image.config, *image.layers} - {but}:
        blob = await mirror.get(f"/v2/{repository}/blobs/{digest}")
        assert (blob.status, digest_of(blob.body)) == (200, digest)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("node_has_base", [True, False])
async def test_a_layer_that_two_repositories_share_pulls_from_both(
    registry: FakeRegistry, tmp_path: Path, offline: bool, node_has_base: bool
) -> None:
    """A node that has the layer from the first image does not ask for it again with the second."""
    first = registry.add_image(APP, "latest", [b"base", b"first"])
    second = registry.add_image(OTHER, "latest", [b"base", b"second"])
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await pull(mirror, APP, first)
        await pull(mirror, OTHER, second, but=digest_of(b"base") if node_has_base else "")
    await registry.stop()
    async with mirroring(tmp_path, {"docker.io": registry}, offline=offline) as mirror:
        await pull(mirror, OTHER, second)
        await pull(mirror, APP, first)


@pytest.mark.parametrize("offline", [True, False])
async def test_a_layer_from_another_upstream_needs_the_word_of_this_one(
    registry: FakeRegistry, tmp_path: Path, offline: bool
) -> None:
    image = registry.add_image(APP, "latest", [b"base"])
    upstreams: dict[str, Any] = {"docker.io": registry, "quay.io": {"endpoints": [registry.url]}}
    path = f"/v2/quay.io/{APP}/blobs/{image.layers[0]}"
    async with mirroring(tmp_path, upstreams) as mirror:
        await pull(mirror, APP, image)
        await pull(mirror, f"quay.io/{APP}", image, but=image.layers[0])
    await registry.stop()
    async with mirroring(tmp_path, upstreams, offline=offline) as mirror:
        assert (await mirror.get(path)).status == (404 if offline else 504)
        await pull(mirror, APP, image)
    await registry.start()
    async with mirroring(tmp_path, upstreams) as mirror:
        assert (await mirror.get(path)).body == b"base"
    await registry.stop()
    async with mirroring(tmp_path, upstreams, offline=offline) as mirror:
        assert (await mirror.get(path)).body == b"base", "it was proven meanwhile"


@pytest.mark.parametrize("offline", [True, False])
async def test_what_an_older_version_cached_is_served(
    registry: FakeRegistry, tmp_path: Path, image: Image, offline: bool
) -> None:
    """It did not note what was proven."""
    with sqlite3.connect(tmp_path / "data" / "index.db") as index:
        index.execute("UPDATE links SET proven = NULL")
    index.close()
    await registry.stop()
    async with mirroring(tmp_path, {"docker.io": registry}, offline=offline) as mirror:
        for _ in range(2):
            await pull(mirror, APP, image)
        stranger = await mirror.get(f"/v2/org/stranger/blobs/{image.config}")
        assert stranger.status == (404 if offline else 504)


async def test_offline_says_nothing_of_absence(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    """Online again, what was 404 offline is asked for."""
    async with mirroring(tmp_path, {"docker.io": registry}, offline=True) as mirror:
        assert (await mirror.get("/v2/app/manifests/new")).status == 404
    registry.tag(APP, "new", image.digest)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert (await mirror.get("/v2/app/manifests/new")).body == image.manifest
