"""What every test runs under, and what several ask for."""

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from sqlalchemy import create_engine
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from mirror.downloads import further
from mirror.proxy import patience
from mirror.proxy.patience import STAND_IN_SECONDS
from mirror.store import database
from mirror.store.index import Index
from mirror.web import repeats
from tests.fakes.deadline import DEADLINE_SECONDS, SOON_SECONDS
from tests.fakes.registry import FakeRegistry


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A blocking call made by the mirror on the event loop fails the test."""
    with blockbuster_ctx("mirror") as blockbuster:
        # As asyncio's own: into a socket that does not block.
        sendfile = blockbuster.functions["os.sendfile"]
        sendfile.can_block_in("mirror/web/replay.py", "send_at_once")
        sendfile.can_block_in("mirror/web/sendfile.py", "send_more")
        yield blockbuster


@pytest.fixture(autouse=True, scope="session")
def compiled_once() -> Iterator[None]:
    """What is asked of an index is put into SQL once, and not again for each mirror: that took a
    tenth of its time. The dialects of two engines are told apart by nothing else.
    """
    options: dict[str, object] = {"compiled_cache": {}}
    dialect = SQLiteDialect_pysqlite
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "__eq__", lambda one, other: type(one) is type(other))
        patch.setattr(dialect, "__hash__", lambda one: hash(type(one)))
        create = partial(create_engine, execution_options=options)
        patch.setattr(database, "create_engine", create)
        yield


@pytest.fixture(autouse=True)
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes are near, however slowly a busy machine lets them answer."""
    monkeypatch.setattr(further, "FAR_SECONDS", DEADLINE_SECONDS)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for seconds does not make an upstream silent."""
    monkeypatch.setattr(patience, "STAND_IN_SECONDS", SOON_SECONDS)


@pytest.fixture(autouse=True)
def well_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it make an answer too old to be given again."""
    monkeypatch.setattr(repeats, "REPEAT_SECONDS", DEADLINE_SECONDS)


@pytest.fixture
def hurried(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an upstream is silent on purpose, and something remembered stands in as soon as it does
    for clients.
    """
    monkeypatch.setattr(patience, "STAND_IN_SECONDS", STAND_IN_SECONDS)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Where connections are neither taken nor refused: the queue is full."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def index_file(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


@pytest.fixture
async def index(index_file: Path) -> AsyncIterator[Index]:
    index = await Index.open(index_file)
    yield index
    await index.aclose()
