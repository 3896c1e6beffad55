"""A virtual machine's host, which gives its processors to others at times.

What is measured while it does says nothing. So a sample waits until this machine has all of its
processors, and is taken again if they were taken away meanwhile: for all servers alike.
"""

import hashlib
import os
import threading
import time

from bench.procfs import Clock

# More than this share of the machine is not there.
MOST_STOLEN_SHARE = 0.05
LOOK_SECONDS = 0.3
PAUSE_SECONDS = 4.0
# Then it is measured as it is, and said so.
PATIENCE_SECONDS = 20.0
TAKEN_AT_MOST = 2

_BLOCK = bytes(1 << 20)


def most_stolen_cores() -> float:
    """That a sample may miss."""
    return MOST_STOLEN_SHARE * (os.cpu_count() or 1)


def wait_until_all_there() -> float:
    """Seconds waited. What the host takes shows only while there is work for all processors."""
    began_at = time.monotonic()
    while _stolen_under_load() > most_stolen_cores():
        if time.monotonic() - began_at > PATIENCE_SECONDS:
            break
        time.sleep(PAUSE_SECONDS)
    return time.monotonic() - began_at


def _stolen_under_load() -> float:
    """Cores."""
    before = Clock.now()
    ends_at = time.monotonic() + LOOK_SECONDS
    workers = [threading.Thread(target=_work, args=(ends_at,)) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Clock.now().since(before).stolen


def _work(ends_at: float) -> None:
    while time.monotonic() < ends_at:
        hashlib.sha256(_BLOCK).digest()
