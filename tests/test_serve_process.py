"""`mirror serve` as a process: how it starts, and how it ends."""

import asyncio
import resource
import signal
import sys
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from mirror.commands.serving import WANTED_DESCRIPTORS
from tests.fakes.client import raw_open
from tests.fakes.faults import Gate, Stall
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire
from tests.support.layers import UPSTREAM, add_layer, some_bytes
from tests.support.limits import descriptors_allowed, most_descriptors
from tests.support.process import serving

DATA = some_bytes(300_000)


async def test_it_starts_without_touching_an_upstream_though_some_are_down(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    async with FakeRegistry() as down:
        await down.stop()
        upstreams: dict[str, FakeRegistry | str] = {
            UPSTREAM: registry,
            "down.test": down,
            "unknown.test": "https://registry.invalid",
        }
        async with serving(tmp_path, upstreams) as mirror:
            assert (await mirror.get("/readyz")).status == 200
            assert (await mirror.get("/v2/")).status == 200
    assert registry.connections_accepted == 0


async def test_it_takes_as_many_descriptors_as_it_may_have(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    hard = most_descriptors()
    with descriptors_allowed(256):
        async with serving(tmp_path, {UPSTREAM: registry}) as mirror:
            allowed = resource.prlimit(mirror.process.pid, resource.RLIMIT_NOFILE)
    assert allowed == (min(hard, WANTED_DESCRIPTORS), hard)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
async def test_a_signal_lets_a_running_transfer_end_and_tells_others_that_it_ends(
    number: signal.Signals, tmp_path: Path, registry: FakeRegistry
) -> None:
    gate = Gate(100_000)
    registry.fail(gate, kind="blob", method="GET")
    path = add_layer(registry, DATA)
    async with serving(tmp_path, {UPSTREAM: registry}) as mirror:
        async with raw_open(mirror.url + path) as stream:
            body = await stream.read(1000)
            await gate.reached.wait()
            mirror.send(number)
            await mirror.until_draining()
            refused = await mirror.get("/v2/")
            assert (refused.status, refused.headers["Connection"]) == (503, "close")
            assert b'"UNAVAILABLE"' in refused.body
            assert (await mirror.get("/healthz")).status == 200
            gate.open()
            while piece := await stream.read():
                body += piece
        assert (body, stream.ended) == (DATA, "complete")
        assert await mirror.exit_code() == 0
        events = [line["event"] for line in await mirror.last_lines()]
    assert events.count("stopping") == 1


async def test_a_download_that_nobody_follows_goes_on_after_the_next_start(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    registry.fail(Stall(200_000), kind="blob", method="GET")
    path = add_layer(registry, DATA)
    async with serving(tmp_path, {UPSTREAM: registry}, shutdown_grace="1h") as mirror:
        async with raw_open(mirror.url + path) as stream:
            got = 0
            while got < 150_000:
                got += len(await stream.read())
        mirror.send(SIGTERM)
        assert await mirror.exit_code() == 0
        (staged,) = (mirror.storage / "staging").rglob("data")
        assert staged.stat().st_size >= 150_000
    registry.heal()
    registry.forget()
    async with serving(tmp_path, {UPSTREAM: registry}) as mirror:
        assert (await mirror.get(path)).body == DATA
    (again,) = [seen for seen in registry.requests if seen.kind == "blob"]
    assert int(again.headers["Range"].removeprefix("bytes=").rstrip("-")) >= 149_999


async def test_a_stalled_transfer_holds_the_end_up_for_one_grace_only(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    registry.fail(Stall(100_000), kind="blob", method="GET")
    path = add_layer(registry, DATA)
    async with serving(tmp_path, {UPSTREAM: registry}, shutdown_grace="15s") as mirror:
        async with raw_open(mirror.url + path) as stream:
            await stream.read(1000)
            mirror.send(SIGTERM)
            assert await mirror.exit_code(seconds=28) == 0
            while await stream.read():
                pass
            assert stream.ended in ("short", "reset")
        assert not any("exception" in line for line in await mirror.last_lines())
    assert not list((mirror.storage / "blobs").glob("*/*/*"))


# Asks a name server that never answers.
FORSAKEN = """
import socket, time
known = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    return time.sleep(600) if str(host).endswith(".test") else known(host, *rest, **named)
socket.getaddrinfo = getaddrinfo
from mirror.cli import app
app()
"""


async def test_a_silent_name_server_does_not_hold_the_end_up(tmp_path: Path) -> None:
    upstream = {"endpoints": ["http://registry.test"], "connect_timeout": "200ms"}
    program = [sys.executable, "-c", FORSAKEN, "serve"]
    async with serving(tmp_path, {UPSTREAM: upstream}, program=program) as mirror:
        assert (await mirror.get(f"/v2/{UPSTREAM}/app/manifests/latest")).status == 504
        mirror.send(SIGTERM)
        assert await mirror.exit_code() == 0


@pytest.mark.parametrize("second", [SIGTERM, SIGINT])
async def test_a_second_signal_ends_it_at_once_and_silently(
    second: signal.Signals, tmp_path: Path, registry: FakeRegistry
) -> None:
    registry.fail(Stall(100_000), kind="blob", method="GET")
    path = add_layer(registry, DATA)
    async with serving(tmp_path, {UPSTREAM: registry}, shutdown_grace="1h") as mirror:
        async with raw_open(mirror.url + path) as stream:
            await stream.read(1000)
            mirror.send(SIGTERM)
            await mirror.until_draining()
            mirror.send(second)
            assert await mirror.exit_code() == -second
        assert not any("exception" in line for line in await mirror.last_lines())


async def test_idle_connections_do_not_hold_the_end_up(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    loop = asyncio.get_running_loop()
    async with serving(tmp_path, {UPSTREAM: registry}, shutdown_grace="1h") as mirror:
        port = int(mirror.url.rpartition(":")[2])
        wires = []
        for sent in (b"", b"GET /v2/", b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"):
            transport, wire = await loop.create_connection(Wire, "127.0.0.1", port)
            transport.write(sent)
            wires.append(wire)
        assert await wires[-1].until(b"\r\n\r\n")
        mirror.send(SIGTERM)
        assert await mirror.exit_code() == 0
        for wire in wires:
            while await wire.more():
                pass
