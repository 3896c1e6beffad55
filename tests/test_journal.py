"""What is told of answers that are given again."""

import asyncio
import sys
from pathlib import Path
from typing import Any, cast

import structlog

from mirror.metrics import Cache, Metrics
from mirror.names import Digest
from mirror.store.handles import Handle
from mirror.web.journal import Journal
from mirror.web.repeats import Given, Repeat, Repeats
from mirror.web.replay import Replay
from mirror.web.request import Facts, FilePart

DIGEST = Digest.parse(f"sha256:{'0' * 64}")


class Closing:
    """A transport whose client has gone, and whose protocol has not heard of it yet."""

    def is_closing(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 1

    def write(self, _data: bytes) -> None: ...

    def close(self) -> None: ...


def given(facts: Facts) -> Given:
    return Given("GET", facts, structlog.get_logger())


async def test_what_waits_to_be_counted_keeps_no_body() -> None:
    metrics = Metrics()
    journal = Journal(metrics)
    body = bytes(100_000)
    references = sys.getrefcount(body)
    repeat = Repeat(given(Facts(cache=Cache.HIT)), b"", body, 0.0, 0)
    journal.record_repeat(repeat.given, "client", 0.0)
    journal.record_repeat(repeat.given, "client", 0.0)
    del repeat
    assert sys.getrefcount(body) == references
    assert b'cache="hit",kind="other",method="GET",status="499",upstream="-"} 2.0' in (
        metrics.render()
    )


async def test_a_client_that_went_before_the_rest_was_sent_was_given_nothing_whole(
    tmp_path: Path,
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"a blob")
    handle = Handle(path.open("rb", buffering=0), 6)
    noted: list[Digest] = []
    journal = Journal(Metrics())
    repeats = Repeats(10_000, lambda _facts, _method: structlog.get_logger())
    replay = Replay(
        repeats,
        journal,
        lambda _digest: handle.take(),
        lambda digest, _client: noted.append(digest),
        set(),
    )
    facts = Facts(file=FilePart(DIGEST, 0, 6, is_whole=True))
    repeats._known[b"GET"] = Repeat(given(facts), b"", b"", float("inf"), 1)
    task = replay.answer(b"GET", cast(Any, Closing()), "client")
    assert isinstance(task, asyncio.Task)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert task.exception() is None
    assert noted == []
    handle.close()
