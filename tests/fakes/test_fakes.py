"""The fake registry does what it says; else no test that leans on it means much."""

import asyncio
import contextlib
import json
import random
import socket
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest
import trustme

from tests.fakes.auth import BasicAuth, BearerAuth, basic
from tests.fakes.client import Ended, raw_get, raw_open, slow_get
from tests.fakes.faults import (
    Cut,
    Delay,
    Fault,
    Garbage,
    Gate,
    GenericType,
    HangUp,
    Header,
    IgnoreRange,
    NoDigestHeader,
    NoLength,
    Reset,
    Stall,
    Status,
    Trickle,
    WrongByte,
    WrongLength,
)
from tests.fakes.images import OCI_INDEX, digest_of
from tests.fakes.ratelimit import RateLimit
from tests.fakes.registry import FakeRegistry

DATA = random.Random(1).randbytes(300_000)  # the same in each worker of xdist
APP = "library/app"


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        registry.add_blob(APP, DATA)
        yield registry


def blob_url(registry: FakeRegistry) -> str:
    return f"{registry.url}/v2/{APP}/blobs/{digest_of(DATA)}"


def manifest_url(registry: FakeRegistry, reference: str = "latest") -> str:
    return f"{registry.url}/v2/{APP}/manifests/{reference}"


async def test_images_and_indexes_can_be_pulled(registry: FakeRegistry) -> None:
    amd = registry.add_image(APP, None, [b"one", b"two"])
    arm = registry.add_image(APP, None, platform="linux/arm64/v8", docker=True)
    index = registry.add_index(APP, "latest", {"linux/amd64": amd, "linux/arm64": arm})
    async with aiohttp.ClientSession() as session:
        async with session.get(manifest_url(registry)) as answer:
            assert answer.content_type == index.media_type == OCI_INDEX
            assert digest_of(await answer.read()) == index.digest
            assert answer.headers["Docker-Content-Digest"] == index.digest
        async with session.head(manifest_url(registry, arm.digest)) as answer:
            assert int(answer.headers["Content-Length"]) == len(arm.manifest)
        for digest in (amd.config, *amd.layers):
            async with session.get(f"{registry.url}/v2/{APP}/blobs/{digest}") as answer:
                assert digest_of(await answer.read()) == digest
    assert registry.connections_accepted == 1
    assert registry.count("GET", "manifest", APP, "latest", 200) == 1
    assert registry.body_bytes("manifest") == len(index.manifest)


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "body"),
    [
        ("bytes=10-19", 206, "bytes 10-19/300000", DATA[10:20]),
        ("bytes=299990-", 206, "bytes 299990-299999/300000", DATA[-10:]),
        ("bytes=-5", 206, "bytes 299995-299999/300000", DATA[-5:]),
        ("bytes=300000-", 416, "bytes */300000", b""),
        ("bytes=0-1,5-6", 200, None, DATA),
    ],
    ids=["inside", "open", "last", "outside", "several"],
)
async def test_ranges(
    registry: FakeRegistry, wanted: str, status: int, content_range: str | None, body: bytes
) -> None:
    answer = await raw_get(blob_url(registry), {"Range": wanted})
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers.get("Content-Range") == content_range


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/nobody/knows/manifests/latest", "NAME_UNKNOWN"),
        (f"/v2/{APP}/manifests/nothing", "MANIFEST_UNKNOWN"),
        (f"/v2/{APP}/blobs/sha256:00", "BLOB_UNKNOWN"),
    ],
)
async def test_what_is_unknown(registry: FakeRegistry, path: str, code: str) -> None:
    answer = await raw_get(registry.url + path)
    assert answer.status == 404
    assert json.loads(answer.body)["errors"][0]["code"] == code


async def test_tags_come_in_pages(registry: FakeRegistry) -> None:
    for tag in ("b", "a", "c"):
        registry.add_image(APP, tag)
    url = f"{registry.url}/v2/{APP}/tags/list"
    answer = await raw_get(f"{url}?n=2")
    assert json.loads(answer.body)["tags"] == ["a", "b"]
    assert answer.headers["Link"] == f'</v2/{APP}/tags/list?n=2&last=b>; rel="next"'
    answer = await raw_get(f"{url}?n=2&last=b")
    assert json.loads(answer.body)["tags"] == ["c"]
    assert "Link" not in answer.headers


async def test_referrers(registry: FakeRegistry) -> None:
    image = registry.add_image(APP)
    signature = registry.add_referrer(APP, image, "test/signature")
    registry.add_referrer(APP, image, "test/sbom", b"parts")
    url = f"{registry.url}/v2/{APP}/referrers/{image.digest}"
    assert len(json.loads((await raw_get(url)).body)["manifests"]) == 2
    answer = await raw_get(f"{url}?artifactType=test/signature")
    assert [m["digest"] for m in json.loads(answer.body)["manifests"]] == [signature.digest]
    assert answer.headers["Content-Type"] == OCI_INDEX
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    registry.referrers_api = False
    assert (await raw_get(url)).status == 404


async def test_basic_auth(registry: FakeRegistry) -> None:
    registry.auth = BasicAuth("alice", "secret")
    answer = await raw_get(blob_url(registry))
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    known = {"Authorization": basic("alice", "secret")}
    assert (await raw_get(blob_url(registry), known)).status == 200
    registry.private = {APP: {"bob"}}
    assert (await raw_get(blob_url(registry), known)).status == 403


async def token_from(registry: FakeRegistry, user: str | None) -> dict[str, str]:
    headers = {"Authorization": basic(user, "pw")} if user else None
    answer = await raw_get(f"{registry.url}/token?scope=repository:{APP}:pull", headers)
    return {"Authorization": f"Bearer {json.loads(answer.body)['token']}"}


async def test_bearer_auth(registry: FakeRegistry) -> None:
    registry.auth = BearerAuth(users={"alice": "pw"})
    registry.private = {APP: {"alice"}}
    url = blob_url(registry)
    challenge = (await raw_get(url)).headers["WWW-Authenticate"]
    assert challenge == (
        f'Bearer realm="{registry.url}/token",service="fake-registry",scope="repository:{APP}:pull"'
    )
    assert (await raw_get(url, await token_from(registry, None))).status == 401
    alice = await token_from(registry, "alice")
    assert (await raw_get(url, alice)).status == 200
    registry.revoke_tokens()
    assert (await raw_get(url, alice)).status == 401
    assert registry.count(kind="token") == 2


async def test_wrong_password_and_own_challenge(registry: FakeRegistry) -> None:
    registry.auth = BearerAuth(users={}, anonymous=False, challenge=['x realm="{realm}"', "y"])
    wrong = {"Authorization": basic("alice", "guess")}
    assert (await raw_get(f"{registry.url}/token", wrong)).status == 401
    assert (await raw_get(f"{registry.url}/token")).status == 401
    lines = (await raw_get(f"{registry.url}/v2/")).headers.getall("WWW-Authenticate")
    assert lines == [f'x realm="{registry.url}/token"', "y"]


async def test_redirect_to_a_cdn(registry: FakeRegistry) -> None:
    async with FakeRegistry() as cdn, aiohttp.ClientSession() as session:
        registry.serve_blobs_from(cdn)
        headers = {"Authorization": "Bearer x"}
        async with session.get(blob_url(registry), headers=headers) as answer:
            assert await answer.read() == DATA
        assert registry.requests[0].status == 307
        assert cdn.count(kind="blob", reference=digest_of(DATA)) == 1
        assert cdn.requests[0].authorization is None
        assert cdn.body_bytes("blob") == len(DATA)
        location = (await raw_get(blob_url(registry))).headers["Location"]
        assert (await raw_get(location, headers)).status == 400


@pytest.mark.parametrize(
    ("faults", "status", "length", "ended"),
    [
        ([Cut(1000)], 200, 1000, "short"),
        ([Cut(-1)], 0, 0, "short"),
        ([Reset(1000)], 200, 1000, "reset"),
        ([Reset(-1)], 0, 0, "reset"),
        ([HangUp()], 0, 0, "short"),
        ([Stall(1000)], 200, 1000, "stalled"),
        ([Stall(-1)], 0, 0, "stalled"),
        ([NoLength()], 200, 300_000, "complete"),
        ([NoLength(chunked=False)], 200, 300_000, "complete"),
        ([NoLength(), Cut(1000)], 200, 1000, "short"),
        ([WrongLength(7)], 200, 300_000, "short"),
        ([WrongLength(-7)], 200, 299_993, "complete"),
        ([Delay(0.01), Status(503, {"Retry-After": "3"}, b"busy")], 503, 4, "complete"),
    ],
    ids=repr,
)
async def test_faults_on_the_wire(
    registry: FakeRegistry, faults: list[Fault], status: int, length: int, ended: Ended
) -> None:
    registry.fail(*faults, kind="blob")
    answer = await raw_get(blob_url(registry), seconds=0.3)
    assert (answer.status, len(answer.body), answer.ended) == (status, length, ended)
    registry.heal()
    answer = await raw_get(blob_url(registry))
    assert (answer.body, answer.ended) == (DATA, "complete")


async def test_a_client_may_leave_before_it_is_reset(registry: FakeRegistry) -> None:
    registry.fail(Reset(len(DATA) - 1), kind="blob")
    async with raw_open(blob_url(registry), receive_buffer_bytes=16 * 1024) as stream:
        await registry.until(lambda: registry.requests[-1].bytes_sent == len(DATA) - 1)
        stream.hang_up(reset=True)
    await registry.until(lambda: registry.requests[-1].finished)
    assert registry.requests[-1].hung_up


async def test_faults_in_the_content(registry: FakeRegistry) -> None:
    registry.add_image(APP)
    registry.fail(WrongByte(5), IgnoreRange(), kind="blob", times=1)
    answer = await raw_get(blob_url(registry), {"Range": "bytes=9-"})
    assert (answer.status, len(answer.body)) == (200, len(DATA))
    assert [i for i, byte in enumerate(answer.body) if byte != DATA[i]] == [5]
    registry.fail(NoDigestHeader(), GenericType(), Header("ETag", None), kind="manifest", times=1)
    answer = await raw_get(manifest_url(registry))
    assert set(answer.headers) == {"Content-Type", "Content-Length"}
    assert answer.headers["Content-Type"] == "application/octet-stream"
    registry.fail(Garbage(), skip=1)
    assert b"html" not in (await raw_get(manifest_url(registry))).body
    assert b"html" in (await raw_get(manifest_url(registry))).body


async def test_challenges_come_before_faults(registry: FakeRegistry) -> None:
    registry.auth = BasicAuth("alice", "secret")
    rule = registry.fail(Status(500), kind="blob", times=1)
    assert (await raw_get(blob_url(registry))).status == 401
    known = {"Authorization": basic("alice", "secret")}
    statuses = [(await raw_get(blob_url(registry), known)).status for _ in range(2)]
    assert (statuses, rule.used) == ([500, 200], 1)


async def test_stalled_answers_go_on_when_released(registry: FakeRegistry) -> None:
    registry.fail(Stall(1000), times=1)
    async with raw_open(blob_url(registry)) as stream:
        await registry.until(lambda: registry.requests[0].held)
        assert registry.in_flight("blob") == 1
        registry.release()
        got = len(await stream.read())
        while data := await stream.read():
            got += len(data)
        assert (got, stream.ended) == (len(DATA), "complete")
    await registry.until(lambda: registry.requests[0].finished)
    assert not registry.requests[0].hung_up


async def test_a_gate_opens_for_all(registry: FakeRegistry) -> None:
    gate = Gate(0)
    registry.fail(gate, kind="blob")
    async with asyncio.TaskGroup() as group:
        answers = [group.create_task(raw_get(blob_url(registry))) for _ in range(3)]
        await gate.reached.wait()
        await registry.until_count(3, kind="blob")
        gate.open()
    assert {answer.result().ended for answer in answers} == {"complete"}
    assert registry.most_at_once == 3


async def test_a_client_that_hangs_up_is_noticed(registry: FakeRegistry) -> None:
    registry.fail(Trickle(20_000, chunk_bytes=1000))
    async with raw_open(blob_url(registry)) as stream:
        await stream.read(1000)
        stream.hang_up()
    await registry.until(lambda: registry.requests[0].finished)
    assert registry.requests[0].hung_up
    assert 1000 <= registry.body_bytes() < len(DATA)


async def test_a_slow_client_slows_the_server(registry: FakeRegistry) -> None:
    big = bytes(20_000_000)
    digest = registry.add_blob(APP, big)
    url = f"{registry.url}/v2/{APP}/blobs/{digest}"
    answer = await slow_get(url, 2_000_000, read_until=200_000)
    assert (len(answer.body), answer.ended) == (200_000, "open")
    await registry.until(lambda: registry.requests[0].finished)
    assert registry.body_bytes() < len(big)


async def test_rate_limit(registry: FakeRegistry) -> None:
    registry.add_image(APP)
    registry.ratelimit = RateLimit(limit=100, remaining=1, retry_after="60")
    url = manifest_url(registry)
    assert (await raw_get(url, method="HEAD")).headers["ratelimit-remaining"] == "1;w=21600"
    assert (await raw_get(url)).headers["ratelimit-remaining"] == "0;w=21600"
    answer = await raw_get(url)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
    assert (await raw_get(url, method="HEAD")).status == 200


async def test_down_and_up_again_on_the_same_port(registry: FakeRegistry) -> None:
    url = blob_url(registry)
    registry.fail(Stall(1000))
    async with raw_open(url) as stream:
        await registry.until(lambda: registry.requests[0].held)
        await registry.stop()
        while await stream.read():
            pass
        assert stream.ended in ("short", "reset")
    with pytest.raises(ConnectionRefusedError):
        await raw_get(url)
    registry.heal()
    await registry.start()
    assert (await raw_get(url)).body == DATA


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's, and one for clients that trust it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_it_can_be_stopped_while_a_connection_is_being_closed() -> None:
    """pytest leaves out what else it has to tear down when a fixture ends cancelled."""
    server, client = tls_contexts()
    async with FakeRegistry(tls=server) as registry:
        path = f"/v2/{APP}/blobs/{registry.add_blob(APP, b'some')}"
        plain = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", registry.port))
        talking = await asyncio.to_thread(client.wrap_socket, plain, server_hostname="127.0.0.1")
        with contextlib.closing(talking):
            request = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            await asyncio.to_thread(talking.sendall, request.encode())
            answer = b""
            while not answer.endswith(b"some"):
                answer += await asyncio.to_thread(talking.recv, 1000)
            await asyncio.sleep(0.05)  # the other side says that it closes, and waits for ours
            await registry.stop()


async def test_tls() -> None:
    server, client = tls_contexts()
    async with FakeRegistry(tls=server) as registry:
        registry.add_blob(APP, DATA)
        assert (await raw_get(blob_url(registry), tls=client)).body == DATA
        registry.fail(Cut(1000), times=1)
        assert (await raw_get(blob_url(registry), tls=client)).ended == "short"
        registry.fail(Reset(1000), times=1)
        assert (await raw_get(blob_url(registry), tls=client)).ended in ("reset", "short")
        registry.fail(Stall(1000))
        async with raw_open(blob_url(registry), tls=client):
            await registry.until(lambda: registry.requests[-1].held)
