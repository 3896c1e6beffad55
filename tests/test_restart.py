"""What a second mirror knows of the first one's work in the same folder."""

from pathlib import Path

from tests.fakes.auth import BasicAuth
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.replies import is_stale, json_of

APP = "library/app"
LATEST = "/v2/app/manifests/latest"


async def test_a_fresh_tag_stays_fresh(registry: FakeRegistry, tmp_path: Path) -> None:
    image = registry.add_image(APP)
    paths = [LATEST, f"/v2/app/manifests/{image.digest}"]
    paths += [f"/v2/app/blobs/{digest}" for digest in (image.config, *image.layers)]
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        before = [await mirror.get(path) for path in paths]
    registry.forget()
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path, first in zip(paths, before, strict=True):
            second = await mirror.get(path)
            del first.headers["Date"], second.headers["Date"]
            assert (second.status, second.headers, second.body) == (200, first.headers, first.body)
            assert (await mirror.head(path)).status == 200
        assert await mirror.metric("mirror_requests_total", cache="hit") == 2 * len(paths)
    assert registry.count() == 0


async def test_everything_pulled_is_served_without_the_upstream(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    arm = registry.add_image(APP, None, [b"arm"], platform="linux/arm64")
    amd = registry.add_image(APP, None, [b"amd"])
    index = registry.add_index(APP, "latest", {"linux/arm64": arm, "linux/amd64": amd})
    due = {"endpoints": [registry.url], "tag_ttl": "0s"}
    async with mirroring(tmp_path, {"docker.io": due}) as mirror:
        await mirror.get(LATEST)
        await mirror.get(f"/v2/app/manifests/{amd.digest}")
        for digest in (amd.config, *amd.layers):
            await mirror.get(f"/v2/app/blobs/{digest}")
        await mirror.get("/v2/app/tags/list")
    await registry.stop()
    async with mirroring(tmp_path, {"docker.io": due}) as mirror:
        answer = await mirror.get(LATEST)
        assert (answer.body, is_stale(answer)) == (index.manifest, True)
        assert (await mirror.get(f"/v2/app/manifests/{amd.digest}")).body == amd.manifest
        for digest in (amd.config, *amd.layers):
            assert digest_of((await mirror.get(f"/v2/app/blobs/{digest}")).body) == digest
        assert json_of(await mirror.get("/v2/app/tags/list"))["tags"] == ["latest"]
        assert json_of(await mirror.get("/v2/_catalog")) == {"repositories": [f"docker.io/{APP}"]}
        assert (await mirror.get(f"/v2/app/manifests/{arm.digest}")).status == 504


async def test_what_is_stored_is_counted_again(registry: FakeRegistry, tmp_path: Path) -> None:
    image = registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
        await mirror.get(f"/v2/app/blobs/{image.config}")
    size_bytes = sum(path.stat().st_size for path in (tmp_path / "data" / "blobs").glob("*/*/*"))
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert await mirror.metric("mirror_cache_blobs") == len(mirror.stored_blobs()) == 2
        assert await mirror.metric("mirror_cache_bytes") == size_bytes


async def test_starting_asks_no_upstream(registry: FakeRegistry, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert (await mirror.get("/v2/")).status == 200
        assert (await mirror.get("/readyz")).status == 200
        assert registry.connections_accepted == 0


async def test_who_may_read_what_is_remembered(registry: FakeRegistry, tmp_path: Path) -> None:
    image = registry.add_image("org/private")
    registry.add_image("org/public", "latest", [b"public"])
    registry.auth = BasicAuth("alice", "secret")
    registry.private = {"org/private": {"alice"}}
    login = {"username": "alice", "password": "secret"}
    upstream = {"endpoints": [registry.url], "credentials": [login]}
    async with mirroring(tmp_path, {"docker.io": upstream}) as mirror:
        await mirror.get("/v2/org/private/manifests/latest")
        assert (await mirror.get(f"/v2/org/private/blobs/{image.config}")).status == 200
    await registry.stop()
    async with mirroring(tmp_path, {"docker.io": upstream}) as mirror:
        assert (await mirror.get(f"/v2/org/private/blobs/{image.config}")).status == 200
        for path in (f"blobs/{image.config}", f"manifests/{image.digest}"):
            assert (await mirror.get(f"/v2/org/public/{path}")).status == 504
