"""Redirects are followed by the mirror itself: what goes along, and where they may lead."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.auth import BasicAuth, BearerAuth
from tests.fakes.faults import Header, Status
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.internet import LINK_LOCAL, PRIVATE, PRIVATE_CDN, PUBLIC, PUBLIC_CDN, pretend

APP = "org/app"
DATA = bytes(range(256)) * 1000
DIGEST = digest_of(DATA)
BLOB = f"/v2/hub.test/{APP}/blobs/{DIGEST}"
TAG = f"/v2/hub.test/{APP}/manifests/latest"


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    registry.add_blob(APP, DATA)
    async with mirroring(tmp_path, {"hub.test": registry}) as house:
        yield house


@pytest.fixture
async def other() -> AsyncIterator[FakeRegistry]:
    """Another authority, with the same contents once it is redirected to."""
    async with FakeRegistry() as other:
        yield other


def log_in(registry: FakeRegistry) -> dict[str, object]:
    """Settings of an upstream that is asked with a login, and the registry that wants it."""
    registry.auth = BasicAuth("alice", "secret")
    credential = {"username": "alice", "password": "secret"}
    return {"endpoints": [registry.url], "credentials": [credential]}


@asynccontextmanager
async def logged_in(registry: FakeRegistry, folder: Path) -> AsyncIterator[House]:
    registry.add_blob(APP, DATA)
    async with mirroring(folder, {"hub.test": log_in(registry)}) as house:
        yield house


async def test_a_signed_url_arrives_byte_for_byte_and_without_a_login(
    registry: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> None:
    query = "X-Sig=a%2Fb%3D+~%7e&empty=&x=%20y;z&x=%C3%A9,'(!*)"
    registry.serve_blobs_from(other)
    registry.redirect_blobs_to = lambda _, digest: f"{other.url}/cdn/{digest}?{query}"
    async with logged_in(registry, tmp_path) as house:
        answer = await house.get(BLOB)
        assert (answer.status, answer.body) == (200, DATA)
    assert [seen.target for seen in other.requests] == [f"/cdn/{DIGEST}?{query}"]
    assert other.requests[0].authorization is None
    assert other.requests[0].headers["Accept-Encoding"] == "identity"
    assert registry.requests[-1].authorization is not None


async def test_a_login_is_not_sent_again_to_the_upstream_behind_another_host(
    registry: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> None:
    """There and back: whoever redirects back decides what is asked."""
    other.add_blob(APP, DATA)
    registry.redirect_blobs_to = f"{other.url}/v2/{APP}/blobs"
    other.redirect_blobs_to = f"{registry.url}/cdn"
    async with logged_in(registry, tmp_path) as house:
        assert (await house.get(BLOB)).body == DATA
    assert registry.requests[-1].is_for_cdn
    assert registry.requests[-1].authorization is None
    assert [seen.authorization for seen in other.requests] == [None]


async def test_redirected_manifests_are_served_and_get_no_login(
    registry: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    other.add_image(APP)
    registry.redirect_manifests_to = f"{other.url}/v2/{APP}/manifests"
    async with logged_in(registry, tmp_path) as house:
        answer = await house.get(TAG)
        assert (answer.status, answer.body) == (200, image.manifest)
    assert other.count(kind="manifest", status=200) >= 1
    assert {seen.authorization for seen in other.requests} == {None}


async def test_a_host_that_was_redirected_to_gets_no_login_by_asking_for_one(
    registry: FakeRegistry, other: FakeRegistry, tmp_path: Path
) -> None:
    """Nor does it change how the mirror logs in at the upstream."""
    registry.add_blob(APP, DATA)
    other.add_blob(APP, DATA)
    registry.redirect_blobs_to = f"{other.url}/v2/{APP}/blobs"
    upstream = log_in(registry)
    registry.auth, other.auth = BearerAuth({"alice": "secret"}), BasicAuth("alice", "secret")
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        for _ in range(2):
            assert (await house.get(BLOB)).status == 403
    assert {(seen.kind, seen.authorization) for seen in other.requests} == {("blob", None)}
    schemes = {
        (seen.authorization or "none").split()[0]
        for seen in registry.requests
        if seen.kind == "blob"
    }
    assert schemes == {"none", "Bearer"}


async def test_a_relative_redirect_stays_at_the_upstream_with_its_login(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.cdn_takes_authorization = True
    registry.redirect_blobs_to = lambda _, digest: f"../../../../cdn/{digest}?a=%2F"
    async with logged_in(registry, tmp_path) as house:
        assert (await house.get(BLOB)).body == DATA
    assert registry.requests[-1].target == f"/cdn/{DIGEST}?a=%2F"
    assert registry.requests[-1].authorization is not None


async def test_head_follows_too_and_downloads_nothing(
    registry: FakeRegistry, other: FakeRegistry, house: House
) -> None:
    registry.serve_blobs_from(other)
    answer = await house.head(BLOB)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(DATA)))
    assert [(seen.method, seen.status) for seen in other.requests] == [("HEAD", 200)]


async def test_redirected_downloads_use_connections_again(
    registry: FakeRegistry, other: FakeRegistry, house: House
) -> None:
    digests = [registry.add_blob(APP, b"%d" % n * 1000) for n in range(6)]
    registry.serve_blobs_from(other)
    registry.fail(Header("Content-Type", "text/html"))
    for digest in digests:
        assert (await house.get(f"/v2/hub.test/{APP}/blobs/{digest}")).status == 200
    assert (registry.connections_accepted, other.connections_accepted) == (1, 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_every_kind_of_redirect_is_followed(
    registry: FakeRegistry, house: House, status: int
) -> None:
    registry.fail(Status(status, {"Location": f"/cdn/{DIGEST}"}), times=1)
    assert (await house.get(BLOB)).body == DATA
    assert registry.requests[-1].method == "GET"


@pytest.mark.parametrize(("times", "status"), [(5, 200), (6, 502)])
async def test_redirects_are_followed_so_many_times(
    registry: FakeRegistry, house: House, times: int, status: int
) -> None:
    rule = registry.fail(Status(302, {"Location": f"/v2/{APP}/blobs/{DIGEST}"}), times=times)
    assert (await house.get(BLOB)).status == status
    assert rule.used == times


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_loop_ends(registry: FakeRegistry, house: House, method: str) -> None:
    registry.redirect_blobs_to = f"{registry.url}/v2/{APP}/blobs"
    answer = await (house.get if method == "GET" else house.head)(BLOB)
    assert answer.status == 502
    assert registry.count(method, "blob") == 6
    assert method == "HEAD" or b"redirects more than 5 times" in answer.body


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "file:///etc/passwd",
        "ftp://127.0.0.1/blob",
        "javascript:alert(1)",
        "http://",
        "http:///blob",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:x/",
    ],
)
async def test_a_redirect_to_nowhere_is_the_upstreams_mistake(
    registry: FakeRegistry, house: House, location: str | None
) -> None:
    registry.fail(Status(302, {} if location is None else {"Location": location}))
    answer = await house.get(BLOB)
    assert answer.status == 502
    assert b"hub.test: redirects" in answer.body


INWARDS = [
    "127.0.0.1:{port}",
    "127.0.0.1.:{port}",
    "[::1]:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "[64:ff9b::7f00:1]:{port}",
    "0.0.0.0:{port}",
    "[::]:{port}",
    "2130706433:{port}",
    "0x7f.1:{port}",
    "0x7f000001:{port}",
    "127.1:{port}",
    "0177.0.0.1:{port}",
    "inside.test:{port}",
    "user:secret@127.0.0.1:{port}",
    "10.0.0.1:{port}",
    "169.254.169.254",
    "metadata.test",
]
NAMES = {"inside.test": "127.0.0.1", "metadata.test": "169.254.169.254"}


@asynccontextmanager
async def lying_at(
    address: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[FakeRegistry, House]]:
    """A mirror of a registry at this address of the pretended internet."""
    pretend(monkeypatch, NAMES)
    async with FakeRegistry(host=address) as registry:
        registry.add_blob(APP, DATA)
        async with mirroring(folder, {"hub.test": registry}) as house:
            yield registry, house


@pytest.mark.parametrize("place", INWARDS)
async def test_a_public_upstream_may_not_point_inwards(
    other: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async with lying_at(PUBLIC, tmp_path, monkeypatch) as (registry, house):
        other.contents = registry.contents
        registry.redirect_blobs_to = f"http://{place.format(port=other.port)}/cdn"
        answer = await house.get(BLOB)
        assert answer.status == 502
        assert b"a redirect may not reach" in answer.body
        assert b"secret" not in answer.body
        head = await house.head(BLOB)
        assert head.status == 502
    assert other.requests == []
    assert other.connections_accepted == 0


@pytest.mark.parametrize(
    ("upstream", "target", "status"),
    [
        (PUBLIC, PUBLIC_CDN, 200),
        (PUBLIC, PRIVATE, 502),
        (PRIVATE, PRIVATE_CDN, 200),
        (PRIVATE, PUBLIC, 200),
        (PRIVATE, "127.0.0.1", 502),
        ("127.0.0.1", "127.0.0.1", 200),
        ("127.0.0.1", PRIVATE, 200),
        ("127.0.0.1", PUBLIC, 200),
    ],
)
async def test_redirects_lead_outwards_or_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: str, target: str, status: int
) -> None:
    async with (
        lying_at(upstream, tmp_path, monkeypatch) as (registry, house),
        FakeRegistry(host=target) as cdn,
    ):
        registry.serve_blobs_from(cdn)
        assert (await house.get(BLOB)).status == status
        assert cdn.count() == (status == 200)


@pytest.mark.parametrize("upstream", [PRIVATE, "127.0.0.1", LINK_LOCAL])
@pytest.mark.parametrize(
    "place", ["169.254.169.254", "[fe80::1%25lo]", "metadata.test", "[::ffff:169.254.169.254]"]
)
async def test_nobody_may_point_at_link_local_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: str, place: str
) -> None:
    async with lying_at(upstream, tmp_path, monkeypatch) as (registry, house):
        registry.redirect_blobs_to = f"http://{place}/cdn"
        answer = await house.get(BLOB)
        assert answer.status == 502
        assert b"a redirect may not reach" in answer.body


async def test_a_second_redirect_may_not_lead_inwards_either(
    other: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        lying_at(PUBLIC, tmp_path, monkeypatch) as (registry, house),
        FakeRegistry(host=PUBLIC_CDN) as cdn,
    ):
        cdn.add_blob(APP, DATA)
        registry.redirect_blobs_to = f"{cdn.url}/v2/{APP}/blobs"
        cdn.redirect_blobs_to = f"{other.url}/cdn"
        assert (await house.get(BLOB)).status == 502
        assert cdn.count() == 1
    assert other.connections_accepted == 0
