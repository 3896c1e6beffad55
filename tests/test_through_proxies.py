"""Upstreams that a proxy stands before: a tunnel for HTTPS, the whole URL for HTTP."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trustme
from aiohttp import encode_basic_auth
from structlog.testing import capture_logs

from tests.fakes.auth import BasicAuth
from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.proxy import FakeProxy
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, some_bytes
from tests.support.replies import message_of

PASSWORD = "s3cret"  # noqa: S105 - of nothing
LOGIN = encode_basic_auth("us er", PASSWORD)
DATA = some_bytes(3_000_000)


@pytest.fixture(autouse=True)
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were asked for here, where nobody knows them."""
    names: list[str] = []
    known = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **named: Any) -> Any:
        if not host.endswith(".test"):
            return known(host, *rest, **named)
        names.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


def port_of(registry: FakeRegistry) -> int:
    return int(registry.url.rpartition(":")[2])


@asynccontextmanager
async def behind(
    proxy: FakeProxy,
    folder: Path,
    endpoint: str,
    login: str = f"us%20er:{PASSWORD}@",
    of_upstream: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> AsyncIterator[House]:
    url = f"http://{login}127.0.0.1:{proxy.port}"
    alice = {"username": "alice", "password": "wonderland"}
    upstream: dict[str, Any] = {"endpoints": [endpoint], "credentials": [alice], **of_upstream}
    ca_file = folder / "ca.pem"
    if ca_file.exists():
        upstream["tls"] = {"ca_file": str(ca_file)}
    proxies = {"http": url, "https": url, **more}
    async with mirroring(folder, {UPSTREAM: upstream}, proxies=proxies) as house:
        yield house


@pytest.fixture
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FakeRegistry]:
    tls = None
    if getattr(request, "param", "http") == "https":
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("registry.test").configure_cert(tls)
    async with FakeRegistry(tls) as registry:
        yield registry


@pytest.fixture
async def proxy(registry: FakeRegistry) -> AsyncIterator[FakeProxy]:
    port = port_of(registry)
    async with FakeProxy({"registry.test:443": port, "registry.test:80": port}, LOGIN) as proxy:
        yield proxy


@pytest.mark.parametrize("registry", ["https", "http"], indirect=True)
async def test_an_image_comes_through_it(
    registry: FakeRegistry, proxy: FakeProxy, tmp_path: Path, looked_up: list[str]
) -> None:
    registry.auth = BasicAuth("alice", "wonderland")
    scheme = registry.url.partition(":")[0]
    image = registry.add_image("org/app")
    path = add_layer(registry, DATA)
    async with behind(proxy, tmp_path, f"{scheme}://registry.test") as house:
        answer = await house.get(f"/v2/{UPSTREAM}/org/app/manifests/latest")
        assert (answer.status, answer.body) == (200, image.manifest)
        part = await house.get(path, headers={"Range": "bytes=1000-1999"})
        assert part.body == DATA[1000:2000]
        bodies = await asyncio.gather(*(house.get(path) for _ in range(3)))
        assert {each.body for each in bodies} == {DATA}
    expected = "CONNECT registry.test:443 " if scheme == "https" else " http://registry.test/v2/"
    assert all(expected in first for first in proxy.asked)
    assert looked_up == []
    assert not any("Proxy-Authorization" in seen.headers for seen in registry.requests)


async def test_what_is_exempt_is_asked_directly(
    registry: FakeRegistry, proxy: FakeProxy, tmp_path: Path, looked_up: list[str]
) -> None:
    """As is what listens on this very host."""
    path = add_layer(registry, DATA)
    async with behind(proxy, tmp_path, registry.url) as house:
        assert (await house.get(path)).body == DATA
    async with behind(proxy, tmp_path, "http://registry.test", none_for=[".test"]) as house:
        assert (await house.get(f"/v2/{UPSTREAM}/org/app/manifests/latest")).status == 504
    assert set(looked_up) == {"registry.test"}
    assert proxy.asked == []


@pytest.mark.parametrize("registry", ["https", "http"], indirect=True)
@pytest.mark.parametrize(
    ("wrong", "status", "told"),
    [
        ("login", {"https": 504, "http": 502}, "`proxies`"),
        ("refusal", {"https": 504, "http": 502}, "503"),
        ("down", {"https": 504, "http": 504}, "127.0.0.1, the proxy, cannot be reached"),
    ],
)
async def test_a_proxy_that_does_not_serve_is_told(
    registry: FakeRegistry,
    proxy: FakeProxy,
    tmp_path: Path,
    wrong: str,
    status: dict[str, int],
    told: str,
) -> None:
    registry.add_image("org/app")
    scheme = registry.url.partition(":")[0]
    login = "other:1234@" if wrong == "login" else f"us%20er:{PASSWORD}@"
    if wrong == "refusal":
        proxy.refuses_with = 503
    with capture_logs() as lines:
        async with behind(proxy, tmp_path, f"{scheme}://registry.test", login) as house:
            if wrong == "down":
                await proxy.stop()
            answer = await house.get(f"/v2/{UPSTREAM}/org/app/manifests/latest")
    assert answer.status == status[scheme]
    assert told in message_of(answer)
    assert PASSWORD not in f"{answer.body!r} {lines}"
    assert registry.requests == []


@pytest.mark.parametrize("registry", ["https", "http"], indirect=True)
@pytest.mark.parametrize("mumbles", [b"", b"HTTP/1.1 102 Processing\r\n\r\n"])
async def test_a_proxy_that_never_answers_is_given_up(
    registry: FakeRegistry, proxy: FakeProxy, tmp_path: Path, mumbles: bytes
) -> None:
    proxy.mumbles = mumbles
    scheme = registry.url.partition(":")[0]
    hasty = {"connect_timeout": "100ms", "idle_timeout": "200ms"}
    async with behind(proxy, tmp_path, f"{scheme}://registry.test", of_upstream=hasty) as house:
        async with asyncio.timeout(SOON_SECONDS):
            answer = await house.get(f"/v2/{UPSTREAM}/org/app/manifests/latest")
    assert answer.status == 504
    assert "no answer in time" in message_of(answer)


async def test_a_proxy_that_is_spoken_to_in_the_wrong_way_is_told(tmp_path: Path) -> None:
    """`https` is written easily where the proxy leads to HTTPS, and itself speaks HTTP."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    upstream = {"endpoints": ["https://registry.test"]}
    async with server, mirroring(tmp_path, {UPSTREAM: upstream}, proxies={"https": url}) as house:
        told = message_of(await house.get(f"/v2/{UPSTREAM}/org/app/manifests/latest"))
    assert "no safe connection to 127.0.0.1, the proxy: " in told
    assert "see `proxies`" in told


async def test_redirects_go_through_it_too(
    registry: FakeRegistry, proxy: FakeProxy, tmp_path: Path
) -> None:
    path = add_layer(registry, DATA)
    proxy.names["cdn.test:80"] = port_of(registry)
    registry.redirect_blobs_to = lambda _, digest: f"http://cdn.test/cdn/{digest}?signature=a%2Fb"
    async with behind(proxy, tmp_path, "http://registry.test") as house:
        assert (await house.get(path)).body == DATA
    assert any("http://cdn.test/cdn/" in first for first in proxy.asked)


@pytest.mark.parametrize("target", ["169.254.169.254", "10.0.0.1", "127.0.0.1", "[::1]"])
async def test_a_redirect_may_not_lead_inwards_through_it_either(
    registry: FakeRegistry, proxy: FakeProxy, tmp_path: Path, target: str
) -> None:
    path = add_layer(registry, DATA)
    registry.redirect_blobs_to = f"http://{target}:{port_of(registry)}/latest/meta-data"
    async with behind(proxy, tmp_path, "http://registry.test") as house:
        answer = await house.get(path)
    assert answer.status == 502
    assert "an address that a redirect may not reach" in message_of(answer)
    assert not any(target in first for first in proxy.asked)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["10.0.0.1 ", "10%2E0%2E0%2E1", "10.0.0.1%20"])
async def test_a_redirect_to_what_is_no_host_is_not_left_to_the_proxy(
    registry: FakeRegistry, proxy: FakeProxy, tmp_path: Path, host: str, scheme: str
) -> None:
    """To some proxies the URL ends at the blank, and an address is one in other letters, too."""
    path = add_layer(registry, DATA)
    registry.redirect_blobs_to = f"{scheme}://{host}/latest/meta-data"
    async with behind(proxy, tmp_path, "http://registry.test") as house:
        answer = await house.get(path)
    assert answer.status == 502
    assert "redirects to" in message_of(answer)
    assert not any("meta-data" in first or "CONNECT" in first for first in proxy.asked)
