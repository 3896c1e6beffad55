"""What upstreams let us pull is written behind, and none of it lost."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from mirror.proxy import ledger
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.ratelimit import RateLimit
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring


async def asked(mirror: House, statement: str) -> list[tuple[int]]:
    def ask() -> list[tuple[int]]:
        with closing(sqlite3.connect(mirror.storage / "index.db")) as connection, connection:
            return connection.execute(statement).fetchall()

    return await asyncio.to_thread(ask)


async def test_what_the_index_did_not_take_is_written_with_what_comes_next(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WRITE_EVERY_SECONDS", 0.01)
    registry.ratelimit = RateLimit(limit=100, remaining=50)
    registry.add_image("library/app")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        await asked(
            mirror,
            "CREATE TRIGGER full BEFORE INSERT ON allowances "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
        )
        with structlog.testing.capture_logs() as logs:
            assert (await mirror.get("/v2/app/manifests/latest")).status == 200
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not [line for line in logs if line["event"] == "not remembered"]:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
        assert await asked(mirror, "SELECT remaining FROM allowances") == []
        await asked(mirror, "DROP TRIGGER full")
    assert await asked(mirror, "SELECT remaining FROM allowances") == [(49,)]
