"""Lists: tags and referrers from the upstream, the catalogue from the cache."""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.faults import Delay, Fault, Garbage, Gate, GenericType, HangUp, Header, Status
from tests.fakes.images import OCI_INDEX, OCI_MANIFEST, Image, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.clocks import Clocks
from tests.support.house import House, mirroring
from tests.support.replies import error_of, is_stale, json_of, manifests_asked

APP = "library/app"
TAGS = "/v2/app/tags/list"
Upstreams = dict[str, FakeRegistry | dict[str, Any]]
NAMES = ["a", "b", "c+d", "e"]


def add_tags(registry: FakeRegistry, repository: str = APP) -> None:
    image = registry.add_image(repository, None)
    for name in NAMES:
        registry.tag(repository, name, image.digest)


async def walk(mirror: House, path: str, key: str) -> list[str]:
    """All pages, by the links that the mirror gives."""
    found: list[str] = []
    for _ in range(20):
        answer = await mirror.get(path)
        assert answer.status == 200
        found += json_of(answer)[key]
        if "Link" not in answer.headers:
            return found
        link, _, relation = answer.headers["Link"].partition(";")
        assert relation.strip() == 'rel="next"'
        assert not urlsplit(link.strip("<>")).netloc, "relative, so that it leads to us"
        path = urljoin(path, link.strip("<>"))
    raise AssertionError("the pages have no end")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v2/app/tags/list", "app"),
        ("/v2/library/app/tags/list?ns=docker.io", "library/app"),
        ("/v2/docker.io/app/tags/list", "docker.io/app"),
        ("/docker.io/v2/app/tags/list", "docker.io/app"),
        ("/v2/quay.io/org/app/tags/list", "quay.io/org/app"),
        ("/v2/org/app/tags/list?ns=quay.io", "org/app"),
    ],
)
async def test_all_pages_of_tags_the_way_the_client_came(
    registry: FakeRegistry, tmp_path: Path, path: str, name: str
) -> None:
    add_tags(registry)
    add_tags(registry, "org/app")
    async with mirroring(
        tmp_path, {"docker.io": registry, "quay.io": endpoint(registry)}
    ) as mirror:
        for page in ("", "n=1", "n=3", "n=100"):
            first = path + ("&" if "?" in path else "?") + page
            assert await walk(mirror, first, "tags") == NAMES
        assert json_of(await mirror.get(path))["name"] == name
        asked = [seen for seen in registry.requests if seen.kind == "tags"]
        assert all("ns" not in seen.query for seen in asked), "ns is for us alone"


def endpoint(registry: FakeRegistry, **settings: object) -> dict[str, Any]:
    return {"endpoints": [registry.url], **settings}


@pytest.mark.parametrize(
    "link",
    [
        '<{url}/v2/library/app/tags/list?n=2&last=b>; rel="next"',
        "</other/path?last=b&n=2>;rel=next",
        '</first>; rel="first", <?n=2&last=b>; title="x"; rel="next"',
    ],
)
async def test_any_link_is_rewritten(registry: FakeRegistry, tmp_path: Path, link: str) -> None:
    add_tags(registry)
    registry.fail(Header("Link", link.format(url=registry.url)), times=1)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert await walk(mirror, f"{TAGS}?n=2", "tags") == NAMES


@pytest.mark.parametrize(
    "link", ["nonsense", "<http://[::1>; rel=next", "<" * 5000, '<x>; rel="up"']
)
async def test_a_link_that_leads_nowhere_is_left_out(
    registry: FakeRegistry, tmp_path: Path, link: str
) -> None:
    add_tags(registry)
    registry.fail(Header("Link", link))
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        answer = await mirror.get(f"{TAGS}?n=2")
        assert json_of(answer)["tags"] == NAMES[:2]
        assert "Link" not in answer.headers


@pytest.mark.parametrize("kind", ["tags", "referrers"])
@pytest.mark.parametrize(
    ("query", "status"), [("n=3&last=a&next_page=%3D", 200), ("marker=b", 502)]
)
async def test_only_questions_of_known_parameters_are_remembered(
    registry: FakeRegistry, tmp_path: Path, kind: str, query: str, status: int
) -> None:
    add_tags(registry)
    path = TAGS if kind == "tags" else f"/v2/app/referrers/{digest_of(b'x')}"
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        before = await mirror.get(f"{path}?{query}&ns=docker.io")
        (asked,) = (seen for seen in registry.requests if seen.kind == kind)
        assert asked.target.partition("?")[2] == query
        registry.fail(Status(500))
        after = await mirror.get(f"{path}?{query}")
    assert (before.status, after.status) == (200, status)
    assert is_stale(after) == (status == 200)


async def test_a_list_that_is_too_long_is_not_remembered(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    tags = json.dumps({"name": "x", "tags": ["a" * 100] * 20_000}).encode()
    registry.fail(Status(200, {"Content-Type": "application/json"}, tags), times=1)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert len(json_of(await mirror.get(TAGS))["tags"]) == 20_000
        registry.fail(Status(500))
        assert error_of(await mirror.get(TAGS)) == (502, "UNKNOWN")


@pytest.mark.parametrize(
    ("body", "tags"),
    [
        (b'{"name":"x","tags":null}', []),
        (b'{"name":"x","tags":[]}', []),
        (b'{"tags":["a"],"child":[],"manifest":{}}', ["a"]),
        (b"{}", None),
        (b"[]", None),
        (b'{"tags":{}}', None),
        (b'{"tags":0}', None),
        (b'{"tags":[1]}', None),
        (b'{"tags":' + b"[" * 100_000, None),
        (b'{"errors":[]}', None),
        (b"", None),
    ],
)
async def test_what_counts_as_a_list_of_tags(
    registry: FakeRegistry, tmp_path: Path, body: bytes, tags: list[str] | None
) -> None:
    registry.fail(Status(200, {"Content-Type": "application/json"}, body))
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        answer = await mirror.get(TAGS)
        if tags is None:
            assert error_of(answer) == (502, "UNKNOWN")
        else:
            assert json_of(answer) == {"name": "app", "tags": tags}


async def test_tags_are_asked_for_each_time_but_once_for_many(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    add_tags(registry)
    gate = Gate(-1)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(TAGS)
        registry.tag(APP, "new", registry.repository(APP).tags["a"])
        registry.fail(gate)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(mirror.get(TAGS)) for _ in range(10)]
            await gate.reached.wait()
            await mirror.get("/v2/")
            gate.open()
        assert all("new" in json_of(task.result())["tags"] for task in asked)
        assert registry.count(kind="tags") < 11
        assert await mirror.metric("mirror_requests_total", kind="tags", cache="joined") > 0


OUTAGES: dict[str, Fault] = {
    "500": Status(500),
    "429": Status(429, {"Retry-After": "0"}),
    "garbage": Garbage(),
    "hang-up": HangUp(),
}


@pytest.mark.parametrize("case", OUTAGES)
async def test_lists_outlive_an_outage(registry: FakeRegistry, tmp_path: Path, case: str) -> None:
    add_tags(registry)
    image = registry.add_image(APP)
    registry.add_referrer(APP, image, "test/sbom")
    paths = [f"{TAGS}?n=2", f"/v2/app/referrers/{image.digest}?artifactType=test/sbom"]
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        before = [await mirror.get(path) for path in paths]
        registry.fail(OUTAGES[case])
        for path, fresh in zip(paths, before, strict=True):
            answer = await mirror.get(path)
            assert (answer.status, is_stale(answer)) == (200, True)
            assert answer.body == fresh.body
            for name in ("Content-Type", "Link", "OCI-Filters-Applied", "OCI-Namespace"):
                assert answer.headers.get(name) == fresh.headers.get(name)
        assert error_of(await mirror.get(TAGS))[0] >= 429, "another question is another answer"
        registry.heal()
        assert not is_stale(await mirror.get(paths[0]))


@pytest.mark.usefixtures("hurried")
async def test_lists_outlive_a_silent_upstream_without_a_long_wait(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    add_tags(registry)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await mirror.get(TAGS)
        registry.fail(Delay(60))
        async with asyncio.timeout(SOON_SECONDS):
            assert is_stale(await mirror.get(TAGS))


async def test_lists_that_are_too_old_do_not_stand_in(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    add_tags(registry)
    upstream = endpoint(registry, stale_for="0s")
    async with mirroring(tmp_path, {"docker.io": upstream}) as mirror:
        await mirror.get(TAGS)
        await registry.stop()
        assert error_of(await mirror.get(TAGS)) == (504, "UNAVAILABLE")


@pytest.mark.parametrize("jump_seconds", [10 * 365 * 86400, -10 * 365 * 86400])
async def test_a_wall_clock_that_jumps_neither_expires_a_list_nor_keeps_it(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jump_seconds: float,
) -> None:
    clocks = Clocks()
    for room in ("ages", "listings"):
        monkeypatch.setattr(f"mirror.proxy.{room}.time", clocks)
    add_tags(registry)
    upstreams: Upstreams = {"docker.io": endpoint(registry, stale_for="1h")}
    async with mirroring(tmp_path, upstreams) as mirror:
        fresh = await mirror.get(TAGS)
        clocks.jumped_seconds = jump_seconds
        registry.fail(Status(500))
        clocks.ahead_seconds = 600
        answer = await mirror.get(TAGS)
        assert (answer.body, is_stale(answer)) == (fresh.body, True)
        assert 600 <= int(answer.headers["Age"]) < 700
        clocks.ahead_seconds = 3700
        assert error_of(await mirror.get(TAGS))[0] == 502, "too old to stand in"
    clocks.ahead_seconds, clocks.jumped_seconds = 900, 0
    async with mirroring(tmp_path, upstreams) as mirror:
        for jumped_seconds in (0, jump_seconds):
            clocks.jumped_seconds = jumped_seconds
            answer = await mirror.get(TAGS)
            assert 900 <= int(answer.headers["Age"]) < 1000, "of the time over a restart"


async def test_a_404_stays_a_404(registry: FakeRegistry, tmp_path: Path) -> None:
    add_tags(registry)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert (await mirror.get(TAGS)).status == 200
        registry.fail(Status(404))
        assert error_of(await mirror.get(TAGS)) == (404, "NAME_UNKNOWN")


class TestReferrers:
    @pytest.fixture
    def image(self, registry: FakeRegistry) -> Image:
        image = registry.add_image(APP)
        registry.add_referrer(APP, image, "test/signature")
        registry.add_referrer(APP, image, "test/sbom", b"parts")
        return image

    async def test_the_upstream_s_answer_as_it_is(
        self, registry: FakeRegistry, tmp_path: Path, image: Image
    ) -> None:
        path = f"/v2/app/referrers/{image.digest}"
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            answer = await mirror.get(path)
            assert types_in(answer.body) == {"test/signature", "test/sbom"}
            assert answer.headers["Content-Type"] == OCI_INDEX
            assert "OCI-Filters-Applied" not in answer.headers
            for query in ("artifactType=test/sbom", "ns=docker.io&artifactType=test%2Fsbom"):
                filtered = await mirror.get(f"{path}?{query}")
                assert types_in(filtered.body) == {"test/sbom"}
                assert filtered.headers["Content-Type"] == OCI_INDEX
                assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
            none = await mirror.get(f"/v2/app/referrers/{digest_of(b'nothing')}")
            assert (none.status, types_in(none.body)) == (200, set())

    async def test_paging_leads_back_to_us(
        self, registry: FakeRegistry, tmp_path: Path, image: Image
    ) -> None:
        registry.fail(Header("Link", '</v2/x/referrers/y?next_page=2>; rel="next"'))
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            path = f"/docker.io/v2/app/referrers/{image.digest}"
            link = (await mirror.get(f"{path}?ns=docker.io")).headers["Link"]
            assert link == f'<{path}?next_page=2&ns=docker.io>; rel="next"'

    async def test_without_the_api_the_fallback_tag_answers(
        self, registry: FakeRegistry, tmp_path: Path, image: Image
    ) -> None:
        registry.referrers_api = False
        path = f"/v2/app/referrers/{image.digest}"
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            empty = await mirror.get(path)
            assert (empty.status, types_in(empty.body)) == (200, set())
            assert empty.headers["Content-Type"] == OCI_INDEX
            add_fallback(registry, image, "test/signature", "test/sbom")
            answer = await mirror.get(path)
            assert types_in(answer.body) == {"test/signature", "test/sbom"}
            assert "OCI-Filters-Applied" not in answer.headers
            filtered = await mirror.get(f"{path}?artifactType=test/sbom")
            assert types_in(filtered.body) == {"test/sbom"}
            assert filtered.headers["OCI-Filters-Applied"] == "artifactType"

    @pytest.mark.parametrize(
        ("fault", "status"),
        [
            (Status(500), 502),
            (Status(403), 403),
            (Status(429), 429),
            (HangUp(), 504),
            (Garbage(), 502),
            (Status(200, {"Content-Type": OCI_INDEX}, b"{}"), 502),
            (Status(200, {"Content-Type": OCI_INDEX}, b""), 502),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("kind", ["referrers", "manifest"])
    async def test_a_failure_is_never_an_empty_list(
        self,
        registry: FakeRegistry,
        tmp_path: Path,
        image: Image,
        kind: Any,
        fault: Fault,
        status: int,
    ) -> None:
        registry.referrers_api = kind == "referrers"
        registry.fail(fault, kind=kind)
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            answer = await mirror.get(f"/v2/app/referrers/{image.digest}")
            assert error_of(answer)[0] == status

    async def test_an_answer_of_another_type_is_none(
        self, registry: FakeRegistry, tmp_path: Path, image: Image
    ) -> None:
        registry.fail(GenericType(), kind="referrers")
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            answer = await mirror.get(f"/v2/app/referrers/{image.digest}")
            assert error_of(answer) == (502, "UNKNOWN")

    async def test_a_fallback_tag_that_is_no_index_is_none(
        self, registry: FakeRegistry, tmp_path: Path, image: Image
    ) -> None:
        registry.referrers_api = False
        registry.tag(APP, image.digest.replace(":", "-"), image.digest)
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            answer = await mirror.get(f"/v2/app/referrers/{image.digest}")
            assert error_of(answer) == (502, "UNKNOWN")

    async def test_a_digest_of_the_longer_kind_is_cut_for_the_tag(
        self, registry: FakeRegistry, tmp_path: Path
    ) -> None:
        registry.referrers_api = False
        digest = digest_of(b"x", "sha512")
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            assert (await mirror.get(f"/v2/app/referrers/{digest}")).status == 200
        tag = digest.replace(":", "-")[: len("sha512-") + 64]
        assert registry.count("GET", "manifest", reference=tag) == 1
        assert manifests_asked(registry) == (0, 1)


def types_in(body: bytes) -> set[str]:
    return {entry["artifactType"] for entry in json.loads(body)["manifests"]}


def add_fallback(registry: FakeRegistry, image: Image, *artifact_types: str) -> None:
    entries = [
        {"mediaType": OCI_MANIFEST, "digest": digest_of(b"x"), "size": 1, "artifactType": each}
        for each in artifact_types
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    registry.add_manifest(APP, body, OCI_INDEX, image.digest.replace(":", "-"))


class TestCatalogue:
    async def test_what_is_cached_page_by_page(
        self, registry: FakeRegistry, tmp_path: Path
    ) -> None:
        for name in ("org/a", "org/b", "org/c", "library/app"):
            registry.add_image(name)
        upstreams: Upstreams = {"docker.io": endpoint(registry), "quay.io": endpoint(registry)}
        async with mirroring(tmp_path, upstreams) as mirror:
            assert json_of(await mirror.get("/v2/_catalog")) == {"repositories": []}
            for path in ("org/b", "app", "quay.io/org/c", "quay.io/org/a"):
                await mirror.get(f"/v2/{path}/manifests/latest")
            await mirror.get("/v2/quay.io/org/nothing/manifests/latest")
            everything = [
                "docker.io/library/app",
                "docker.io/org/b",
                "quay.io/org/a",
                "quay.io/org/c",
            ]
            for page in ("", "?n=1", "?n=2", "?n=4", "?n=999999999999"):
                assert await walk(mirror, f"/v2/_catalog{page}", "repositories") == everything
            for path in ("/quay.io/v2/_catalog?n=1", "/v2/_catalog?n=1&ns=quay.io"):
                assert await walk(mirror, path, "repositories") == ["org/a", "org/c"]
                assert (await mirror.get(path)).headers["OCI-Namespace"] == "quay.io"
            for last in ("docker.io/zzz", "docker.io0", "q"):
                after = json_of(await mirror.get(f"/v2/_catalog?last={last}"))
                assert after == {"repositories": everything[2:]}, last
            assert json_of(await mirror.get("/v2/_catalog?n=0")) == {"repositories": []}

    @pytest.mark.parametrize("size", ["-1", "x", "1.5", "%C2%B2", ""])
    async def test_a_page_size_is_a_number(
        self, registry: FakeRegistry, tmp_path: Path, size: str
    ) -> None:
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            answer = await mirror.get(f"/v2/_catalog?n={size}")
            assert error_of(answer) == (400, "NAME_INVALID")

    async def test_a_page_goes_on_after_a_name(
        self, registry: FakeRegistry, tmp_path: Path
    ) -> None:
        async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
            answer = await mirror.get("/v2/_catalog?last=%C3%A9")
            assert error_of(answer) == (400, "NAME_INVALID")
