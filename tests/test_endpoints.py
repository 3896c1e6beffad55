"""Where an upstream is asked, in which order, and in which words."""

import gzip
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp.connector
import pytest

from tests.fakes.auth import BearerAuth
from tests.fakes.faults import (
    Cut,
    Fault,
    Garbage,
    HangUp,
    Header,
    NoDigestHeader,
    OtherBody,
    Reset,
    Stall,
    Status,
    WrongByte,
)
from tests.fakes.images import OCI_MANIFEST
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.internet import PUBLIC, PUBLIC_CDN, pretend

APP = "org/app"
TAG = f"/v2/hub.test/{APP}/manifests/latest"
DATA = bytes(range(256)) * 1000


@pytest.fixture
async def second() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as second:
        second.add_image(APP)
        yield second


async def test_a_path_prefix_stands_before_the_repository(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.auth = BearerAuth()
    image = registry.add_image(f"docker-remote/{APP}")
    upstream = {"endpoints": [registry.url], "path_prefix": "docker-remote"}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        answer = await house.get(TAG)
        assert answer.body == image.manifest
        assert answer.headers["OCI-Namespace"] == "hub.test"
        assert (await house.get(f"/v2/hub.test/{APP}/blobs/{image.layers[0]}")).status == 200
        tags = await house.get(f"/v2/hub.test/{APP}/tags/list")
        assert b'"name":"hub.test/org/app"' in tags.body
        assert b'"org/app"' in (await house.get("/v2/_catalog?ns=hub.test")).body
    asked = [seen for seen in registry.requests if seen.kind != "token"]
    assert {seen.repository for seen in asked} == {f"docker-remote/{APP}"}
    scopes = [seen.query["scope"] for seen in registry.requests if seen.kind == "token"]
    assert scopes == [f"repository:docker-remote/{APP}:pull"]


@pytest.mark.parametrize("slash", ["", "/"])
async def test_an_endpoint_may_have_a_path(
    registry: FakeRegistry, tmp_path: Path, slash: str
) -> None:
    upstream = {"endpoints": [f"{registry.url}/artifactory/api/docker{slash}"]}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        await house.get(TAG)
    assert registry.requests[0].target == f"/artifactory/api/docker/v2/{APP}/manifests/latest"


async def test_an_endpoint_that_moved_to_another_address_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What DNS said counts for seconds, and not until a restart."""
    names, later_seconds = {"hub.test": PUBLIC}, 0.0
    pretend(monkeypatch, names)
    monkeypatch.setattr(aiohttp.connector, "monotonic", lambda: time.monotonic() + later_seconds)
    async with FakeRegistry(host=PUBLIC) as registry:
        registry.add_image(APP)
        upstream = {"endpoints": [f"http://hub.test:{registry.port}"], "tag_ttl": "0s"}
        async with mirroring(tmp_path, {"hub.test": upstream}) as house:
            assert (await house.get(TAG)).status == 200
            await registry.stop()
            moved = FakeRegistry(host=PUBLIC_CDN)
            moved.port = registry.port
            async with moved:
                new = moved.add_image(APP, layers=[b"new"])
                names["hub.test"], later_seconds = PUBLIC_CDN, 60.0
                await house.get_until(TAG, lambda answer: answer.body == new.manifest)


async def test_the_second_endpoint_is_not_asked_while_the_first_answers(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    upstream = {"endpoints": [registry.url, second.url]}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        assert (await house.get(TAG)).status == 200
    assert second.connections_accepted == 0


@pytest.mark.parametrize(
    "fault",
    [Status(404), Status(403), Status(401), Status(429), Status(500), HangUp()],
    ids=repr,
)
async def test_the_second_endpoint_is_asked_where_the_first_fails(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path, fault: Fault
) -> None:
    registry.fail(fault)
    digest = second.add_blob(APP, DATA)
    upstream = {"endpoints": [registry.url, second.url]}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        assert (await house.get(f"/v2/hub.test/{APP}/blobs/{digest}")).body == DATA
        assert (await house.get(TAG)).status == 200
        await registry.stop()
        assert (await house.get(f"/v2/hub.test/{APP}/tags/list")).status == 200


@pytest.mark.parametrize(
    ("first", "then", "status"),
    [(404, 404, 404), (404, 500, 502), (500, 404, 502), (403, 404, 403), (404, 429, 429)],
)
async def test_where_all_fail_the_one_that_leaves_it_open_is_told(
    registry: FakeRegistry,
    second: FakeRegistry,
    tmp_path: Path,
    first: int,
    then: int,
    status: int,
) -> None:
    registry.fail(Status(first))
    second.fail(Status(then))
    upstream = {"endpoints": [registry.url, second.url]}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        assert (await house.get(TAG)).status == status


# --- Encodings ------------------------------------------------------------------------------------


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {"hub.test": registry}) as house:
        yield house


GZIPPED = {"Content-Encoding": "gzip", "Content-Type": OCI_MANIFEST}
BOMB = gzip.compress(bytes(50_000_000))


async def test_everything_is_asked_for_as_it_is(registry: FakeRegistry, house: House) -> None:
    registry.auth = BearerAuth()
    image = registry.add_image(APP)
    for path in ("manifests/latest", f"blobs/{image.layers[0]}", "tags/list"):
        assert (await house.get(f"/v2/hub.test/{APP}/{path}")).status == 200
    kinds = {seen.kind for seen in registry.requests}
    assert kinds == {"manifest", "blob", "tags", "token"}
    assert {seen.headers["Accept-Encoding"] for seen in registry.requests} == {"identity"}


async def test_a_layer_that_is_labelled_gzip_keeps_its_bytes(
    registry: FakeRegistry, house: House
) -> None:
    """The layer is a gzip file; object stores tell that as its encoding."""
    layer = gzip.compress(DATA)
    digest = registry.add_blob(APP, layer)
    registry.fail(Header("Content-Encoding", "gzip"), kind="blob")
    answer = await house.get(f"/v2/hub.test/{APP}/blobs/{digest}")
    assert (answer.status, answer.body) == (200, layer)
    assert "Content-Encoding" not in answer.headers


async def test_a_blob_that_was_encoded_on_the_way_is_not_its_digest(
    registry: FakeRegistry, house: House
) -> None:
    digest = registry.add_blob(APP, bytes(50_000_000))
    registry.fail(Status(200, GZIPPED, BOMB), kind="blob")
    answer = await house.get(f"/v2/hub.test/{APP}/blobs/{digest}")
    assert answer.status == 502 or answer.ended != "complete"
    assert await house.metric("mirror_upstream_bytes_total", kind="blob") <= 5 * len(BOMB)
    assert house.stored_blobs() == set()


@pytest.mark.parametrize("faults", [[], [NoDigestHeader()]], ids=repr)
async def test_an_encoded_manifest_is_refused(
    registry: FakeRegistry, house: House, faults: Sequence[Fault]
) -> None:
    image = registry.add_image(APP)
    registry.fail(*faults, kind="manifest", method="HEAD")
    for body in (gzip.compress(image.manifest), BOMB):
        registry.fail(Status(200, GZIPPED, body), kind="manifest", method="GET", times=1)
        answer = await house.get(TAG)
        assert answer.status == 502
        assert b"encoded as 'gzip'" in answer.body
    assert house.stored_blobs() == set()
    assert (await house.get(TAG)).body == image.manifest


async def test_an_encoded_list_is_refused(registry: FakeRegistry, house: House) -> None:
    registry.add_image(APP)
    body = gzip.compress(b'{"name": "org/app", "tags": []}')
    registry.fail(Status(200, GZIPPED, body), kind="tags")
    assert (await house.get(f"/v2/hub.test/{APP}/tags/list")).status == 502


@pytest.mark.parametrize(
    "fault",
    [OtherBody(b"not it"), Garbage(), Cut(10), WrongByte(5), Reset(10), Stall(10)],
    ids=repr,
)
async def test_a_manifest_that_is_wrong_at_one_endpoint_comes_from_the_next(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path, fault: Fault
) -> None:
    image = registry.add_image(APP)
    registry.fail(fault, kind="manifest", method="GET")
    upstream = {"endpoints": [registry.url, second.url], "idle_timeout": "1s"}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        for reference in ("latest", image.digest):
            path = f"/v2/hub.test/{APP}/manifests/{reference}"
            assert (await house.get(path)).body == image.manifest


@pytest.mark.parametrize("fault", [OtherBody(b"not it"), Garbage(), Cut(10), Stall(10)], ids=repr)
async def test_a_list_that_is_wrong_at_one_endpoint_comes_from_the_next(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path, fault: Fault
) -> None:
    image = registry.add_image(APP)
    registry.fail(fault)
    upstream = {"endpoints": [registry.url, second.url], "idle_timeout": "1s"}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        for path in ("tags/list", f"referrers/{image.digest}"):
            assert (await house.get(f"/v2/hub.test/{APP}/{path}")).status == 200


async def test_a_list_that_is_wrong_is_none_though_the_next_endpoint_has_none(
    registry: FakeRegistry, second: FakeRegistry, tmp_path: Path
) -> None:
    """What would be told as an empty list might hide signatures."""
    image = registry.add_image(APP)
    registry.fail(Garbage(), kind="referrers")
    second.referrers_api = False
    upstream = {"endpoints": [registry.url, second.url]}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        assert (await house.get(f"/v2/hub.test/{APP}/referrers/{image.digest}")).status == 502
