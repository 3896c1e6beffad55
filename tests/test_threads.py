"""Threads beside the event loop."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.threads import NICENESS, stand_back


@pytest.mark.skipif(sys.platform != "linux", reason="left out: niceness is the process's here")
def test_a_thread_that_stands_back_stands_back_alone() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1, initializer=stand_back) as threads:
        assert threads.submit(niceness).result() == before + NICENESS
    assert niceness() == before
