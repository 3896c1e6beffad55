"""Threads beside the event loop."""

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.threads import NICENESS, in_daemon, stand_back
from tests.fakes.deadline import DEADLINE_SECONDS


@pytest.mark.skipif(sys.platform != "linux", reason="left out: niceness is the process's here")
def test_a_thread_that_stands_back_stands_back_alone() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1, initializer=stand_back) as threads:
        assert threads.submit(niceness).result() == before + NICENESS
    assert niceness() == before


async def test_who_goes_away_leaves_the_thread_its_room() -> None:
    room, answers = asyncio.Semaphore(1), threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await in_daemon(room, answers.wait)
    assert room.locked()
    answers.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await in_daemon(room, lambda: "read") == "read"
        with pytest.raises(ValueError, match="invalid literal"):
            await in_daemon(room, lambda: int("x"))


async def test_a_thread_that_cannot_begin_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    room = asyncio.Semaphore(1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(OSError, match="no thread is left"):
            await in_daemon(room, lambda: "never")
    assert not room.locked()
    assert await in_daemon(room, lambda: "read") == "read"
