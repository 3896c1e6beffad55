"""Every fault of an upstream against everything that can be asked: what the client gets, what it
costs the upstream, and how long it takes.

A first mirror prepares: one tag is remembered, one blob has half arrived, one image is cached. Then
the fault begins, and a second mirror, opened on what the first one left, is asked.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.downloads import tries
from tests.fakes.auth import BearerAuth
from tests.fakes.client import RawResponse
from tests.fakes.faults import (
    Cut,
    Fault,
    Garbage,
    HangUp,
    IgnoreRange,
    NoLength,
    Reset,
    Stall,
    Status,
    WrongByte,
    WrongLength,
)
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, some_bytes, until_idle
from tests.support.replies import is_stale
from tests.support.stopwatch import Stopwatch

# The mirror aims at far less.
ANSWER_SECONDS = 15
STAND_IN_SECONDS = 6

SIZE = 600_000
HALF = SIZE // 2
COLD, ARRIVING, LAYER = (some_bytes(SIZE, seed=seed) for seed in range(3))
HOST = "hub.test"

COLD_TAG, REMEMBERED_TAG, COLD_BLOB, HALF_BLOB, CACHED = (
    "a cold tag",
    "a remembered tag",
    "a cold blob",
    "a half-arrived blob",
    "a cached digest",
)


@dataclass(frozen=True)
class Cell:
    """What one question gets. `calls` is how many requests of its kind the upstream sees, `ended`
    how the answer's body ends.
    """

    status: int
    calls: int
    ended: str = "complete"
    stale: bool = False


def silent(status: int) -> dict[str, Cell]:
    """No request gets as far as the registry."""
    return {
        COLD_TAG: Cell(status, 0),
        REMEMBERED_TAG: Cell(200, 0, stale=True),
        COLD_BLOB: Cell(status, 0),
        HALF_BLOB: Cell(status, 0),
    }


def refused(status: int) -> dict[str, Cell]:
    """Each question is answered, and not asked again."""
    return {
        COLD_TAG: Cell(status, 1),
        REMEMBERED_TAG: Cell(200, 1, stale=True),
        COLD_BLOB: Cell(status, 1),
        HALF_BLOB: Cell(status, 1),
    }


def spoilt(cold_blob: Cell, half_blob: Cell, cold_tag: Cell | None = None) -> dict[str, Cell]:
    """Bodies are spoilt, heads are not: HEAD still tells that a tag has not moved."""
    return {
        COLD_TAG: cold_tag or Cell(502, 2),
        REMEMBERED_TAG: Cell(200, 1),
        COLD_BLOB: cold_blob,
        HALF_BLOB: half_blob,
    }


IDLE_TRIES = tries.MAX_IDLE_TRIES
ALL_RIGHT = spoilt(Cell(200, 1), Cell(200, 1), Cell(200, 2))


@dataclass(frozen=True)
class Row:
    cells: dict[str, Cell]
    faults: tuple[Fault, ...] = ()


MATRIX = {
    "refused": Row(silent(504)),
    "black hole": Row(silent(504)),
    "cut at 0 %": Row(
        spoilt(Cell(200, IDLE_TRIES, "short"), Cell(200, IDLE_TRIES, "short")), (Cut(0),)
    ),
    "cut at 30 %": Row(spoilt(Cell(200, 4), Cell(200, 2), Cell(200, 2)), (Cut(SIZE * 3 // 10),)),
    "cut at 99 %": Row(spoilt(Cell(200, 2), Cell(200, 1), Cell(200, 2)), (Cut(SIZE * 99 // 100),)),
    "stall": Row(spoilt(Cell(200, 4), Cell(200, 2), Cell(200, 2)), (Stall(SIZE * 3 // 10),)),
    "reset": Row(spoilt(Cell(200, 4), Cell(200, 2), Cell(200, 2)), (Reset(SIZE * 3 // 10),)),
    # One for a manifest tells about all of them, one for a blob about that blob.
    "429": Row(
        {
            COLD_TAG: Cell(429, 1),
            REMEMBERED_TAG: Cell(200, 0, stale=True),
            COLD_BLOB: Cell(429, 1),
            HALF_BLOB: Cell(429, 1),
        },
        (Status(429),),
    ),
    "500": Row(refused(502), (Status(500),)),
    "garbage": Row(
        {
            COLD_TAG: Cell(502, 2),
            REMEMBERED_TAG: Cell(200, 2, stale=True),
            COLD_BLOB: Cell(502, 1),
            HALF_BLOB: Cell(502, 1),
        },
        (Garbage(),),
    ),
    "wrong byte": Row(spoilt(Cell(200, 1, "short"), Cell(200, 1, "short")), (WrongByte(100),)),
    "wrong length": Row(spoilt(Cell(200, 8, "short"), Cell(200, 1)), (WrongLength(7),)),
    "no length": Row(ALL_RIGHT, (NoLength(),)),
    "Range ignored": Row(ALL_RIGHT, (IgnoreRange(),)),
    "token expired": Row(
        {
            COLD_TAG: Cell(200, 3),
            REMEMBERED_TAG: Cell(200, 2),
            COLD_BLOB: Cell(200, 2),
            HALF_BLOB: Cell(200, 2),
        }
    ),
    "DNS failure": Row(silent(504)),
    "TLS failure": Row(silent(502)),
}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_SECONDS", 0.001)


@dataclass
class Upstream:
    """A registry whose connections can fail, too."""

    registry: FakeRegistry
    certificate: Path
    patch: pytest.MonkeyPatch
    name: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        scheme, _, address = self.registry.url.partition("://")
        return {
            "endpoints": [f"{scheme}://{address.replace('127.0.0.1', HOST)}"],
            "token_realms": [self.registry.authority],
            "tls": {"ca_file": str(self.certificate)},
            "tag_ttl": "0s",
            "not_found_ttl": "0s",
            "connect_timeout": "1s",
            "idle_timeout": "1s",
        }

    @asynccontextmanager
    async def failing(self, fault: str) -> AsyncIterator[dict[str, Any]]:
        """The settings to ask it by, while the fault of its connections lasts."""
        settings = self.settings
        match fault:
            case "refused":
                await self.registry.stop()
            case "black hole":
                await self.registry.stop()
                with black_hole(self.registry.port):
                    yield settings
                return
            case "DNS failure":
                self.patch.setattr(socket, "getaddrinfo", no_such_name)
            case "TLS failure":
                del settings["tls"]
            case "token expired":
                self.registry.auth = BearerAuth()
            case _:
                self.registry.fail(*MATRIX[fault].faults)
        yield settings


@pytest.fixture
async def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Upstream]:
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **named: Any) -> Any:
        return real("127.0.0.1" if host == HOST else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "127.0.0.1").configure_cert(tls)
    async with FakeRegistry(tls) as registry:
        registry.add_image("org/remembered", layers=[b"remembered"])
        registry.add_image("org/cold", layers=[b"cold"])
        for data in (COLD, ARRIVING, LAYER):
            registry.add_blob("org/app", data)
        yield Upstream(registry, tmp_path / "ca.pem", monkeypatch)


@pytest.mark.parametrize("fault", MATRIX)
async def test_every_question_under_the_fault(
    upstream: Upstream, tmp_path: Path, fault: str
) -> None:
    registry, answered = upstream.registry, {}
    async with mirroring(tmp_path, {UPSTREAM: upstream.settings}) as house:
        await prepare(house, registry)
    async with (
        upstream.failing(fault) as settings,
        mirroring(tmp_path, {UPSTREAM: settings}) as house,
    ):
        for question in QUESTIONS:
            if fault == "token expired":
                await house.get(QUESTIONS[question].tags_path)
                registry.revoke_tokens()
            registry.forget()
            with Stopwatch() as watch:
                answer = await house.get(QUESTIONS[question].path)
            await until_idle(house)
            calls = registry.count(kind="manifest") + registry.count(kind="blob")
            answered[question] = Cell(answer.status, calls, answer.ended, is_stale(answer))
            check_bytes(answer, QUESTIONS[question].content(registry))
            limit_seconds = STAND_IN_SECONDS if question == REMEMBERED_TAG else ANSWER_SECONDS
            assert watch.seconds < limit_seconds, question
    assert answered == {**MATRIX[fault].cells, CACHED: Cell(200, 0)}


@dataclass(frozen=True)
class Question:
    path: str
    content: Callable[[FakeRegistry], bytes]

    @property
    def tags_path(self) -> str:
        return f"{self.path.rsplit('/', 2)[0]}/tags/list"


QUESTIONS = {
    COLD_TAG: Question(
        f"/v2/{UPSTREAM}/org/cold/manifests/latest", lambda it: manifest_of(it, "org/cold")
    ),
    REMEMBERED_TAG: Question(
        f"/v2/{UPSTREAM}/org/remembered/manifests/latest",
        lambda it: manifest_of(it, "org/remembered"),
    ),
    COLD_BLOB: Question(f"/v2/{UPSTREAM}/org/app/blobs/{digest_of(COLD)}", lambda _: COLD),
    HALF_BLOB: Question(f"/v2/{UPSTREAM}/org/app/blobs/{digest_of(ARRIVING)}", lambda _: ARRIVING),
    CACHED: Question(f"/v2/{UPSTREAM}/org/app/blobs/{digest_of(LAYER)}", lambda _: LAYER),
}


def manifest_of(registry: FakeRegistry, repository: str) -> bytes:
    there = registry.repository(repository)
    return there.manifests[there.tags["latest"]][0]


async def prepare(house: House, registry: FakeRegistry) -> None:
    for question in (REMEMBERED_TAG, CACHED):
        assert (await house.get(QUESTIONS[question].path)).status == 200
    registry.fail(Cut(HALF), kind="blob", times=1)
    registry.fail(HangUp(), kind="blob")
    assert (await house.get(QUESTIONS[HALF_BLOB].path)).ended == "short"
    registry.heal()
    await until_idle(house)
    assert {path.stat().st_size for path in house.staged() if path.name == "data"} == {HALF}


def check_bytes(answer: RawResponse, content: bytes) -> None:
    """Whole and right, or the right start of it and told to be short, or an error."""
    if answer.status != 200:
        return
    if answer.ended == "complete":
        assert answer.body == content
    else:
        assert len(answer.body) < len(content)


def no_such_name(*_arguments: Any, **_named: Any) -> Any:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """Listens, and leaves callers waiting: its queue is full."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
        yield
        for caller in callers:
            caller.close()
