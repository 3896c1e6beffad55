"""A crowd at one cold blob, half of it slow: what it costs the mirror, and the upstream."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.support import procfs
from tests.support.crowd import Reader, ask, read_all
from tests.support.layers import UPSTREAM, add_layer, eventually
from tests.support.process import Process, serving

BLOB_BYTES = 200_000_000
CLIENTS = 200
MOST_MEMORY_BYTES = 150 * 1024 * 1024
MOST_THREADS = 32
# So many of the slow ones read to their end when the fast ones are done; the others hang up.
PATIENT = 4


class Watch:
    """The most threads that were seen, while the block runs."""

    def __init__(self, pid: int) -> None:
        self.threads = 0
        self._pid = pid

    async def look(self) -> None:
        while True:
            self.threads = max(self.threads, procfs.threads(self._pid))
            await asyncio.sleep(0.05)


async def until_idle(mirror: Process) -> None:
    idle = {b"mirror_downloads_active 0.0", b"mirror_download_followers 0.0"}

    async def is_idle() -> bool:
        return idle <= set((await mirror.get("/metrics")).body.splitlines())

    await eventually(is_idle)


def descriptors(mirror: Process) -> int:
    return procfs.passing_descriptors(mirror.process.pid, mirror.storage)


def leave(slow: list[Reader]) -> None:
    """Half of them with FIN, half of them with RST."""
    for n, reader in enumerate(slow):
        reader.hang_up(reset=n % 2 == 0)


def crowd_in(url: str, data: bytes) -> tuple[list[Reader], list[Reader]]:
    """The fast ones and the patient ones, when they have read all. Blocking."""
    readers = [ask(url, data, slow=n % 2 == 1) for n in range(CLIENTS)]
    fast, slow = readers[::2], readers[1::2]
    read_all(fast, slow)
    assert all(0 < reader.position < len(data) for reader in slow)
    assert all(reader.is_right for reader in slow)
    leave(slow[PATIENT:])
    read_all(slow[:PATIENT], [])
    return fast, slow[:PATIENT]


@pytest.mark.alone
async def test_a_crowd_costs_one_download_and_little_memory(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    data = hashlib.shake_128(b"a crowd").digest(BLOB_BYTES)
    path = add_layer(registry, data)
    async with serving(tmp_path, {UPSTREAM: registry}) as mirror:
        await until_idle(mirror)
        before = descriptors(mirror)
        watch = Watch(mirror.process.pid)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch.look())
            fast, patient = await asyncio.to_thread(crowd_in, mirror.url + path, data)
            watching.cancel()
        await until_idle(mirror)
        for reader in (*fast, *patient):
            assert (reader.status, reader.position, reader.is_right) == (200, BLOB_BYTES, True)
        assert registry.count("GET", "blob") == 1
        assert registry.body_bytes("blob") == BLOB_BYTES
        assert procfs.memory_bytes(mirror.process.pid, "VmHWM") <= MOST_MEMORY_BYTES
        assert watch.threads <= MOST_THREADS
        await registry.stop()  # and with it the connection that was kept for the next request

        async def all_closed() -> bool:
            return descriptors(mirror) <= before

        await eventually(all_closed)
