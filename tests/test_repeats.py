"""Requests that come again byte for byte are answered again without being read."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

import mirror.web.connection
import mirror.web.repeats
from mirror.web.registry import Registry
from tests.fakes.client import RawStream
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import Gate
from tests.fakes.images import OCI_INDEX, Image
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire
from tests.support import commands
from tests.support.connections import answer_of, connected
from tests.support.house import House, mirroring
from tests.support.layers import APP, UPSTREAM, add_layer, some_bytes, until_idle

TAG = f"/v2/{UPSTREAM}/{APP}/manifests/latest"
Connection = tuple[asyncio.Transport, Wire]


class Read:
    """The requests that went the whole way."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    read, handle = Read(), Registry.handle

    async def counting(registry: Registry, request: web.BaseRequest) -> web.StreamResponse:
        read.count += 1
        return await handle(registry, request)

    monkeypatch.setattr(Registry, "handle", counting)
    return read


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return registry.add_image(APP)


@pytest.fixture
async def house(registry: FakeRegistry, image: Image, tmp_path: Path) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house


def request_for(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: mirror", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def ask(connection: Connection, request: bytes) -> tuple[RawStream, bytes]:
    transport, wire = connection
    transport.write(request)
    if not request.startswith(b"HEAD"):
        return await answer_of(wire)
    stream = RawStream(wire, "HEAD")
    async with asyncio.timeout(DEADLINE_SECONDS):
        await stream.begin()
    return stream, b""


async def ask_often(house: House, request: bytes, times: int = 3) -> list[tuple[RawStream, bytes]]:
    async with connected(house.url) as connection:
        return [await ask(connection, request) for _ in range(times)]


def told(answer: tuple[RawStream, bytes]) -> tuple[int, dict[str, str], bytes]:
    """All but the date."""
    stream, body = answer
    headers = {name: value for name, value in stream.headers.items() if name.lower() != "date"}
    assert "date" in {name.lower() for name in stream.headers}
    return stream.status, headers, body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("what", ["ping", "tag", "digest", "blob"])
async def test_the_same_answer_is_given_again(
    image: Image, house: House, read: Read, what: str, method: str
) -> None:
    path = {
        "ping": "/v2/",
        "tag": TAG,
        "digest": TAG.replace("latest", image.digest),
        "blob": f"/v2/{UPSTREAM}/{APP}/blobs/{image.config}",
    }[what]
    for _ in range(2):
        assert (await house.get(path)).status == 200
        await until_idle(house)
    read.count = 0
    first, *others = await ask_often(house, request_for(path, method=method))
    assert read.count == 1
    assert [told(each) for each in others] == [told(first)] * 2
    assert first[0].status == 200


async def test_another_connection_is_given_it_too(house: House, read: Read) -> None:
    await ask_often(house, request_for(TAG), times=2)
    before = read.count
    (answer,) = await ask_often(house, request_for(TAG), times=1)
    assert (answer[0].status, read.count) == (200, before)


async def test_each_is_counted_and_logged(house: House, read: Read) -> None:
    await house.get(TAG)
    read.count = 0
    kept = await house.metric("mirror_requests_total", kind="manifest", cache="hit")
    saved = await house.metric("mirror_pulls_saved_total", upstream=UPSTREAM)
    sent = await house.metric("mirror_client_bytes_total", kind="manifest")
    with capture_logs() as lines:
        answers = await ask_often(house, request_for(TAG), times=5)
    assert read.count == 1
    assert len({str({**line, "seconds": 0}) for line in lines}) == 1
    assert len(lines) == 5
    assert await house.metric("mirror_requests_total", kind="manifest", cache="hit") == kept + 5
    assert await house.metric("mirror_pulls_saved_total", upstream=UPSTREAM) == saved + 5
    more = await house.metric("mirror_client_bytes_total", kind="manifest") - sent
    assert more == 5 * len(answers[0][1])


async def test_a_tag_that_is_due_is_looked_at(
    registry: FakeRegistry, tmp_path: Path, read: Read
) -> None:
    registry.add_image(APP)
    described = {"endpoints": [registry.url], "tag_ttl": "300ms"}
    async with (
        mirroring(tmp_path, {UPSTREAM: described}) as house,
        connected(house.url) as connection,
    ):
        old = await ask(connection, request_for(TAG))
        moved = registry.add_image(APP, layers=[b"moved"])
        await asyncio.sleep(0.35)
        new = await ask(connection, request_for(TAG))
        assert new[1] == moved.manifest != old[1]


async def test_it_goes_its_whole_way_again_after_a_while(
    house: House, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.repeats, "REPEAT_SECONDS", 0)
    await ask_often(house, request_for(TAG))
    assert read.count == 3


@pytest.mark.parametrize(
    "request_",
    [
        request_for(TAG, "Authorization: Basic c2VjcmV0"),
        request_for(TAG + "-no"),
        request_for("/v2/evil.test/app/manifests/latest"),
        request_for(TAG, "Content-Length: 0", "X-Odd: " + "x" * 5000),
        request_for(f"/v2/{UPSTREAM}/{APP}/tags/list"),
    ],
    ids=["with a secret", "404", "no upstream", "long", "a listing"],
)
async def test_what_is_not_given_again(house: House, read: Read, request_: bytes) -> None:
    answers = await ask_often(house, request_)
    assert read.count == 3
    assert len({stream.status for stream, _ in answers}) == 1


async def test_what_is_large_is_written_as_the_client_takes_it(
    registry: FakeRegistry, house: House, read: Read
) -> None:
    large = json.dumps({"manifests": [], "x": "x" * 300_000}).encode()
    registry.add_manifest(APP, large, OCI_INDEX, "large")
    answers = await ask_often(house, request_for(TAG.replace("latest", "large")))
    assert {body for _, body in answers} == {large}
    assert read.count == 3


@pytest.mark.parametrize(("header", "version"), [("Connection: close", "1.1"), ("X: y", "1.0")])
async def test_a_connection_that_is_to_end_ends(
    house: House, read: Read, header: str, version: str
) -> None:
    for _ in range(3):
        async with connected(house.url) as (transport, wire), asyncio.timeout(DEADLINE_SECONDS):
            transport.write(request_for(TAG, header, version=version))
            assert (await answer_of(wire))[0].status == 200
            while await wire.more():
                pass
    assert read.count == 3


@pytest.mark.parametrize("framing", ["Content-Length: {}", "Transfer-Encoding: chunked"])
async def test_a_body_is_never_taken_for_a_request(house: House, read: Read, framing: str) -> None:
    """Whatever its bytes are: a proxy in front may send several clients' requests through one
    connection.
    """
    hidden = request_for(TAG)
    await ask_often(house, hidden)
    body = hidden if "Length" in framing else b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    head = request_for("/v2/", framing.format(len(hidden)))
    async with connected(house.url) as (transport, wire), asyncio.timeout(DEADLINE_SECONDS):
        transport.write(head)
        assert (await answer_of(wire))[0].status == 200
        await asyncio.sleep(0.1)
        for piece in (hidden, body[len(hidden) :]) if "Length" in framing else (body[:5], body[5:]):
            transport.write(piece)
            await asyncio.sleep(0.1)
        transport.write(request_for("/healthz"))
        assert (await answer_of(wire))[1] == b"alive\n"


async def test_requests_that_come_together_have_all_their_answers(house: House, read: Read) -> None:
    await ask_often(house, request_for(TAG))
    async with connected(house.url) as (transport, wire):
        transport.write(request_for(TAG) * 3 + request_for("/healthz"))
        bodies = [(await answer_of(wire))[1] for _ in range(4)]
        assert bodies[0] == bodies[1] == bodies[2]
        assert bodies[3] == b"alive\n"


async def test_a_request_that_comes_early_is_read_and_the_next_one_is_not(
    registry: FakeRegistry, house: House, read: Read
) -> None:
    """Clients ask again once they have the last byte, before we are done with their answer."""
    await ask_often(house, request_for(TAG))
    gate = Gate(1000)
    slow = add_layer(registry, some_bytes(5000))
    registry.fail(gate, kind="blob")
    async with connected(house.url) as (transport, wire), asyncio.timeout(30):
        transport.write(request_for(slow))
        await gate.reached.wait()
        transport.write(request_for(TAG))
        await asyncio.sleep(0.05)
        gate.open()
        assert len((await answer_of(wire))[1]) == 5000
        early = await answer_of(wire)
        before = read.count
        assert told(await ask((transport, wire), request_for(TAG))) == told(early)
        assert read.count == before


async def test_a_request_in_pieces_is_read(house: House, read: Read) -> None:
    await ask_often(house, request_for(TAG))
    request = request_for(TAG)
    async with connected(house.url) as (transport, wire):
        for piece in (request[:20], request[20:], request):
            transport.write(piece)
            await asyncio.sleep(0.05)
        assert (await answer_of(wire))[1] == (await answer_of(wire))[1]


async def test_a_connection_in_use_is_kept(
    house: House, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror.web.connection, "KEEPALIVE_SECONDS", 0.6)
    async with connected(house.url) as connection, asyncio.timeout(DEADLINE_SECONDS):
        for _ in range(8):
            assert (await ask(connection, request_for(TAG)))[0].status == 200
            await asyncio.sleep(0.2)
        assert read.count == 2, "the first, and the first that asked nobody"
        while await connection[1].more():
            pass


async def test_what_was_asked_before_an_image_went_is_not_given_after_it(
    image: Image, house: House, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, answered, go_on = Registry.handle, asyncio.Event(), asyncio.Event()

    async def slowly(registry: Registry, request: web.BaseRequest) -> web.StreamResponse:
        response = await handle(registry, request)
        answered.set()
        await go_on.wait()
        return response

    assert (await house.get(TAG)).status == 200
    await until_idle(house)
    monkeypatch.setattr(Registry, "handle", slowly)
    async with connected(house.url) as connection, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(ask(connection, request_for(TAG)))
        await answered.wait()
        await commands.told(house.storage, "rm", image=f"{UPSTREAM}/{APP}:latest")
        go_on.set()
        assert (await asked)[0].status == 200
        read.count = 0
        await ask(connection, request_for(TAG))
    assert read.count == 1


async def test_a_mirror_that_shuts_down_says_so(
    registry: FakeRegistry, image: Image, tmp_path: Path
) -> None:
    gate = Gate(1000)
    slow = add_layer(registry, some_bytes(5000))
    registry.fail(gate, kind="blob")
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(mirroring(tmp_path, {UPSTREAM: registry}))
        async with connected(house.url) as connection, asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(2):
                assert (await ask(connection, request_for(TAG)))[0].status == 200
            async with asyncio.TaskGroup() as group:
                pulling = group.create_task(house.get(slow))
                await gate.reached.wait()
                group.create_task(stack.aclose())
                await asyncio.sleep(0.05)
                assert (await ask(connection, request_for(TAG)))[0].status == 503
                gate.open()
            assert pulling.result().status == 200
