"""One structured line a request on stderr, whatever was asked and whoever reads it."""

import asyncio
import fcntl
import json
import logging
import os
import re
import signal
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
import structlog

import mirror.logs
from mirror.logs import logging_to_stderr
from mirror.metrics import Metrics
from mirror.web.registry import Registry
from mirror.web.server import Server
from tests.fakes.client import raw_get, raw_open
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import Stall
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire
from tests.support.house import House, mirroring
from tests.support.layers import APP, UPSTREAM, add_layer, path_of, some_bytes, until_idle
from tests.support.process import serving

Format = Literal["json", "text"]
DATA = some_bytes(200_000)
_PAIR = r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "]*)'
_log = structlog.get_logger()


def logfmt(line: str) -> dict[str, str]:
    """The fields of a line as text; fails on anything that is not `key=value`, once each."""
    assert line.isprintable()
    assert re.fullmatch(f"{_PAIR}(?: {_PAIR})*", line), line
    pairs = [(key, value.strip('"')) for key, value in re.findall(_PAIR, line)]
    assert len(dict(pairs)) == len(pairs), line
    return dict(pairs)


PARSE: dict[Format, Callable[[str], dict[str, Any]]] = {"json": json.loads, "text": logfmt}


class Log:
    """What came to stderr while it was watched, as fields."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == "request"]


Watch = Callable[..., AbstractAsyncContextManager[Log]]


@pytest.fixture
def watch(capfd: pytest.CaptureFixture[str]) -> Watch:
    @asynccontextmanager
    async def watching(log_format: Format = "json", level: str = "info") -> AsyncIterator[Log]:
        log, logging_on = Log(), logging_to_stderr(log_format, level)
        await asyncio.to_thread(logging_on.__enter__)
        try:
            yield log
        finally:  # it waits for its thread, as it may around a loop
            await asyncio.to_thread(logging_on.__exit__, None, None, None)
        log.lines += [PARSE[log_format](line) for line in capfd.readouterr().err.splitlines()]

    return watching


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_a_request_is_one_line_that_says_what_was_answered(
    log_format: Format, watch: Watch, tmp_path: Path, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP, layers=[DATA])
    async with watch(log_format) as log, mirroring(tmp_path, {UPSTREAM: registry}) as house:
        await house.get(f"/v2/{APP}/manifests/latest?ns={UPSTREAM}")
        await house.get(path_of(image.layers[0]))
        await until_idle(house)
        await house.head(path_of(image.layers[0]))
        await house.get("/v2/")
        await house.get("/v2/elsewhere.test/a/tags/list")
    told = [tuple(str(line[name]) for name in LINE) for line in log.requests]
    size, digest = str(len(image.manifest)), image.layers[0]
    assert told == [
        ("GET", "manifest", UPSTREAM, APP, "latest", "200", size, "miss"),
        ("GET", "blob", UPSTREAM, APP, digest, "200", str(len(DATA)), "miss"),
        ("HEAD", "blob", UPSTREAM, APP, digest, "200", "0", "hit"),
        ("GET", "ping", "-", "", "", "200", "3", "none"),
        ("GET", "other", "-", "", "", "404", str(log.requests[-1]["bytes"]), "none"),
    ]
    for line in log.requests:
        assert line["client"] == "127.0.0.1"
        assert line["level"] == "info"
        assert 0 <= float(line["seconds"]) < 60
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line["timestamp"])
        assert ("error" in line) == (int(line["status"]) >= 400)
    assert "elsewhere.test" in log.requests[-1]["error"]


LINE = ("method", "kind", "upstream", "repository", "reference", "status", "bytes", "cache")

TRICKS = [
    "/v2/a%0A%7B%22event%22:%22request%22%7D/manifests/x",
    "/v2/a%0D%0Aevent=forged/tags/list",
    "/v2/%1b[2J%1b]0;title%07/manifests/x",
    "/v2/a%22 status=200 b=%22/manifests/x".replace(" ", "%20"),
    "/v2/a%5C%22%20x=%5C/manifests/x",
    "/v2/%00%ff%fe%e2%80%a8%c2%85/manifests/x",
    "/v2/a/manifests/x?ns=%0Aevent%3Dforged%22",
    "/v2/a/manifests/%E2%80%AE%0Bx%0C",
    "/%0a%0a",
]


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_nothing_that_is_asked_leaves_its_line_or_its_field(
    log_format: Format, watch: Watch, tmp_path: Path, registry: FakeRegistry
) -> None:
    async with (
        watch(log_format) as log,
        mirroring(tmp_path, {UPSTREAM: registry}) as house,
    ):
        for path in TRICKS:
            assert 400 <= (await house.get(path)).status < 500
    assert len(log.lines) == len(log.requests) == len(TRICKS)
    for line in log.requests:
        assert {*line} == {*LINE, "event", "level", "timestamp", "seconds", "client", "error"}
        assert int(line["status"]) in (400, 404)


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_a_field_may_hold_anything(log_format: Format, watch: Watch) -> None:
    wild = '\n\r\t\0\x1b[2J\x85\x9b\u2028\u202e\ud800\\" x=\\'
    tame = wild.replace("\ud800", "")
    async with watch(log_format) as log:
        _log.info("one", field=wild, other={"not": object()})
        # pytest keeps this line, and cannot keep half a surrogate pair.
        logging.getLogger("some.library").info("two %s", tame)
    assert [line["event"][:3] for line in log.lines] == ["one", "two"]
    if log_format == "json":
        assert (log.lines[0]["field"], log.lines[1]["event"]) == (wild, f"two {tame}")


async def test_a_client_that_hangs_up_has_a_status(
    watch: Watch, tmp_path: Path, registry: FakeRegistry
) -> None:
    registry.fail(Stall(-1), kind="manifest")
    registry.fail(Stall(100_000), kind="blob")
    path = add_layer(registry, DATA)
    async with (
        watch() as log,
        mirroring(tmp_path, {UPSTREAM: registry}, shutdown_grace="0s") as house,
    ):
        early = await raw_get(f"{house.url}/v2/{UPSTREAM}/{APP}/manifests/x", seconds=0.3)
        assert early.ended == "stalled"
        async with raw_open(house.url + path) as stream:
            await stream.read(1000)
        await until_requests(house, 2)
    first, second = log.requests
    assert (first["status"], first["bytes"]) == (499, 0)
    assert (second["status"], second["cut_short"]) == (200, True)
    assert not any("exception" in line for line in log.lines)


async def until_requests(house: House, number: int) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await house.metric("mirror_requests_total") < number:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)


NOISE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"hello\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    b"PUT /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    b"\0" * 1000,
]


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_what_is_not_http_is_a_line_without_a_trace(
    log_format: Format, watch: Watch, tmp_path: Path, registry: FakeRegistry
) -> None:
    loop = asyncio.get_running_loop()
    async with watch(log_format) as log, mirroring(tmp_path, {UPSTREAM: registry}) as house:
        port = int(house.url.rpartition(":")[2])
        for sent in NOISE:
            transport, wire = await loop.create_connection(Wire, "127.0.0.1", port)
            transport.write(sent)
            while await wire.more():
                pass
    assert len(log.lines) == len(log.requests) == len(NOISE)
    assert not any("exception" in line for line in log.lines)
    assert {int(line["status"]) for line in log.requests} <= {400, 405}


async def test_a_failure_of_our_own_is_told_with_its_trace_in_one_line(
    watch: Watch, tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a mistake\nof ours")

    monkeypatch.setattr(Registry, "handle", fail)
    async with watch("text") as log, mirroring(tmp_path, {UPSTREAM: registry}) as house:
        answer = await house.get("/v2/%0A%1B[2J")
    assert answer.status == 500
    assert json.loads(answer.body)["errors"][0]["code"] == "UNKNOWN"
    assert b"mistake" not in answer.body
    failed, request = log.lines
    assert (failed["level"], failed["path"]) == ("error", r"/v2/\n\x1b[2J")
    assert "ZeroDivisionError: a mistake" in failed["exception"]
    assert (request["status"], request["error"]) == ("500", "internal error")


async def test_a_probe_that_fails_is_answered_and_logged_alike(
    watch: Watch, tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(Metrics, "render", fail)
    async with watch(level="debug") as log, mirroring(tmp_path, {UPSTREAM: registry}) as house:
        answer = await house.get("/metrics")
    assert answer.status == 500
    assert json.loads(answer.body)["errors"][0]["code"] == "UNKNOWN"
    assert b"mistake" not in answer.body
    failed, probe = (line for line in log.lines if line.get("path") == "/metrics")
    assert (failed["level"], failed["event"]) == ("error", "request failed")
    assert (probe["level"], probe["event"], probe["status"]) == ("debug", "probe", 500)


async def test_even_a_failure_of_the_wrapper_is_a_500(
    watch: Watch, tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(Server, "_accompany", fail)
    async with watch() as log, mirroring(tmp_path, {UPSTREAM: registry}) as house:
        answer = await house.get("/v2/")
    assert answer.status == 500
    assert json.loads(answer.body)["errors"][0]["code"] == "UNKNOWN"
    failed, request = log.lines
    assert "ZeroDivisionError" in failed["exception"]
    assert request["status"] == 500


async def test_a_client_that_is_gone_before_its_answer_is_no_failure_of_ours(
    watch: Watch, tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_gone(*_: object) -> None:
        raise ConnectionResetError("cannot write to a closing transport")

    monkeypatch.setattr(Registry, "handle", be_gone)
    async with watch() as log, mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert (await house.get("/v2/")).ended == "short"
    (line,) = log.lines
    assert (line["event"], line["status"]) == ("request", 499)


@pytest.mark.parametrize(
    ("level", "told"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)]
)
async def test_the_level_is_respected(level: str, told: int, watch: Watch) -> None:
    async with watch(level=level) as log:
        _log.debug("one")
        _log.info("two")
        _log.warning("three")
        logging.getLogger("some.library").error("four %s", "five")
    assert [line["event"] for line in log.lines] == ["one", "two", "three", "four five"][-told:]


@pytest.mark.parametrize("level", ["debug", "info"])
async def test_probes_are_logged_at_debug_level(
    level: str, watch: Watch, tmp_path: Path, registry: FakeRegistry
) -> None:
    paths = ["/healthz", "/readyz", "/metrics"]
    async with watch(level=level) as log, mirroring(tmp_path, {UPSTREAM: registry}) as house:
        for path in paths:
            assert (await house.get(path)).status == 200
    probes = [(line["path"], line["status"]) for line in log.lines if line["event"] == "probe"]
    assert probes == ([(path, 200) for path in paths] if level == "debug" else [])
    assert log.requests == []


async def test_what_libraries_warn_of_is_a_line_too(watch: Watch) -> None:
    async with watch() as log:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("this is old", stacklevel=1)
    (line,) = log.lines
    assert (line["level"], "this is old" in line["event"]) == ("warning", True)


def test_lines_that_nobody_reads_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    monkeypatch.setattr(mirror.logs, "_STDERR", writing)
    monkeypatch.setattr(mirror.logs, "MAX_WAITING_LINES", 10)
    seen: list[int] = []
    dropped = 0
    with logging_to_stderr("json", "info"), open(reading) as lines:
        for n in range(1000):
            _log.info("line", n=n)
        while len(seen) + dropped < 1000:
            line = json.loads(lines.readline())
            if line["event"] == "line":
                seen.append(line["n"])
            else:
                dropped += int(line["event"].removesuffix(" log lines were dropped"))
                assert line["level"] == "warning"
    os.close(writing)
    assert dropped > 500
    assert len(seen) + dropped == 1000
    assert seen == sorted(seen)


async def test_a_reader_that_stalls_delays_neither_an_answer_nor_the_end(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    path = f"/v2/nowhere.test/{'x' * 90}/manifests/latest"
    async with serving(tmp_path, {UPSTREAM: registry}) as mirror:
        async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(600):  # lines that are several times what fits into the pipe
                async with session.get(mirror.url + path) as answer:
                    assert answer.status == 404
        mirror.send(signal.SIGTERM)
        assert await mirror.exit_code() == 0
