"""Content is stored once, and served only under a repository that holds it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.client import RawResponse
from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.delivery import BEFORE_HEADERS
from tests.fakes.faults import Gate, IgnoreRange, Stall, Status
from tests.fakes.images import OCI_INDEX, OCI_MANIFEST, Image, describe, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import until_idle

LAYER = b"a private layer " * 20_000
HOLDER = "/v2/hub.test/org/secret"
ALSO = "/v2/hub.test/org/also"
OPEN = "/v2/hub.test/org/open"

# Names under which the upstream does not have the content, and what it says to a question for it.
ELSEWHERE = [
    ("/v2/hub.test/org/open/{}", 404),
    ("/v2/org/open/{}?ns=hub.test", 404),
    ("/hub.test/v2/org/open/{}", 404),
    ("/v2/hub/org/open/{}", 404),
    ("/v2/hub.test/org/closed/{}", 403),
    ("/v2/other.test/org/secret/{}", 404),
    ("/v2/org/secret/{}?ns=other.test", 404),
    ("/other/v2/org/secret/{}", 404),
    ("/v2/org/secret/{}", 404),
]


@pytest.fixture
async def other() -> AsyncIterator[FakeRegistry]:
    """The other upstream, which is the default one. It has the same names and other contents."""
    async with FakeRegistry() as other:
        other.add_image("org/secret")
        yield other


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    """In org/secret and org/also; org/open and org/closed hold something else."""
    image = registry.add_image("org/secret", layers=[LAYER])
    registry.add_image("org/also", layers=[LAYER])
    registry.add_image("org/open")
    registry.add_image("org/closed")
    registry.private = {"org/closed": {"bob"}}
    return image


@pytest.fixture
async def house(
    registry: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> AsyncIterator[House]:
    upstreams = {
        "hub.test": {"endpoints": [registry.url], "alias": "hub", "not_found_ttl": "0s"},
        "other.test": {"endpoints": [other.url], "alias": "other", "not_found_ttl": "0s"},
    }
    async with mirroring(tmp_path, dict(upstreams), default_upstream="other.test") as house:
        yield house


@pytest.fixture
async def cached(house: House, registry: FakeRegistry, image: Image) -> House:
    """The image was pulled from org/secret."""
    await pull(house, HOLDER, image)
    await until_idle(house)
    registry.forget()
    return house


async def pull(house: House, name: str, image: Image) -> None:
    assert (await house.get(f"{name}/manifests/latest")).body == image.manifest
    for digest in (image.config, *image.layers):
        assert (await house.get(f"{name}/blobs/{digest}")).status == 200


def asked(*registries: FakeRegistry) -> set[tuple[str, str, str | None]]:
    return {
        (seen.method, seen.kind, seen.headers.get("Range"))
        for registry in registries
        for seen in registry.requests
    }


@pytest.mark.parametrize(("path", "status"), ELSEWHERE)
async def test_a_cached_layer_is_not_served_under_another_name(
    cached: House,
    registry: FakeRegistry,
    other: FakeRegistry,
    image: Image,
    path: str,
    status: int,
) -> None:
    path = path.format(f"blobs/{image.layers[0]}")
    answers = [
        await cached.head(path),
        await cached.get(path),
        await cached.get(path, {"Range": "bytes=0-9"}),
        await cached.get(path, {"Range": "bytes=-9"}),
        await cached.get(path, {"Range": "bytes=0-9,20-29"}),
        await cached.get(path, {"If-None-Match": f'"{image.layers[0]}"'}),
        await cached.head(path, {"If-None-Match": f'"{image.layers[0]}"'}),
    ]
    assert {answer.status for answer in answers} == {status}
    assert not any(b"private" in answer.body for answer in answers)
    assert asked(registry, other) == {("HEAD", "blob", None)} | (
        {("GET", "blob", "bytes=0-0")} if status == 403 else set()
    )


@pytest.mark.parametrize(("path", "status"), ELSEWHERE[::2])
async def test_a_cached_manifest_is_not_served_under_another_name(
    cached: House,
    registry: FakeRegistry,
    other: FakeRegistry,
    image: Image,
    path: str,
    status: int,
) -> None:
    path = path.format(f"manifests/{image.digest}")
    answers = [
        await cached.head(path),
        await cached.get(path),
        await cached.get(path, {"If-None-Match": f'"{image.digest}"'}),
    ]
    assert {answer.status for answer in answers} == {status}
    assert not any(image.config.encode() in answer.body for answer in answers)
    assert asked(registry, other) == {("HEAD", "manifest", None)}


async def test_another_repository_that_holds_it_gets_it_after_one_question(
    cached: House, registry: FakeRegistry, image: Image
) -> None:
    for _ in range(3):
        assert (await cached.get(f"{ALSO}/blobs/{image.layers[0]}")).body == LAYER
    assert [(seen.method, seen.repository) for seen in registry.requests] == [("HEAD", "org/also")]


async def test_what_was_proven_is_known_after_a_restart(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    for heads in (1, 0):
        async with mirroring(tmp_path, {"hub.test": registry}) as house:
            if heads:
                await pull(house, HOLDER, image)
            registry.forget()
            assert (await house.get(f"{ALSO}/blobs/{image.layers[0]}")).body == LAYER
            assert (registry.count("HEAD"), registry.count()) == (heads, heads)


async def test_one_more_repository_with_the_same_layer_downloads_nothing(
    cached: House, registry: FakeRegistry, image: Image
) -> None:
    await pull(cached, ALSO, image)
    assert registry.body_bytes("blob") == 0
    assert registry.count("GET", "blob") == 0


async def test_one_more_upstream_with_the_same_layer_downloads_nothing(
    cached: House, other: FakeRegistry, image: Image
) -> None:
    other.add_image("org/copy", layers=[LAYER])
    await pull(cached, "/v2/other.test/org/copy", image)
    assert other.body_bytes("blob") == 0


async def test_a_head_upstream_that_grants_is_remembered_for_get(
    cached: House, registry: FakeRegistry, image: Image
) -> None:
    assert (await cached.head(f"{ALSO}/blobs/{image.layers[0]}")).status == 200
    assert (await cached.get(f"{ALSO}/blobs/{image.layers[0]}")).body == LAYER
    assert registry.count() == 1


# --- While it arrives -----------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status"), ELSEWHERE[::4])
async def test_whoever_has_no_right_cannot_join_an_arrival(
    house: House, registry: FakeRegistry, image: Image, path: str, status: int
) -> None:
    gate = Gate(1000)
    registry.fail(gate, kind="blob", method="GET", repository="org/secret")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(house.get(f"{HOLDER}/blobs/{image.layers[0]}"))
        await gate.reached.wait()
        answer = await house.get(path.format(f"blobs/{image.layers[0]}"))
        assert answer.status == status
        assert b"private" not in answer.body
        gate.open()
    assert first.result().body == LAYER


async def test_whoever_has_the_right_joins_an_arrival(
    house: House, registry: FakeRegistry, image: Image
) -> None:
    gate = Gate(1000)
    registry.fail(gate, kind="blob", method="GET")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(house.get(f"{HOLDER}/blobs/{image.layers[0]}"))]
        await gate.reached.wait()
        tasks.append(group.create_task(house.get(f"{ALSO}/blobs/{image.layers[0]}")))
        await registry.until(lambda: registry.count("HEAD", "blob", "org/also") == 1)
        gate.open()
    assert [task.result().body for task in tasks] == [LAYER, LAYER]
    assert registry.count("GET", "blob") == 1


async def test_whoever_has_no_right_gains_nothing_by_asking_at_the_same_moment(
    house: House, registry: FakeRegistry, image: Image
) -> None:
    digests = [registry.add_blob("org/secret", b"%d" % n + LAYER) for n in range(20)]

    async def ask(name: str, digest: str) -> RawResponse:
        return await house.get(f"{name}/blobs/{digest}")

    for digest in digests:
        intruders = [ask(OPEN, digest) for _ in range(3)]
        answers = await asyncio.gather(*intruders, ask(HOLDER, digest), ask(OPEN, digest))
        assert [answer.status for answer in answers] == [404, 404, 404, 200, 404]


# --- What proves nothing --------------------------------------------------------------------------


def naming(content: bytes, **how: object) -> bytes:
    """A manifest with this content as its layer."""
    layer = {**describe(content, "application/vnd.oci.image.layer.v1.tar"), **how}
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [layer],
        }
    ).encode()


@pytest.mark.parametrize(
    "how",
    [
        {"urls": ["https://elsewhere.test/layer"]},
        {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"},
    ],
    ids=repr,
)
async def test_a_manifest_that_names_a_layer_it_need_not_hold_grants_nothing(
    cached: House, registry: FakeRegistry, image: Image, how: dict[str, object]
) -> None:
    registry.add_manifest("org/open", naming(LAYER, **how), OCI_MANIFEST, "foreign")
    assert (await cached.get(f"{OPEN}/manifests/foreign")).status == 200
    assert (await cached.get(f"{OPEN}/blobs/{image.layers[0]}")).status == 404


async def test_a_subject_and_an_index_grant_nothing(
    cached: House, registry: FakeRegistry, image: Image
) -> None:
    registry.add_referrer("org/open", image, "test/signature", tag="signature")
    registry.add_index("org/open", "index", {"linux/amd64": image})
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [describe(LAYER, OCI_MANIFEST)],
        }
    ).encode()
    registry.add_manifest("org/open", body, OCI_INDEX, "index-of-layers")
    for tag in ("signature", "index", "index-of-layers"):
        assert (await cached.get(f"{OPEN}/manifests/{tag}")).status == 200
    assert (await cached.get(f"{OPEN}/manifests/{image.digest}")).status == 404
    assert (await cached.head(f"{OPEN}/manifests/{image.digest}")).status == 404
    assert (await cached.get(f"{OPEN}/blobs/{image.layers[0]}")).status == 404


# --- What a manifest merely names -----------------------------------------------------------------

# Names under which anybody may push, at the same upstream and at the other one.
THIEVES = [OPEN, "/v2/other.test/org/secret"]


def push(registry: FakeRegistry, other: FakeRegistry, thief: str, manifest: bytes) -> None:
    to, repository = (registry, "org/open") if thief == OPEN else (other, "org/secret")
    to.add_manifest(repository, manifest, OCI_MANIFEST, "theft")


@pytest.mark.parametrize("thief", THIEVES)
async def test_naming_a_cached_layer_does_not_make_it_readable(
    cached: House, registry: FakeRegistry, other: FakeRegistry, image: Image, thief: str
) -> None:
    push(registry, other, thief, naming(LAYER))
    assert (await cached.get(f"{thief}/manifests/theft")).status == 200
    path = f"{thief}/blobs/{image.layers[0]}"
    answers = [
        await cached.get(path),
        await cached.get(path, {"Range": "bytes=0-9"}),
        await cached.get(path, {"Range": "bytes=-9"}),
        await cached.get(path, {"If-None-Match": f'"{image.layers[0]}"'}),
    ]
    assert {answer.status for answer in answers} == {404}
    assert not any(b"private" in answer.body for answer in answers)
    assert registry.count("GET", "blob") + other.count("GET", "blob") == 0


@pytest.mark.parametrize("thief", THIEVES)
async def test_naming_a_cached_manifest_as_a_layer_does_not_make_it_readable(
    cached: House, registry: FakeRegistry, other: FakeRegistry, image: Image, thief: str
) -> None:
    push(registry, other, thief, naming(image.manifest, mediaType=OCI_MANIFEST))
    assert (await cached.get(f"{thief}/manifests/theft")).status == 200
    for kind in ("manifests", "blobs"):
        assert (await cached.get(f"{thief}/{kind}/{image.digest}")).status == 404
    assert (await cached.head(f"{thief}/manifests/{image.digest}")).status == 404


@pytest.mark.parametrize("thief", THIEVES)
async def test_naming_a_layer_does_not_let_one_join_its_arrival(
    house: House, registry: FakeRegistry, other: FakeRegistry, image: Image, thief: str
) -> None:
    push(registry, other, thief, naming(LAYER))
    assert (await house.get(f"{thief}/manifests/theft")).status == 200
    gate = Gate(1000)
    registry.fail(gate, kind="blob", method="GET", repository="org/secret")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(house.get(f"{HOLDER}/blobs/{image.layers[0]}"))
        await gate.reached.wait()
        answer = await house.get(f"{thief}/blobs/{image.layers[0]}")
        assert answer.status == 404
        gate.open()
    assert first.result().body == LAYER


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_another_upstream_gains_nothing_by_failing(
    cached: House, registry: FakeRegistry, other: FakeRegistry, image: Image, status: int
) -> None:
    thief = THIEVES[1]
    push(registry, other, thief, naming(LAYER))
    assert (await cached.get(f"{thief}/manifests/theft")).status == 200
    other.fail(Status(status), kind="blob")
    answer = await cached.get(f"{thief}/blobs/{image.layers[0]}")
    assert answer.status == (429 if status == 429 else 502)
    assert b"private" not in answer.body


@pytest.mark.usefixtures("hurried")
async def test_what_came_from_this_upstream_does_not_wait_long_for_its_word(
    cached: House, registry: FakeRegistry, image: Image
) -> None:
    await cached.get(f"{ALSO}/manifests/latest")
    registry.fail(Stall(BEFORE_HEADERS), kind="blob")
    async with asyncio.timeout(SOON_SECONDS):
        assert (await cached.get(f"{ALSO}/blobs/{image.layers[0]}")).body == LAYER
    registry.release()


async def test_what_is_named_is_asked_for_once_by_however_many(
    cached: House, registry: FakeRegistry, image: Image
) -> None:
    await cached.get(f"{ALSO}/manifests/latest")
    registry.forget()
    asked_for = [cached.get(f"{ALSO}/blobs/{image.layers[0]}") for _ in range(10)]
    answers = await asyncio.gather(*asked_for)
    assert {answer.body for answer in answers} == {LAYER}
    assert asked(registry) == {("HEAD", "blob", None)}
    assert registry.count() == 1


async def test_a_layer_that_was_missed_before_its_push_is_there_after_it(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image("org/app", "old", [b"old"])
    slow_to_forget = {"endpoints": [registry.url], "not_found_ttl": "1h"}
    async with mirroring(tmp_path, {"hub.test": slow_to_forget}) as house:
        path = f"/v2/hub.test/org/app/blobs/{digest_of(LAYER)}"
        assert (await house.get(path)).status == 404
        image = registry.add_image("org/app", "new", [LAYER])
        assert (await house.get("/v2/hub.test/org/app/manifests/new")).body == image.manifest
        assert (await house.get(path)).body == LAYER


async def test_the_second_pull_asks_nothing_also_after_a_restart(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"hub.test": registry}) as house:
        await pull(house, HOLDER, image)
        await pull(house, ALSO, image)
        registry.forget()
        await pull(house, ALSO, image)
        assert registry.count() == 0
    async with mirroring(tmp_path, {"hub.test": registry}) as house:
        await pull(house, ALSO, image)
        await pull(house, HOLDER, image)
    assert registry.count() == 0


# --- Proof where HEAD is refused ------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 405, 501])
async def test_an_upstream_that_refuses_head_is_asked_for_one_byte(
    cached: House, registry: FakeRegistry, image: Image, status: int
) -> None:
    registry.fail(Status(status), kind="blob", method="HEAD")
    head = await cached.head(f"{ALSO}/blobs/{image.layers[0]}")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(LAYER)))
    assert (await cached.get(f"{ALSO}/blobs/{image.layers[0]}")).body == LAYER
    got = [seen for seen in registry.requests if seen.method == "GET" and seen.kind == "blob"]
    assert [(seen.headers["Range"], seen.bytes_sent) for seen in got] == [("bytes=0-0", 1)]


async def test_an_upstream_that_knows_no_ranges_either_is_not_read_on(
    house: House, registry: FakeRegistry
) -> None:
    digest = registry.add_blob("org/secret", bytes(20_000_000))
    registry.fail(Status(403), kind="blob", method="HEAD")
    registry.fail(IgnoreRange(), kind="blob", method="GET")
    head = await house.head(f"{HOLDER}/blobs/{digest}")
    assert (head.status, head.headers["Content-Length"]) == (200, "20000000")
    await registry.until(lambda: registry.in_flight("blob") == 0)
    assert registry.body_bytes("blob") < 10_000_000


@pytest.mark.parametrize("status", [403, 404, 429, 500])
async def test_an_upstream_that_does_not_prove_it_proves_nothing(
    cached: House, registry: FakeRegistry, image: Image, status: int
) -> None:
    registry.fail(Status(status, {"Retry-After": "0"}), kind="blob")
    answer = await cached.get(f"{ALSO}/blobs/{image.layers[0]}")
    assert answer.status == (502 if status == 500 else status)
    registry.heal()
    assert (await cached.get(f"{ALSO}/blobs/{image.layers[0]}")).body == LAYER


async def test_offline_only_what_is_known_is_served(
    registry: FakeRegistry, tmp_path: Path, image: Image
) -> None:
    async with mirroring(tmp_path, {"hub.test": registry}) as house:
        await pull(house, HOLDER, image)
    registry.forget()
    async with mirroring(tmp_path, {"hub.test": registry}, offline=True) as house:
        await pull(house, HOLDER, image)
        for path in (f"{ALSO}/blobs/{image.layers[0]}", f"{ALSO}/manifests/{image.digest}"):
            answer = await house.get(path)
            assert answer.status == 404
            assert b"offline" in answer.body
            assert (await house.head(path)).status == 404
    assert registry.count() == 0
