"""Upstreams that send too much, or other than what was asked for, or lead elsewhere.

Redirects are in test_redirects.py, realms in test_realms.py, wrong bytes in test_wrong_bytes.py.
"""

import asyncio
import gzip
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

import mirror.upstream.transport
from mirror.downloads import tries
from tests.fakes.auth import BearerAuth
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import Header, OtherBody, Status
from tests.fakes.images import OCI_MANIFEST, digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.internet import PRIVATE, PUBLIC, PUBLIC_CDN, pretend
from tests.support.layers import APP, UPSTREAM, add_layer, some_bytes
from tests.support.replies import error_of, json_of

TAG = f"/v2/{UPSTREAM}/{APP}/manifests/latest"
TAGS = f"/v2/{UPSTREAM}/{APP}/tags/list"
# Brackets in front of no host, which yarl takes for neither a URL nor a mistake.
NO_URL = "http://[]@/"
# Python's own reader of such headers ends with IndexError.
HALF_A_PARAMETER = ";x*0*=\"'"


@pytest.fixture
async def house(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[House]:
    registry.add_image(APP)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house


@asynccontextmanager
async def talking(head: bytes, again: bytes) -> AsyncIterator[str]:
    """An upstream that answers anything with `head`, and then with `again` without end."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in chain([head], repeat(again)):
                writer.write(piece)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


OK = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n"
TYPE = OCI_MANIFEST.encode()
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
BOMB = gzip.compress(b" " * 50_000_000)
ENDLESS = {
    "a body in chunks": (OK % TYPE + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
    "a body without length": (OK % TYPE + b"\r\n", b" " * 65536),
    "a body with a huge length": (
        OK % TYPE + b"Content-Length: 999999999999\r\n\r\n",
        b" " * 65536,
    ),
    "headers": (OK % TYPE, b"X: y\r\n" * 1000),
    "one header": (OK % TYPE + b"X: ", b"y" * 65536),
    "a status line": (b"HTTP/1.1 200 ", b"O" * 65536),
    "trailers": (OK % TYPE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 1000),
    "a chunk's extension": (OK % TYPE + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536),
    "answers before the answer": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" * 100),
    "an error's body": (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
    "a refusal's body": (
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="x"\r\n'
        b"Transfer-Encoding: chunked\r\n\r\n",
        CHUNK,
    ),
    "a redirect's body": (
        b"HTTP/1.1 302 No\r\nLocation: /x\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNK,
    ),
    "no HTTP": (b"", b"\0" * 65536),
}


@pytest.mark.parametrize("path", [TAG, TAGS], ids=["manifest", "tags"])
@pytest.mark.parametrize(("head", "again"), ENDLESS.values(), ids=ENDLESS)
async def test_what_has_no_end_is_not_read_to_its_end(
    head: bytes, again: bytes, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.upstream.transport, "CONTROL_BODY_SECONDS", 1)
    async with (
        talking(head, again) as url,
        mirroring(tmp_path, {UPSTREAM: {"endpoints": [url], "idle_timeout": "0.5s"}}) as house,
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        answer = await house.get(path)
        assert answer.status in (403, 502, 504)
        assert (await house.get("/healthz")).status == 200


async def test_a_blob_that_goes_on_without_a_byte_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes on is the extension of its first chunk."""
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    head = OK % b"application/octet-stream" + b"Transfer-Encoding: chunked\r\n\r\n1;"
    async with (
        talking(head, b"x" * 100) as url,
        mirroring(tmp_path, {UPSTREAM: {"endpoints": [url], "idle_timeout": "0.2s"}}) as house,
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        answer = await house.get(f"/v2/{UPSTREAM}/{APP}/blobs/{digest_of(b'x')}")
        assert answer.status in (200, 502, 504)
        assert answer.ended == "short" or answer.status != 200


@asynccontextmanager
async def chunks_that_are_none(body: bytes) -> AsyncIterator[str]:
    """An upstream whose first answer has one chunk, half of the body, and then what is no chunk;
    later ones have what is asked for.
    """
    answered: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        answered.append(request)
        half = body[: len(body) // 2]
        if len(answered) == 1:
            writer.write(OK % TYPE + b"Transfer-Encoding: chunked\r\n\r\n")
            await asyncio.sleep(0.05)  # so that both come together, and after the head
            writer.write(b"%x\r\n%b\r\nno length\r\n" % (len(half), half))
        else:
            wanted = re.search(rb"Range: bytes=(\d+)-", request)
            start = int(wanted[1]) if wanted else 0
            told = b"bytes %d-%d/%d" % (start, len(body) - 1, len(body))
            writer.write(b"HTTP/1.1 206 Partial Content\r\nContent-Range: %b\r\n" % told)
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body) - start, body[start:]))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_chunks_that_are_none_are_a_bad_gateway_at_once(tmp_path: Path) -> None:
    async with (
        chunks_that_are_none(b"{}") as url,
        mirroring(tmp_path, {UPSTREAM: {"endpoints": [url]}}) as house,
        asyncio.timeout(5),
    ):
        assert (await house.get(TAGS)).status == 502


async def test_a_blob_in_chunks_that_are_none_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)
    data = some_bytes(200_000)
    async with (
        chunks_that_are_none(data) as url,
        mirroring(tmp_path, {UPSTREAM: {"endpoints": [url]}}) as house,
    ):
        answer = await house.get(f"/v2/{UPSTREAM}/{APP}/blobs/{digest_of(data)}")
        assert (answer.status, answer.ended, answer.body) == (200, "complete", data)


@pytest.mark.parametrize("kind", ["manifest", "tags", "token"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip"])
async def test_compression_bombs_are_refused_and_not_decoded(
    encoding: str, kind: Any, registry: FakeRegistry, house: House
) -> None:
    if kind == "token":
        registry.auth = BearerAuth({})
    registry.fail(OtherBody(BOMB), Header("Content-Encoding", encoding), kind=kind, method="GET")
    status, _ = error_of(await house.get(TAGS if kind == "tags" else TAG))
    assert status == 502


@pytest.mark.parametrize(
    "token", ["x\r\nX-Injected: y", "x\ny", "x y\0", "é", "x" * 10_000_000, "", None, 7, ["x"], {}]
)
async def test_tokens_that_are_none_are_not_sent(
    token: object, registry: FakeRegistry, house: House
) -> None:
    registry.auth = BearerAuth({})
    registry.fail(OtherBody(json.dumps({"token": token}).encode()), kind="token")
    status, _ = error_of(await house.get(TAG))
    assert status == 502
    assert {seen.authorization for seen in registry.requests} == {None}


@pytest.mark.parametrize(
    "realm", [NO_URL, "http://[", "file:///etc/passwd", "http://evil.test/", "//evil.test", "\0"]
)
async def test_realms_that_are_none_are_not_asked(
    realm: str, registry: FakeRegistry, house: House
) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}"'}
    registry.fail(Status(401, challenge))
    assert (await house.get(TAG)).status == 502
    assert {seen.kind for seen in registry.requests} == {"manifest"}


@pytest.mark.parametrize(
    "location", [NO_URL, "http://[]:80/", "http://\0/", "http://a b/", f"/{'x' * 30_000}", "?", "#"]
)
async def test_a_location_that_is_none_is_a_bad_gateway(
    location: str, registry: FakeRegistry, house: House
) -> None:
    registry.fail(Status(307, {"Location": location}))
    assert (await house.get(TAG)).status in (502, 504)


async def test_a_login_in_a_location_is_not_sent(registry: FakeRegistry, house: House) -> None:
    """Nobody but the operator says who the mirror is."""
    path = add_layer(registry, b"a layer")
    digest = digest_of(b"a layer")
    location = f"http://alice:secret@{registry.authority}/cdn/{digest}"
    registry.fail(Status(307, {"Location": location}), times=1)
    answer = await house.get(path)
    assert b"secret" not in answer.body
    assert {seen.authorization for seen in registry.requests} == {None}


@pytest.mark.parametrize(
    "link",
    [
        f'<{NO_URL}?n=1>; rel="next"',
        '<http://169.254.169.254/latest?n=1&last=b>; rel="next"',
        '<//evil.test/v2/x/tags/list?n=1&last=b&ns=evil.test>; rel="next"',
        '<javascript:alert(1)>; rel="next"',
        '<?last=%0d%0aX-Injected:%20y>; rel="next"',
        "<" * 3000,
        "<>; rel=next",
    ],
)
async def test_a_link_leads_only_back_to_the_mirror(
    link: str, registry: FakeRegistry, house: House
) -> None:
    registry.fail(Header("Link", link), kind="tags")
    answer = await house.get(TAGS)
    assert (answer.status, json_of(answer)["tags"]) == (200, ["latest"])
    assert "X-Injected" not in answer.headers
    assert answer.headers.get("Link", f"<{TAGS}?").startswith(f"<{TAGS}?")
    assert "evil.test" not in answer.headers.get("Link", "")


@pytest.mark.parametrize(
    "header",
    [
        Header("Docker-Content-Digest", "sha256:" + "0" * 64),
        Header("Content-Type", "text/html"),
        Header("Content-Type", f"{OCI_MANIFEST}\x01"),
        Header("Content-Type", "x" * 30_000),
        Header("Content-Type", f"{OCI_MANIFEST.upper()}{HALF_A_PARAMETER}"),
        Header("Retry-After", "9" * 5000),
        Header("ratelimit-remaining", "9" * 5000),
        Header("ratelimit-limit", "-1;w=-1"),
        Header("Set-Cookie", "a=b; Domain=.test"),
        Header("OCI-Namespace", "evil.test"),
        Header("Transfer-Encoding", "chunked"),
        Header("Connection", "upgrade"),
        Header("Content-Range", "bytes 0-0/1"),
    ],
    ids=lambda header: f"{header.name}: {header.value[:20]}",
)
async def test_odd_headers_reach_no_client_and_break_nothing(
    header: Header, registry: FakeRegistry, house: House
) -> None:
    registry.fail(header, kind="manifest")
    answer = await house.get(TAG)
    assert answer.status in (200, 502)
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["OCI-Namespace"] == UPSTREAM
    if answer.status == 200:
        image = registry.repositories[APP].tags["latest"]
        assert digest_of(answer.body) == image
        assert answer.headers["Content-Type"] == OCI_MANIFEST


async def test_an_odd_type_of_a_blob_breaks_nothing(registry: FakeRegistry, house: House) -> None:
    data = some_bytes(100_000)
    path = add_layer(registry, data)
    registry.fail(Header("Content-Type", f"application/json{HALF_A_PARAMETER}"), kind="blob")
    assert (await house.get(path)).body == data


@pytest.mark.parametrize("applied", ["a\x01b", "a\x7fb", "é", "x" * 5000])
async def test_odd_names_of_filters_reach_no_client(
    applied: str, registry: FakeRegistry, house: House
) -> None:
    digest = registry.repositories[APP].tags["latest"]
    registry.fail(Header("OCI-Filters-Applied", applied), kind="referrers")
    answer = await house.get(f"/v2/{UPSTREAM}/{APP}/referrers/{digest}?artifactType=x/y")
    assert answer.status == 200
    assert "OCI-Filters-Applied" not in answer.headers


@asynccontextmanager
async def sized(size: int, body: bytes) -> AsyncIterator[str]:
    """An upstream that tells this size of anything, whether it exists or not, and sends `body`."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(OK % TYPE + b"Docker-Content-Digest: %b\r\n" % digest_of(body).encode())
        writer.write(b"Content-Length: %d\r\n\r\n" % size)
        writer.write(b"" if request.startswith(b"HEAD") else body)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 2**64])
async def test_sizes_that_nothing_has_are_a_bad_gateway_at_once(size: int, tmp_path: Path) -> None:
    body = b'{"schemaVersion": 2, "config": {}, "layers": []}'
    digest = digest_of(body)
    paths = [TAG, TAG.replace("latest", digest), f"/v2/{UPSTREAM}/{APP}/blobs/{digest}"]
    async with (
        sized(size, body) as url,
        mirroring(tmp_path, {UPSTREAM: {"endpoints": [url]}}) as house,
        asyncio.timeout(5),
    ):
        for path in paths:
            assert (await house.head(path)).status in (200, 502)
            assert (await house.get(path)).status == 502
        assert await house.metric("mirror_index_errors_total") == 0


async def test_a_remembered_tag_outlasts_sizes_that_nothing_has(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.add_image(APP)
    async with sized(2**63, b"{}") as url:
        settings: dict[str, Any] = {"tag_ttl": "0s"}
        async with mirroring(
            tmp_path, {UPSTREAM: {"endpoints": [registry.url], **settings}}
        ) as house:
            assert (await house.get(TAG)).body == image.manifest
        async with mirroring(tmp_path, {UPSTREAM: {"endpoints": [url], **settings}}) as house:
            answer = await house.get(TAG)
            assert (answer.status, answer.body) == (200, image.manifest)


async def test_what_a_manifest_names_in_half_characters_is_no_fault_of_the_index(
    registry: FakeRegistry, house: House
) -> None:
    """Whoever may push a manifest chooses what it says."""
    layer = b"a layer"
    entry = {"mediaType": "half\ud800", "digest": registry.add_blob(APP, layer), "size": len(layer)}
    document = {"schemaVersion": 2, "config": entry, "layers": [entry]}
    registry.add_manifest(APP, json.dumps(document).encode(), OCI_MANIFEST, "half")
    assert (await house.get(TAG.replace("latest", "half"))).status == 200
    assert (await house.get(f"/v2/{UPSTREAM}/{APP}/blobs/{digest_of(layer)}")).body == layer
    assert await house.metric("mirror_index_errors_total") == 0


async def test_other_content_than_asked_for_is_never_served_by_its_digest(
    registry: FakeRegistry, house: House
) -> None:
    """A manifest of another repository, whole and true, but not the one that was asked for."""
    other = registry.add_image("other/app", layers=[b"theirs"])
    asked = registry.repositories[APP].tags["latest"]
    registry.fail(OtherBody(other.manifest), kind="manifest", method="GET")
    assert (await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/{asked}")).status == 502
    registry.heal()
    assert (await house.get(f"/v2/{UPSTREAM}/{APP}/manifests/{asked}")).status == 200


async def test_a_name_that_answers_otherwise_the_second_time_gains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS that names the CDN when it is asked first, and a neighbour of ours from then on."""
    data = some_bytes(50_000)
    pretend(monkeypatch)
    asked: list[str] = []
    pretended = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: object, **named: object) -> object:
        if host == "rebinding.test":
            asked.append(host)
            host = PUBLIC_CDN if len(asked) == 1 else PRIVATE
        return pretended(host, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with (
        FakeRegistry(host=PUBLIC) as registry,
        FakeRegistry(host=PUBLIC_CDN) as cdn,
        FakeRegistry(host=PRIVATE) as neighbour,
        mirroring(tmp_path, {UPSTREAM: registry}) as house,
    ):
        paths = [add_layer(registry, data), add_layer(registry, data[1:])]
        registry.serve_blobs_from(cdn)
        neighbour.contents = registry.contents
        registry.redirect_blobs_to = f"http://rebinding.test:{cdn.port}/cdn"
        assert (await house.get(paths[0])).status == 200
        assert asked == ["rebinding.test"]
        registry.redirect_blobs_to = f"http://rebinding.test:{neighbour.port}/cdn"
        assert (await house.get(paths[1])).status == 502
        assert len(asked) >= 2
        assert neighbour.connections_accepted == 0
