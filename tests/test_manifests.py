"""Manifests through the mirror: bytes, types, limits, and what a client accepts."""

import asyncio
import gzip
import json
from pathlib import Path

import pytest

from mirror.manifest import MANIFEST_LIMIT_BYTES
from tests.fakes.faults import Fault, Gate, GenericType, Header, NoDigestHeader, NoLength, Status
from tests.fakes.images import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    digest_of,
)
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.replies import error_of, manifests_asked, message_of

APP = "library/app"
LATEST = "/v2/app/manifests/latest"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def by_digest(digest: str) -> str:
    return f"/v2/app/manifests/{digest}"


MOST = b'{"schemaVersion":2,"config":{},"layers":[]}'.ljust(MANIFEST_LIMIT_BYTES)


@pytest.mark.parametrize(
    "body",
    [
        b'{"schemaVersion":2,"config":{},"layers":[]}\n',
        b'\n\t {"layers" :[ ],\r\n "config":{ },"schemaVersion":2.0}\n\n',
        '{"config":{},"layers":[],"annotations":{"author":"Jürgen 🚢"}}'.encode(),
        b'{"config":{},"layers":[],"annotations":{"a":"\\u00e9\\/"},"a":1,"a":2}',
        '\ufeff{"config":{},"layers":[]}'.encode(),
    ],
    ids=["newline", "white space", "non-ASCII", "escapes and doubles", "byte order mark"],
)
async def test_bytes_are_untouched(registry: FakeRegistry, tmp_path: Path, body: bytes) -> None:
    digest = registry.add_manifest(APP, body, OCI_MANIFEST, "latest")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path in (LATEST, LATEST, by_digest(digest)):
            answer = await mirror.get(path)
            assert (answer.body, answer.headers["Docker-Content-Digest"]) == (body, digest)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert (await mirror.get(by_digest(digest))).body == body


@pytest.mark.parametrize(
    ("document", "sent_type", "served_type"),
    [
        ({"mediaType": OCI_MANIFEST}, "application/octet-stream", OCI_MANIFEST),
        ({"mediaType": DOCKER_MANIFEST}, "application/json", DOCKER_MANIFEST),
        ({"mediaType": DOCKER_INDEX, "manifests": []}, "text/plain; charset=utf-8", DOCKER_INDEX),
        ({"manifests": []}, "application/json; charset=utf-8", OCI_INDEX),
        ({"config": {}, "layers": []}, "", OCI_MANIFEST),
        ({"schemaVersion": 1, "fsLayers": []}, "application/json", SCHEMA1),
        ({"schemaVersion": 1, "signatures": []}, "application/json", SCHEMA1_SIGNED),
        ({"config": {}, "layers": []}, f"{DOCKER_MANIFEST}; charset=utf-8", DOCKER_MANIFEST),
        ({"schemaVersion": 1}, SCHEMA1_SIGNED, SCHEMA1_SIGNED),
    ],
)
async def test_the_type_is_the_header_s_or_else_the_body_s(
    registry: FakeRegistry,
    tmp_path: Path,
    document: dict[str, object],
    sent_type: str,
    served_type: str,
) -> None:
    body = json.dumps(document).encode()
    digest = registry.add_manifest(APP, body, sent_type, "latest")
    registry.add_manifest("org/app", body, sent_type)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path in (LATEST, f"/v2/org/app/manifests/{digest}"):
            for ask in (mirror.head, mirror.get, mirror.head):
                answer = await ask(path)
                assert (answer.status, answer.headers["Content-Type"]) == (200, served_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\x00\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schemaVersion":' + b"9" * 10_000 + b"}",
        gzip.compress(bytes(1_000_000)),
        b"<html></html>",
    ],
    ids=range(11),
)
async def test_what_is_no_manifest_is_refused(
    registry: FakeRegistry, tmp_path: Path, body: bytes
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for media_type in (OCI_MANIFEST, "text/plain"):
            digest = registry.add_manifest(APP, body, media_type, "latest")
            for path in (LATEST, by_digest(digest)):
                answer = await mirror.get(path)
                assert error_of(answer) == (502, "UNKNOWN")
                assert "no manifest" in message_of(answer)
        assert mirror.stored_blobs() == set()


@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize("faults", [(), (NoLength(),)], ids=["told", "chunked"])
async def test_the_limit_of_size(
    registry: FakeRegistry, tmp_path: Path, by: str, faults: tuple[Fault, ...]
) -> None:
    registry.fail(*faults)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for name, body in (("most", MOST), ("more", MOST + b" ")):
            digest = registry.add_manifest(APP, body, OCI_MANIFEST, name)
            answer = await mirror.get(f"/v2/app/manifests/{name if by == 'tag' else digest}")
            if name == "most":
                assert answer.body == body
            else:
                assert error_of(answer) == (502, "UNKNOWN")
                assert str(MANIFEST_LIMIT_BYTES) in message_of(answer)
        assert len(mirror.stored_blobs()) == 1


async def test_digests_of_the_longer_kind(registry: FakeRegistry, tmp_path: Path) -> None:
    body = b'{"schemaVersion":2,"config":{},"layers":[]}'
    digest = digest_of(body, "sha512")
    registry.repository(APP).manifests[digest] = (body, OCI_MANIFEST)
    registry.tag(APP, "latest", digest)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path in (LATEST, by_digest(digest)):
            for ask in (mirror.get, mirror.head):
                answer = await ask(path)
                assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, digest)
        assert mirror.stored_blobs() == {digest}
        assert manifests_asked(registry) == (1, 1)
        wrong = digest_of(b"something else", "sha512")
        registry.repository(APP).manifests[wrong] = (body, OCI_MANIFEST)
        assert error_of(await mirror.get(by_digest(wrong))) == (502, "UNKNOWN")


@pytest.mark.parametrize(
    "fault",
    [Header("Content-Encoding", "gzip"), Header("Docker-Content-Digest", digest_of(b"another"))],
    ids=["encoded", "another digest"],
)
async def test_answers_that_contradict_themselves(
    registry: FakeRegistry, tmp_path: Path, fault: Fault
) -> None:
    registry.add_image(APP)
    registry.fail(fault)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        answer = await mirror.get(LATEST)
        assert error_of(answer) == (502, "UNKNOWN")
        assert mirror.stored_blobs() == set()


SINGLE = f"{OCI_MANIFEST}, {DOCKER_MANIFEST}"
ALL = f"{OCI_INDEX}, {SINGLE}"


@pytest.mark.parametrize(
    ("accept", "served"),
    [
        ({}, "index"),
        ({"Accept": "*/*"}, "index"),
        ({"Accept": "application/*"}, "index"),
        ({"Accept": ALL}, "index"),
        ({"Accept": f"{SINGLE}, */*;q=0.1"}, "index"),
        ({"Accept": f"{OCI_INDEX.upper()}; q=1"}, "index"),
        ({"Accept": SINGLE}, "child"),
        ({"Accept": f"{SINGLE}, {OCI_INDEX};q=0"}, "child"),
        ({"Accept": DOCKER_MANIFEST}, "nothing"),
        ({"Accept": "text/html"}, "nothing"),
    ],
)
async def test_accept_is_honoured_by_tag(
    registry: FakeRegistry, tmp_path: Path, accept: dict[str, str], served: str
) -> None:
    arm = registry.add_image(APP, None, platform="linux/arm64")
    amd = registry.add_image(APP, None)
    index = registry.add_index(APP, "latest", {"linux/arm64": arm, "linux/amd64": amd})
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for _ in range(2):
            head, get = await mirror.head(LATEST, accept), await mirror.get(LATEST, accept)
            if served == "nothing":
                assert head.status == 404
                assert error_of(get) == (404, "MANIFEST_UNKNOWN")
                assert OCI_INDEX in message_of(get)
            else:
                expected = index.manifest if served == "index" else amd.manifest
                assert get.body == expected
                assert get.headers["Content-Type"] in (OCI_INDEX, OCI_MANIFEST)
                del head.headers["Date"], get.headers["Date"]
                assert head.headers == get.headers
        answer = await mirror.get(by_digest(index.digest), accept)
        assert answer.body == index.manifest, "by digest there is nothing to choose"


async def test_accept_in_several_lines_counts_as_one(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP, docker=True)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        lines = {"Accept": f"{OCI_MANIFEST}\r\nAccept: {DOCKER_MANIFEST}"}
        assert (await mirror.get(LATEST, lines)).body == image.manifest


async def test_an_index_without_the_usual_platform_has_no_stand_in(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    arm = registry.add_image(APP, None, platform="linux/arm64")
    registry.add_index(APP, "latest", {"linux/arm64": arm})
    odd = {"manifests": [None, 7, {"platform": "linux/amd64"}, {"platform": {"os": "linux"}}]}
    registry.add_manifest(APP, json.dumps(odd).encode(), OCI_INDEX, "odd")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path in (LATEST, "/v2/app/manifests/odd"):
            answer = await mirror.get(path, {"Accept": SINGLE})
            assert error_of(answer) == (404, "MANIFEST_UNKNOWN")


async def test_the_upstream_is_asked_for_every_type(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST, {"Accept": DOCKER_MANIFEST})
        for seen in registry.requests:
            assert {OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST} <= {
                each.strip() for each in seen.headers["Accept"].split(",")
            }
            assert seen.headers["Accept-Encoding"] == "identity"


async def test_many_clients_of_one_cold_digest_cost_one_get(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    gate = Gate(10)
    registry.fail(gate, kind="manifest")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror, asyncio.TaskGroup() as group:
        asked = [group.create_task(mirror.get(by_digest(image.digest))) for _ in range(20)]
        await gate.reached.wait()
        gate.open()
        assert {(await answer).body for answer in asked} == {image.manifest}
        assert manifests_asked(registry) == (0, 1)


async def test_a_cold_digest_costs_one_get_by_whatever_name_it_is_asked_for(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    registry.add_manifest(APP, image.manifest, OCI_MANIFEST, "stable")
    gate = Gate(10)
    registry.fail(gate, kind="manifest", method="GET")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror, asyncio.TaskGroup() as group:
        paths = (LATEST, "/v2/app/manifests/stable", by_digest(image.digest))
        asked = [group.create_task(mirror.get(path)) for path in paths]
        await gate.reached.wait()
        await registry.until(lambda: registry.count("HEAD", "manifest") == 2)
        await asyncio.sleep(0.1)  # nothing more comes
        gate.open()
        assert {(await answer).body for answer in asked} == {image.manifest}
        assert manifests_asked(registry) == (2, 1)


async def test_an_upstream_that_denies_what_it_has_just_named_is_asked_once_in_a_while(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    registry.fail(Status(404), kind="manifest", method="GET")
    upstream = {"endpoints": [registry.url], "not_found_ttl": "1h"}
    async with mirroring(tmp_path, {"docker.io": upstream}) as mirror:
        for _ in range(5):
            assert (await mirror.get(LATEST)).status == 404
    assert manifests_asked(registry) == (1, 2)


@pytest.mark.parametrize("asks_head_first", [False, True])
async def test_a_manifest_known_by_its_tag_only(
    registry: FakeRegistry, tmp_path: Path, asks_head_first: bool
) -> None:
    image = registry.add_image(APP)
    registry.fail(Status(404), kind="manifest", reference=image.digest)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        if asks_head_first:
            assert (await mirror.head(LATEST)).status == 200
        assert (await mirror.get(LATEST)).body == image.manifest


async def test_a_manifest_here_is_proven_for_another_repository_without_a_pull(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    registry.add_image("org/copy", None)
    registry.add_image("org/other", None, [b"something else"])
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
        registry.forget()
        answer = await mirror.get(f"/v2/org/copy/manifests/{image.digest}")
        assert answer.body == image.manifest
        assert manifests_asked(registry) == (1, 0)
        stranger = await mirror.get(f"/v2/org/other/manifests/{image.digest}")
        assert error_of(stranger) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("faults", [(Status(405),), (GenericType(), NoDigestHeader())], ids=repr)
async def test_a_head_that_tells_nothing_proves_nothing(
    registry: FakeRegistry, tmp_path: Path, faults: tuple[Fault, ...]
) -> None:
    image = registry.add_image(APP)
    registry.add_image("org/copy", None)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
        registry.fail(*faults, kind="manifest", method="HEAD")
        answer = await mirror.get(f"/v2/org/copy/manifests/{image.digest}")
        assert answer.body == image.manifest
        stranger = f"/v2/org/other/manifests/{image.digest}"
        registry.repository("org/other")
        registry.heal()
        registry.fail(Status(200), kind="manifest", repository="org/other", method="HEAD")
        assert (await mirror.get(stranger)).status == 404
        assert (await mirror.head(stranger)).status == 404


async def test_configs_and_layers_are_no_manifests(registry: FakeRegistry, tmp_path: Path) -> None:
    """Though they are stored, and their types look alike."""
    layer = bytes(MANIFEST_LIMIT_BYTES + 1)
    image = registry.add_image(APP, layers=[layer])
    types = {entry["mediaType"] for entry in _parts(image.manifest)}
    assert types == {OCI_CONFIG, OCI_LAYER}
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
        for digest in (image.config, *image.layers):
            assert (await mirror.get(f"/v2/app/blobs/{digest}")).status == 200
            assert error_of(await mirror.get(by_digest(digest))) == (404, "MANIFEST_UNKNOWN")
            assert (await mirror.head(by_digest(digest))).status == 404


def _parts(manifest: bytes) -> list[dict[str, str]]:
    document = json.loads(manifest)
    return [document["config"], *document["layers"]]


async def test_damage_on_the_disk_is_not_taken_for_absence(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
    for path in (tmp_path / "data" / "blobs").glob("*/*/*"):
        path.unlink()
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert (await mirror.get(LATEST)).body == image.manifest, "it is fetched again"
        assert mirror.stored_blobs() == {image.digest}
