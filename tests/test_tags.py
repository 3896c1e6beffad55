"""From a tag to its manifest: what it costs the upstream, and what is served meanwhile."""

import asyncio
import json
from pathlib import Path

import pytest

from mirror import singleflight
from mirror.names import Repository, Tag
from mirror.store.index import Index
from mirror.store.remembered import RememberedTag
from tests.fakes.client import RawResponse
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import Gate, GenericType, NoDigestHeader, Stall, Status
from tests.fakes.images import Image
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.replies import error_of, is_stale, manifests_asked

APP = "library/app"
LATEST = "/v2/app/manifests/latest"


def by_digest(image: Image) -> str:
    return f"/v2/app/manifests/{image.digest}"


def hub(registry: FakeRegistry, **settings: object) -> dict[str, object]:
    return {"endpoints": [registry.url], **settings}


async def many(mirror: House, number: int = 20, method: str = "GET") -> list[RawResponse]:
    ask = mirror.get if method == "GET" else mirror.head
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(LATEST)) for _ in range(number)]
    return [task.result() for task in asked]


async def make_old(folder: Path, age_seconds: float = 3600) -> None:
    """Sets back when the tag was last checked, while no mirror runs."""
    index = await Index.open(folder / "data" / "index.db")
    repository, tag = Repository("docker.io", APP), Tag("latest")
    remembered = await index.tag(repository, tag)
    assert remembered is not None
    old = RememberedTag(remembered.digest, remembered.checked_at - age_seconds)
    await index.set_tag(repository, tag, old)
    await index.aclose()


async def test_many_clients_of_a_cold_tag_cost_one_head_and_one_get(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    gate = Gate(-1)
    registry.fail(gate, kind="manifest")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror, asyncio.TaskGroup() as group:
        asked = group.create_task(many(mirror))
        await gate.reached.wait()
        await mirror.get("/v2/")
        gate.open()
        answers = await asked
        assert {(answer.status, answer.body) for answer in answers} == {(200, image.manifest)}
        assert manifests_asked(registry) == (1, 1)
        assert registry.count("GET", "manifest", reference=image.digest) == 1
        assert await mirror.metric("mirror_requests_total", kind="manifest", cache="miss") == 1
        assert await mirror.metric("mirror_requests_total", kind="manifest", cache="joined") > 0


async def test_nothing_is_asked_while_a_tag_is_fresh(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
        registry.forget()
        for path in (LATEST, by_digest(image)):
            assert (await mirror.get(path)).body == image.manifest
            assert (await mirror.head(path)).status == 200
        assert registry.count() == 0
        assert await mirror.metric("mirror_requests_total", kind="manifest", cache="hit") == 4


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_due_tag_costs_one_head_for_many_clients(
    registry: FakeRegistry, tmp_path: Path, method: str
) -> None:
    registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
    await make_old(tmp_path)
    registry.forget()
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        answers = await many(mirror, 40, method)
        assert {(answer.status, is_stale(answer)) for answer in answers} == {(200, False)}
        assert manifests_asked(registry) == (1, 0)
        assert await mirror.metric("mirror_requests_total", cache="revalidated") >= 1


async def test_a_tag_becomes_due_after_its_ttl(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": hub(registry, tag_ttl="200ms")}) as mirror:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while registry.count("HEAD") < 2:
                assert (await mirror.get(LATEST)).status == 200
        assert manifests_asked(registry) == (2, 1)


async def test_a_moved_tag_costs_one_head_and_one_get(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    old = registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": hub(registry, tag_ttl="0s")}) as mirror:
        await mirror.get(LATEST)
        new = registry.add_image(APP, layers=[b"another layer"])
        registry.forget()
        answer = await mirror.get(LATEST)
        assert (answer.body, answer.headers["Docker-Content-Digest"]) == (new.manifest, new.digest)
        assert manifests_asked(registry) == (1, 1)
        registry.forget()
        assert (await mirror.get(by_digest(old))).body == old.manifest
        assert registry.count() == 0


@pytest.mark.parametrize("reference", ["latest", "digest"])
async def test_a_cold_head_spends_no_pull_and_the_get_behind_it_one(
    registry: FakeRegistry, tmp_path: Path, reference: str
) -> None:
    image = registry.add_image(APP)
    path = LATEST if reference == "latest" else by_digest(image)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert (await mirror.head(path)).status == 200
        assert manifests_asked(registry) == (1, 0)
        assert (await mirror.get(path)).body == image.manifest
        assert manifests_asked(registry) == (1, 1)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("reference", ["latest", "digest"])
async def test_head_equals_get(
    registry: FakeRegistry, tmp_path: Path, reference: str, warm: bool
) -> None:
    image = registry.add_image(APP, docker=True)
    path = LATEST if reference == "latest" else by_digest(image)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        if warm:
            await mirror.get(path)
        head, get = await mirror.head(path), await mirror.get(path)
    del head.headers["Date"], get.headers["Date"]
    assert (head.status, head.headers) == (get.status, get.headers)
    assert head.headers.items() >= {
        ("Content-Type", image.media_type),
        ("Content-Length", str(len(image.manifest))),
        ("Docker-Content-Digest", image.digest),
        ("ETag", f'"{image.digest}"'),
        ("OCI-Namespace", "docker.io"),
    }


@pytest.mark.parametrize(
    ("condition", "status"),
    [('"{}"', 304), ('W/"{}"', 304), ('"other", "{}"', 304), ("*", 304), ('"other"', 200)],
)
async def test_if_none_match(
    registry: FakeRegistry, tmp_path: Path, condition: str, status: int
) -> None:
    image = registry.add_image(APP)
    headers = {"If-None-Match": condition.format(image.digest)}
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for answer in (await mirror.get(LATEST, headers), await mirror.head(LATEST, headers)):
            assert answer.status == status
            assert answer.headers["ETag"] == f'"{image.digest}"'
        assert (await mirror.get(LATEST, headers)).body == (
            b"" if status == 304 else image.manifest
        )


async def test_a_moved_tag_whose_pull_is_refused_is_served_as_it_was(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    old = registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": hub(registry, tag_ttl="0s")}) as mirror:
        await mirror.get(LATEST)
        new = registry.add_image(APP, layers=[b"another layer"])
        registry.fail(Status(429, {"Retry-After": "0"}), kind="manifest", method="GET")
        for answer in (await mirror.get(LATEST), await mirror.head(LATEST)):
            assert (answer.status, is_stale(answer)) == (200, True)
            assert answer.headers["Docker-Content-Digest"] == old.digest
        registry.heal()
        assert (await mirror.get(LATEST)).body == new.manifest


async def test_a_manifest_asked_for_before_it_was_pushed_is_pulled_once_a_tag_points_to_it(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    upstream = hub(registry, tag_ttl="0s", not_found_ttl="1h")
    async with mirroring(tmp_path, {"docker.io": upstream}) as mirror:
        await mirror.get(LATEST)
        new = registry.add_image(APP, None, [b"another layer"])
        registry.fail(Status(404), kind="manifest", reference=new.digest, times=1)
        assert (await mirror.get(by_digest(new))).status == 404
        registry.tag(APP, "latest", new.digest)
        assert (await mirror.get(LATEST)).body == new.manifest


async def test_a_second_tag_does_not_blur_what_is_known_of_a_manifest(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    registry.tag(APP, "stable", image.digest)
    registry.fail(GenericType(), kind="manifest")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for tag in ("latest", "stable"):
            answer = await mirror.get(f"/v2/app/manifests/{tag}")
            assert answer.headers["Content-Type"] == image.media_type
        assert manifests_asked(registry) == (2, 1)


async def test_a_tag_that_vanished_is_gone_and_can_come_back(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    upstream = hub(registry, tag_ttl="0s", not_found_ttl="0s")
    async with mirroring(tmp_path, {"docker.io": upstream}) as mirror:
        await mirror.get(LATEST)
        registry.untag(APP, "latest")
        assert error_of(await mirror.get(LATEST)) == (404, "MANIFEST_UNKNOWN")
        assert (await mirror.get(by_digest(image))).body == image.manifest
        await registry.stop()
        assert (await mirror.get(LATEST)).status == 504, "what is gone does not stand in"
        await registry.start()
        registry.tag(APP, "latest", image.digest)
        await mirror.get_until(LATEST, lambda answer: answer.body == image.manifest)


@pytest.mark.usefixtures("hurried")
async def test_a_late_404_counts_for_the_next_client(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    upstream = hub(registry, tag_ttl="0s", not_found_ttl="1h")
    async with mirroring(tmp_path, {"docker.io": upstream}) as mirror:
        await mirror.get(LATEST)
        gate = Gate(-1)
        registry.fail(gate, Status(404), kind="manifest")
        assert is_stale(await mirror.get(LATEST))
        gate.open()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await mirror.get(LATEST)).status == 200:
                pass
        assert error_of(await mirror.get(LATEST)) == (404, "MANIFEST_UNKNOWN")
        assert registry.count("HEAD", "manifest") == 2


async def test_what_vanished_is_kept_where_the_operator_wants_it(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    upstream = hub(registry, tag_ttl="0s", not_found_ttl="1h", stale_for="0s", when_gone="serve")
    async with mirroring(tmp_path, {"docker.io": upstream}) as mirror:
        await mirror.get(LATEST)
        registry.untag(APP, "latest")
        registry.forget()
        for _ in range(3):
            answer = await mirror.get(LATEST)
            assert (answer.status, answer.body, is_stale(answer)) == (200, image.manifest, True)
        assert manifests_asked(registry) == (1, 0), "the 404 is remembered, too"


async def test_what_is_too_old_does_not_stand_in(registry: FakeRegistry, tmp_path: Path) -> None:
    image = registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(LATEST)
    await make_old(tmp_path)
    await registry.stop()
    async with mirroring(tmp_path, {"docker.io": hub(registry, stale_for="59m")}) as mirror:
        assert error_of(await mirror.get(LATEST)) == (504, "UNAVAILABLE")
        assert (await mirror.get(by_digest(image))).body == image.manifest
    async with mirroring(tmp_path, {"docker.io": hub(registry, stale_for="61m")}) as mirror:
        answer = await mirror.get(LATEST)
        assert is_stale(answer)
        assert 3600 <= int(answer.headers["Age"]) < 3700


@pytest.mark.parametrize("status", [400, 405, 501])
@pytest.mark.parametrize("reference", ["latest", "digest"])
async def test_where_head_is_not_offered_get_tells(
    registry: FakeRegistry, tmp_path: Path, status: int, reference: str
) -> None:
    image = registry.add_image(APP)
    path = LATEST if reference == "latest" else by_digest(image)
    registry.fail(Status(status), kind="manifest", method="HEAD")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        head = await mirror.head(path)
        assert (head.status, head.headers["Content-Type"]) == (200, image.media_type)
        assert head.headers["Docker-Content-Digest"] == image.digest
        assert (await mirror.get(path)).body == image.manifest
        assert manifests_asked(registry) == (1, 1)


@pytest.mark.parametrize("reference", ["latest", "digest"])
async def test_where_head_says_nothing_get_tells(
    registry: FakeRegistry, tmp_path: Path, reference: str
) -> None:
    image = registry.add_image(APP)
    path = LATEST if reference == "latest" else by_digest(image)
    registry.fail(NoDigestHeader(), GenericType(), kind="manifest")
    async with mirroring(tmp_path, {"docker.io": hub(registry, tag_ttl="0s")}) as mirror:
        for ask in (mirror.head, mirror.get):
            answer = await ask(path)
            assert (answer.status, answer.headers["Content-Type"]) == (200, image.media_type)
            assert answer.headers["Docker-Content-Digest"] == image.digest
        assert await mirror.metric("mirror_cache_blobs") == 1, "the same manifest is stored once"


async def test_a_404_is_remembered_and_then_asked_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.repository(APP)
    async with mirroring(tmp_path, {"docker.io": hub(registry, not_found_ttl="1h")}) as mirror:
        for _ in range(3):
            assert error_of(await mirror.get(LATEST)) == (404, "MANIFEST_UNKNOWN")
        assert manifests_asked(registry) == (1, 0)
        assert await mirror.metric("mirror_requests_total", cache="negative", status="404") == 2
    image = registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": hub(registry, not_found_ttl="200ms")}) as mirror:
        registry.untag(APP, "latest")
        assert (await mirror.get(LATEST)).status == 404
        registry.tag(APP, "latest", image.digest)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await mirror.get(LATEST)).status == 404:
                pass
        assert (await mirror.get(LATEST)).body == image.manifest


async def test_a_client_that_hangs_up_ends_no_question(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    gate = Gate(-1)
    registry.fail(gate, kind="manifest", method="HEAD")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(mirror.get(LATEST))
            await gate.reached.wait()
            first.cancel()
        gate.open()
        assert (await mirror.get(LATEST)).body == image.manifest
        assert manifests_asked(registry) == (1, 1)
        assert not registry.requests[0].hung_up


async def test_a_tag_may_point_to_an_index(registry: FakeRegistry, tmp_path: Path) -> None:
    amd = registry.add_image(APP, None)
    index = registry.add_index(APP, "latest", {"linux/amd64": amd})
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        answer = await mirror.get(LATEST, {"Accept": index.media_type})
        assert json.loads(answer.body)["manifests"][0]["digest"] == amd.digest
        assert answer.headers["Content-Type"] == index.media_type


async def test_what_is_remembered_stands_in_while_too_many_ask(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made-up tags of a slow upstream must not take its real ones away."""
    registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": hub(registry, tag_ttl="0s")}) as house:
        path, listing = "/v2/app/manifests", "/v2/app/tags/list"
        assert (await house.get(f"{path}/latest")).status == 200
        assert (await house.get(listing)).status == 200
        monkeypatch.setattr(singleflight, "MAX_FLIGHTS_OF_A_GROUP", 2)
        registry.fail(Stall(-1))
        async with asyncio.TaskGroup() as tasks:
            for n in range(2):
                tasks.create_task(house.get(f"{path}/made-up-{n}"))
                tasks.create_task(house.get(f"{listing}?n={n}"))
            await registry.until(lambda: sum(seen.held for seen in registry.requests) == 4)
            assert is_stale(await house.get(f"{path}/latest"))
            assert is_stale(await house.get(listing))
            assert (await house.get(f"{path}/made-up-3")).status == 503
            registry.release()
