"""From a request's path and `?ns=` to what is asked of which upstream."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohappyeyeballs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.addressing import Address, Directory, Kind
from mirror.errors import MirrorError, NameInvalid, NameUnknown
from mirror.names import Digest, Repository
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.replies import error_of, message_of

Upstreams = dict[str, FakeRegistry | dict[str, Any]]

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
DIRECTORY = Directory.of(
    [
        ("docker.io", None),
        ("quay.io", "quay"),
        ("reg.corp:5000", "corp"),
        ("localhost:5000", None),
    ],
    default="docker.io",
)


def parse(path: str, *namespaces: str, directory: Directory = DIRECTORY) -> Address:
    return directory.route(path, namespaces).address()


@pytest.mark.parametrize(
    ("path", "namespace", "repository"),
    [
        # a registry as first component
        ("/v2/quay.io/org/app", "", "quay.io/org/app"),
        ("/v2/quay.io:443/org/app", "", "quay.io/org/app"),
        ("/v2/QUAY.io/org/app", "", "quay.io/org/app"),
        ("/v2/reg.corp:5000/app", "", "reg.corp:5000/app"),
        ("/v2/localhost:5000/app", "", "localhost:5000/app"),
        # the same before /v2
        ("/quay.io/v2/org/app", "", "quay.io/org/app"),
        ("/QUAY.IO/v2/org/app", "", "quay.io/org/app"),
        ("/quay.io/org/v2/app", "", "quay.io/org/app"),
        ("/reg.corp:5000/v2/app", "", "reg.corp:5000/app"),
        ("/docker.io/v2/app", "", "docker.io/library/app"),
        ("/quay.io/v2/v2/app", "", "quay.io/v2/app"),
        # in ns
        ("/v2/org/app", "quay.io", "quay.io/org/app"),
        ("/v2/org/app", "QUAY.IO", "quay.io/org/app"),
        ("/v2/app", "reg.corp:5000", "reg.corp:5000/app"),
        ("/v2/app", "localhost:5000", "localhost:5000/app"),
        # nowhere: the default
        ("/v2/org/app", "", "docker.io/org/app"),
        ("/v2/app", "", "docker.io/library/app"),
        # Docker Hub's names
        ("/v2/docker.io/app", "", "docker.io/library/app"),
        ("/v2/docker.io/library/app", "", "docker.io/library/app"),
        ("/v2/index.docker.io/org/app", "", "docker.io/org/app"),
        ("/v2/registry-1.docker.io/org/app", "", "docker.io/org/app"),
        ("/v2/app", "docker.io", "docker.io/library/app"),
        ("/v2/app", "registry-1.docker.io", "docker.io/library/app"),
        # the path counts before ns; said twice it counts once
        ("/v2/quay.io/org/app", "quay.io", "quay.io/org/app"),
        ("/v2/quay.io/org/app", "docker.io", "quay.io/org/app"),
        ("/quay.io/v2/org/app", "docker.io", "quay.io/org/app"),
        ("/quay.io/v2/docker.io/app", "", "quay.io/docker.io/app"),
        # aliases
        ("/v2/corp/app", "", "reg.corp:5000/app"),
        ("/corp/v2/app", "", "reg.corp:5000/app"),
        ("/corp/v2/app", "docker.io", "reg.corp:5000/app"),
        ("/v2/app", "corp", "reg.corp:5000/app"),
        ("/v2/corp/app", "reg.corp:5000", "reg.corp:5000/app"),
        ("/v2/corp/app", "docker.io", "docker.io/corp/app"),
        ("/v2/corp/app", "quay.io", "quay.io/corp/app"),
        ("/v2/corp/app", "corp", "reg.corp:5000/app"),
        ("/v2/docker.io/corp/app", "", "docker.io/corp/app"),
        # the API's own words as names
        ("/v2/quay.io/v2/manifests", "", "quay.io/v2/manifests"),
        ("/v2/quay.io/blobs/uploads", "", "quay.io/blobs/uploads"),
        ("/v2/quay.io/tags/list", "", "quay.io/tags/list"),
        ("/v2/manifests/blobs", "", "docker.io/manifests/blobs"),
    ],
)
def test_the_four_ways_to_name_an_upstream(path: str, namespace: str, repository: str) -> None:
    address = parse(f"{path}/manifests/latest", namespace)
    assert str(address.repository) == repository
    assert (address.kind, address.reference) == (Kind.MANIFEST, "latest")
    assert repository.startswith(f"{address.upstream}/")


@pytest.mark.parametrize(
    ("rest", "kind", "reference"),
    [
        ("manifests/v1.0", Kind.MANIFEST, "v1.0"),
        (f"manifests/{DIGEST}", Kind.MANIFEST, Digest("sha256", HEX)),
        (f"blobs/{DIGEST}", Kind.BLOB, Digest("sha256", HEX)),
        (f"blobs/sha512:{HEX}{HEX}", Kind.BLOB, Digest("sha512", HEX + HEX)),
        ("tags/list", Kind.TAGS, None),
        (f"referrers/{DIGEST}", Kind.REFERRERS, Digest("sha256", HEX)),
        ("blobs/uploads/", Kind.UPLOAD, None),
        ("blobs/uploads", Kind.UPLOAD, None),
        ("blobs/uploads/some-id", Kind.UPLOAD, None),
    ],
)
@pytest.mark.parametrize("name", ["org/app", "manifests/blobs/tags", "app"])
def test_what_is_asked_for(rest: str, kind: Kind, reference: object, name: str) -> None:
    address = parse(f"/v2/quay.io/{name}/{rest}")
    assert (address.kind, address.reference) == (kind, reference)
    assert address.repository == Repository("quay.io", name)
    assert address.name == f"quay.io/{name}"


@pytest.mark.parametrize(
    ("path", "namespaces", "kind", "upstream"),
    [
        ("/v2", [], Kind.PING, None),
        ("/v2/", [], Kind.PING, None),
        ("/v2/", ["quay.io"], Kind.PING, "quay.io"),
        ("/quay.io/v2", [], Kind.PING, "quay.io"),
        ("/quay.io/v2/", [], Kind.PING, "quay.io"),
        ("/corp/v2/", ["docker.io"], Kind.PING, "reg.corp:5000"),
        ("/v2/_catalog", [], Kind.CATALOG, None),
        ("/v2/_catalog", ["", "docker.io", "docker.io"], Kind.CATALOG, "docker.io"),
        ("/quay.io/v2/_catalog", [], Kind.CATALOG, "quay.io"),
    ],
)
def test_requests_without_a_repository(
    path: str, namespaces: list[str], kind: Kind, upstream: str | None
) -> None:
    assert parse(path, *namespaces) == Address(kind, upstream)


@pytest.mark.parametrize(
    ("path", "namespace"),
    [
        ("/v2/evil.example/org/app/manifests/latest", ""),
        ("/v2/evil.example:5000/app/manifests/latest", ""),
        ("/v2/localhost/app/manifests/latest", ""),
        ("/v2/quay.io.evil.example/app/manifests/latest", ""),
        ("/v2/quay.io:80/app/manifests/latest", ""),
        ("/v2/org/app/manifests/latest", "evil.example"),
        ("/v2/org/app/manifests/latest", "quay.io:5000"),
        ("/v2/org/app/manifests/latest", "https://quay.io"),
        ("/v2/org/app/manifests/latest", "../quay.io"),
        ("/evil.example/v2/app/manifests/latest", ""),
        ("/nobody/v2/app/manifests/latest", ""),
        ("/evil.example/v2/", ""),
        ("/v2/_catalog", "evil.example"),
        ("/v2/corp/app/manifests/latest", "evil.example"),
    ],
)
def test_an_unknown_registry_is_refused(path: str, namespace: str) -> None:
    with pytest.raises(NameUnknown, match=r"serves docker\.io, localhost:5000, quay\.io, reg"):
        parse(path, namespace)


def test_without_a_default_the_registry_must_be_named() -> None:
    directory = Directory.of([("quay.io", None)], default=None)
    with pytest.raises(NameUnknown):
        parse("/v2/org/app/tags/list", directory=directory)
    assert parse("/v2/quay.io/org/app/tags/list", directory=directory).upstream == "quay.io"


def test_two_registries_in_ns_are_none() -> None:
    with pytest.raises(NameInvalid):
        parse("/v2/app/tags/list", "docker.io", "quay.io")


@given(st.text(), st.lists(st.text(), max_size=3))
def test_any_text_is_an_address_or_an_error(text: str, namespaces: list[str]) -> None:
    for path in (text, f"/v2/{text}", f"/{text}/v2/a/b/tags/list", f"/v2/{text}/manifests/x"):
        with suppress(MirrorError):
            assert parse(path, *namespaces).upstream in {None, *DIRECTORY.hosts.values()}


COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True)
NAMES = st.lists(COMPONENT, min_size=2, max_size=4).map("/".join).filter(lambda n: len(n) < 200)
TAGS = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True)
HOSTS = st.sampled_from(["docker.io", "quay.io", "reg.corp:5000", "localhost:5000"])


@settings(max_examples=25, deadline=None)
@given(HOSTS, NAMES, TAGS)
def test_every_valid_name_comes_back(host: str, name: str, tag: str) -> None:
    asked = [
        parse(f"/v2/{host}/{name}/manifests/{tag}"),
        parse(f"/{host}/v2/{name}/manifests/{tag}"),
    ]
    if name.partition("/")[0] not in {*DIRECTORY.hosts}:
        asked.append(parse(f"/v2/{name}/manifests/{tag}", host))
    for address in asked:
        assert (address.repository, address.reference) == (Repository(host, name), tag)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The names that are resolved and the addresses that are connected to, from here on."""
    seen: list[object] = []
    resolve, connect = socket.getaddrinfo, aiohappyeyeballs.start_connection

    def getaddrinfo(host: object, *rest: Any, **named: Any) -> Any:
        seen.append(host)
        return resolve(host, *rest, **named)  # type: ignore[arg-type]

    async def start_connection(*arguments: Any, **named: Any) -> Any:
        seen.append(arguments)
        return await connect(*arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    return seen


async def test_a_registry_outside_the_list_is_never_dialled_nor_resolved(
    tmp_path: Path, registry: FakeRegistry, dialled: list[object]
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        dialled.clear()
        for path in (
            "/v2/evil.example/app/manifests/latest",
            f"/v2/evil.example/app/blobs/{DIGEST}",
            "/v2/app/tags/list?ns=evil.example",
            f"/v2/app/referrers/{DIGEST}?ns=evil.example%3A5000",
            f"/v2/app/manifests/latest?ns={registry.authority.replace(':', '%3A')}",
            "/evil.example/v2/",
        ):
            answer = await mirror.get(path)
            assert error_of(answer) == (404, "NAME_UNKNOWN")
            assert "upstreams" in message_of(answer)
            assert "OCI-Namespace" not in answer.headers
        assert (dialled, registry.connections_accepted) == ([], 0)
        await mirror.get("/v2/app/manifests/latest")
        assert len(dialled) == 1, "what is known is dialled"


async def test_a_name_is_resolved_only_for_its_own_upstream(
    tmp_path: Path, registry: FakeRegistry, dialled: list[object]
) -> None:
    upstreams: Upstreams = {
        "docker.io": registry,
        "reg.corp:5000": {"endpoints": ["http://registry.invalid:5000"]},
    }
    async with mirroring(tmp_path, upstreams) as mirror:
        dialled.clear()
        assert (await mirror.get("/v2/app/manifests/latest")).status == 404
        assert "registry.invalid" not in dialled
        answer = await mirror.get("/v2/app/manifests/latest?ns=reg.corp%3A5000")
        assert error_of(answer) == (504, "UNAVAILABLE")
        assert "registry.invalid" in dialled


async def test_every_way_leads_to_the_same_image(tmp_path: Path, registry: FakeRegistry) -> None:
    image = registry.add_image("library/app")
    corp = {"endpoints": [registry.url], "alias": "corp"}
    async with mirroring(tmp_path, {"docker.io": registry, "reg.corp:5000": corp}) as mirror:
        for path, namespace in (
            ("/v2/app/manifests/latest", "docker.io"),
            ("/v2/docker.io/app/manifests/latest", "docker.io"),
            ("/v2/INDEX.docker.io/app/manifests/latest", "docker.io"),
            ("/docker.io/v2/library/app/manifests/latest", "docker.io"),
            ("/v2/app/manifests/latest?ns=docker.io", "docker.io"),
            ("/v2/app/manifests/latest?x=y&ns=registry-1.docker.io", "docker.io"),
            ("/v2/library/app/manifests/latest?ns=reg.corp%3A5000", "reg.corp:5000"),
            ("/v2/reg.corp:5000/library/app/manifests/latest", "reg.corp:5000"),
            ("/v2/reg.corp%3A5000/library/app/manifests/latest", "reg.corp:5000"),
            ("/reg.corp:5000/v2/library/app/manifests/latest", "reg.corp:5000"),
            ("/v2/corp/library/app/manifests/latest", "reg.corp:5000"),
            ("/corp/v2/library/app/manifests/latest?ns=docker.io", "reg.corp:5000"),
        ):
            answer = await mirror.get(path)
            assert (path, answer.body) == (path, image.manifest)
            assert answer.headers["OCI-Namespace"] == namespace
    assert registry.count("GET", "manifest") == 1, "it is stored once"


async def test_one_name_under_two_upstreams_is_two_repositories(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    async with FakeRegistry() as other:
        here, there = registry.add_image("org/app"), other.add_image("org/app", layers=[b"other"])
        upstreams: Upstreams = {"docker.io": registry, "quay.io": other}
        async with mirroring(tmp_path, upstreams) as mirror:
            for _ in range(2):
                assert (await mirror.get("/v2/org/app/manifests/latest")).body == here.manifest
                answer = await mirror.get("/v2/org/app/manifests/latest?ns=quay.io")
                assert answer.body == there.manifest
            stranger = f"/v2/quay.io/org/app/manifests/{here.digest}"
            assert error_of(await mirror.get(stranger)) == (404, "MANIFEST_UNKNOWN")
            assert (await mirror.get(f"/v2/org/app/blobs/{here.config}")).status == 200
            stranger = f"/v2/quay.io/org/app/blobs/{here.config}"
            assert error_of(await mirror.get(stranger)) == (404, "BLOB_UNKNOWN")


async def test_the_same_manifest_from_two_upstreams_at_once(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    async with FakeRegistry() as other:
        image = registry.add_image("org/app")
        other.add_image("org/app")
        async with mirroring(tmp_path, {"docker.io": registry, "quay.io": other}) as mirror:
            answers = await asyncio.gather(
                mirror.get("/v2/org/app/manifests/latest"),
                mirror.get("/v2/org/app/manifests/latest?ns=quay.io"),
            )
            assert [answer.body for answer in answers] == [image.manifest] * 2
            assert await mirror.metric("mirror_cache_blobs") == 1
