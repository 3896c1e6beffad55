"""Requests that no client of a registry sends: they get a 4xx in our own words, and hurt nobody."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import mirror.web.connection
from tests.fakes.client import RawStream
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.registry import FakeRegistry
from tests.support.connections import answer_of, connect, connected
from tests.support.house import House, mirroring
from tests.support.layers import APP, UPSTREAM
from tests.support.limits import descriptors_allowed, most_descriptors

OK = "HTTP/1.1\r\nHost: mirror"
DIGEST = "sha256:" + "0" * 64


@pytest.fixture
async def house(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house
        assert (await house.get("/healthz")).status == 200


async def ask(house: House, request: bytes) -> tuple[RawStream, bytes]:
    """The first answer to exactly these bytes, checked for what every answer has to keep."""
    async with connected(house.url) as (transport, wire):
        transport.write(request)
        stream, body = await answer_of(wire)
    assert stream.headers["Server"] == "mirror"
    assert b"aiohttp" not in body
    assert b"Traceback" not in body
    if stream.status >= 400:
        assert stream.headers["Content-Type"] == "application/json"
        (error,) = json.loads(body)["errors"]
        assert error["code"]
        assert error["message"].isprintable()
        assert len(error["message"]) < 1000
    return stream, body


def written(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


FORMS = {
    "unknown method": (written(f"FOO /v2/ {OK}"), 400),
    "method in small letters": (written(f"get /v2/ {OK}"), 400),
    "method of WebDAV": (written(f"PROPFIND /v2/ {OK}"), 405),
    "method with a body": (written(f"POST /v2/ {OK}", "Content-Length: 2") + b"{}", 405),
    "body on GET": (written(f"GET /v2/ {OK}", "Content-Length: 2") + b"{}", 200),
    "body in chunks": (written(f"GET /v2/ {OK}", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 200),
    "body that never comes": (written(f"DELETE /v2/ {OK}", f"Content-Length: {10**15}"), 405),
    "continue": (written(f"PUT /v2/ {OK}", "Content-Length: 2", "Expect: 100-continue"), 405),
    "other expectations": (written(f"GET /v2/ {OK}", "Expect: miracles"), 200),
    "websocket": (written(f"GET /v2/ {OK}", "Connection: upgrade", "Upgrade: websocket"), 200),
    "h2c": (written(f"GET /v2/ {OK}", "Connection: Upgrade", "Upgrade: h2c"), 200),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/1.0": (written("GET /v2/ HTTP/1.0"), 200),
    "HTTP/0.9": (b"GET /v2/\r\n\r\n", 200),
    "no Host": (written("GET /v2/ HTTP/1.1"), 400),
    "odd Host": (written("GET /v2/ HTTP/1.1", "Host: [::1%25"), 200),
    "length of letters": (written(f"GET /v2/ {OK}", "Content-Length: two"), 400),
    "length below zero": (written(f"GET /v2/ {OK}", "Content-Length: -2"), 400),
    "length beyond counting": (written(f"GET /v2/ {OK}", f"Content-Length: {'9' * 50}"), 400),
    "two lengths": (written(f"GET /v2/ {OK}", "Content-Length: 2", "Content-Length: 3"), 400),
    "length and chunks": (
        written(f"POST /v2/ {OK}", "Content-Length: 4", "Transfer-Encoding: chunked")
        + b"0\r\n\r\n",
        400,
    ),
    "header without a colon": (written(f"GET /v2/ {OK}", "x"), 400),
    "header with a NUL": (written(f"GET /v2/ {OK}", "X: a\0b"), 400),
    "header before its name": (written(f"GET /v2/ {OK}", " : x"), 400),
    "huge header": (written(f"GET /v2/ {OK}", f"X: {'x' * 70_000}"), 400),
    "many headers": (written(f"GET /v2/ {OK}", *(f"X-{n}: x" for n in range(1000))), 400),
    "endless headers": (written(f"GET /v2/ {OK}")[:-2] + b"X: x\r\n" * 100_000, 400),
    "long path": (written(f"GET /v2/{'a' * 10_000} {OK}"), 404),
    "longer path": (written(f"GET /v2/{'a' * 100_000} {OK}"), 400),
    "space in the path": (written(f"GET /v2/a b {OK}"), 400),
    "bytes in the path": (written(f"GET /v2/\xff\xfe/manifests/x {OK}"), 400),
    "asterisk": (written(f"OPTIONS * {OK}"), 404),
    "CONNECT": (written(f"CONNECT evil.test:443 {OK}"), 404),
    "another origin": (written(f"GET http://evil.test/v2/ {OK}"), 200),
    "odd origin": (written(f"GET http://[/v2/ {OK}"), 400),
    "nothing": (b"\r\n\r\nGET\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
}


@pytest.mark.parametrize(("request_bytes", "status"), FORMS.values(), ids=FORMS)
async def test_an_odd_form_gets_an_answer_of_ours(
    request_bytes: bytes, status: int, house: House, registry: FakeRegistry
) -> None:
    stream, _ = await ask(house, request_bytes)
    assert stream.status == status
    assert registry.connections_accepted == 0


async def test_a_target_that_the_parser_chokes_on_ends_the_connection_quietly(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(house.url) as (transport, wire), asyncio.timeout(DEADLINE_SECONDS):
        transport.write(written(f"GET http://[]@/v2/ {OK}"))
        while await wire.more():
            pass
    assert wire.buffer == b""
    assert caplog.records == []


PINGS = ["/v2", "//v2/"]
PATHS = [
    *PINGS,
    "/",
    "//",
    "/v2//",
    "/V2/",
    "/v2/../../etc/passwd",
    "/v2/..%2f..%2fetc%2fpasswd/manifests/x",
    f"/v2/{UPSTREAM}/../../x/manifests/latest",
    f"/v2/{UPSTREAM}/%2e%2e/x/manifests/latest",
    f"/v2/{UPSTREAM}/a%2fb/manifests/latest",
    f"/v2/{UPSTREAM}/a/manifests/..",
    f"/v2/{UPSTREAM}/a/manifests/%2e%2e%2f%2e%2e",
    f"/v2/{UPSTREAM}/a/blobs/sha256:../../../index.db",
    f"/v2/{UPSTREAM}/a/blobs/sha256:{'g' * 64}",
    f"/v2/{UPSTREAM}/a/blobs/{DIGEST.upper()}",
    f"/v2/{UPSTREAM}/a/blobs/{DIGEST}%00",
    f"/v2/{UPSTREAM}/a/blobs/{DIGEST}/",
    f"/v2/{UPSTREAM}/a%00b/manifests/x",
    f"/v2/{UPSTREAM}//a/manifests/x",
    f"/v2/{UPSTREAM}/a\\b/manifests/x",
    f"/v2/{UPSTREAM}/{'a/' * 2000}manifests/x",
    f"/v2/{UPSTREAM}/a/manifests/{'x' * 129}",
    f"/v2/{UPSTREAM}/a/manifests/%ff%fe",
    f"/v2/{UPSTREAM}/a/manifests/%zz",
    f"/v2/{UPSTREAM}/a/manifests/x%0d%0aX-Injected:%20y",
    f"/v2/{UPSTREAM}/a/tags/list/x",
    f"/v2/{UPSTREAM}/manifests/x",
    "/v2/127.0.0.1:22/a/manifests/x",
    "/v2/[::1]:22/a/manifests/x",
    "/v2/evil.test/a/manifests/x",
    "/v2/a/manifests/x?ns=evil.test",
    "/v2/a/manifests/x?ns=%ff%00",
    f"/v2/a/manifests/x?ns={UPSTREAM}&ns=evil.test",
    f"/v2/a/manifests/x?ns={UPSTREAM}/../evil.test",
    "/v2/_catalog?n=-1",
    "/v2/_catalog?n=%D9%A3",
    "/metrics/../v2/evil.test/a/tags/list",
    "/healthz%00",
    "/%0a",
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:120])
async def test_an_odd_path_never_leaves_the_house(
    path: str, house: House, registry: FakeRegistry
) -> None:
    stream, _ = await ask(house, written(f"GET {path} {OK}"))
    assert stream.status == 200 if path in PINGS else 400 <= stream.status < 500
    assert "X-Injected" not in stream.headers
    assert registry.connections_accepted == 0


HEADERS = [
    "Range: bytes=0-" + "9" * 1000,
    "Range: " + "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 9000, 2)),
    "Range: bytes=5-1,-,x",
    "Range: potatoes=1-2",
    "If-None-Match: " + ",".join(f'"{n}"' for n in range(5000)),
    'If-None-Match: """,W/"',
    "If-Range: x",
    "Accept: " + "a/b," * 5000 + "*/*",
    "Accept: ;;;,q=,*/*",
    "Accept-Encoding: gzip;q=x, br",
    "Content-Type: nonsense; charset=;",
    "Content-Encoding: gzip",
    'Cookie: =;==;"',
    "Authorization: Basic !!!",
    "Connection: close, keep-alive, x",
    'X-Forwarded-For: 1.2.3.4", evil',
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header[:30])
async def test_an_odd_header_costs_nobody_the_blob_or_the_manifest(
    header: str, house: House, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP, layers=[b"x" * 100_000])
    for what in ("manifests/latest", f"blobs/{image.layers[0]}", f"blobs/{image.layers[0]}"):
        stream, body = await ask(house, written(f"GET /v2/{UPSTREAM}/{APP}/{what} {OK}", header))
        assert stream.status in (200, 206)
        assert stream.ended == "complete"
        assert body


async def test_requests_sent_at_once_are_answered_in_their_order(house: House) -> None:
    async with connected(house.url) as (transport, wire):
        asked = [("/healthz", 200), ("/v2/", 200), ("/v2/evil.test/a/tags/list", 404)] * 100
        transport.write(b"".join(written(f"GET {path} {OK}") for path, _ in asked))
        assert [(await answer_of(wire))[0].status for _ in asked] == [each[1] for each in asked]


async def test_a_body_is_not_taken_for_the_next_request(house: House) -> None:
    hidden = written(f"GET /v2/ {OK}")
    async with connected(house.url) as (transport, wire):
        transport.write(written(f"PUT /v2/ {OK}", f"Content-Length: {len(hidden)}") + hidden)
        transport.write(written(f"GET /healthz {OK}"))
        assert (await answer_of(wire))[0].status == 405
        assert (await answer_of(wire))[1] == b"alive\n"


@pytest.mark.parametrize("start", [b"", b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: "])
async def test_who_does_not_finish_a_request_is_sent_away(
    start: bytes, tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.connection, "KEEPALIVE_SECONDS", 0.3)
    async with (
        mirroring(tmp_path, {UPSTREAM: registry}) as house,
        connected(house.url) as (transport, wire),
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        transport.write(start)
        while not wire.lost:
            transport.write(b"x" if start else b"")
            await asyncio.sleep(0.01)


async def test_thousands_of_idle_connections_delay_nobody(house: House) -> None:
    with descriptors_allowed(most_descriptors()):
        idle = [await connect(house.url) for _ in range(2000)]
        for transport, _ in idle[::2]:
            transport.write(b"GET /v2/ HTTP/1.1\r\nHost: ")
        for _ in range(20):
            assert (await house.get("/v2/")).status == 200
        assert not any(wire.lost for _, wire in idle)
        for transport, wire in idle:
            transport.abort()
            while await wire.more():
                pass
