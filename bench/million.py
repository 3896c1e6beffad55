"""Whether a million blobs cost more than a thousand: to start with, to evict from, in memory.

python -m bench.million [--blobs N] [--rounds N] [--dir FOLDER] [--json FILE]

The caches are made by stock.py. The server is `mirror serve`, idle; evictions are the store's own,
in this process, on the same caches. A million blobs need as many inodes and 2 GB of disk, most of
it for the index and its backup; to make them takes a few minutes.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import FrameType

from bench import procfs
from bench.server import PROJECT, free_port, is_answered
from bench.stock import stock
from mirror.metrics import Metrics
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.index import Index
from mirror.store.room import Limits
from mirror.store.usage import Usage

FEW_BLOBS = 1_000
SOME_BLOBS = 30_000
MANY_BLOBS = 1_000_000
# Of each sample; three of them empty most of the smallest cache.
EVICTED_BLOBS = 250
START_LIMIT_SECONDS = 120
STOP_LIMIT_SECONDS = 120
LOOK_SECONDS = 0.005
# An idle server is looked at after this time.
IDLE_SECONDS = 2.0


@dataclass
class Cache:
    """Where it is, and what was measured: seconds, microseconds for each blob, bytes. `cpu` is what
    a start took of the processor, which others on the machine change less.
    """

    blobs: int
    root: Path
    index_bytes: int = 0
    clean_start: list[float] = field(default_factory=list)
    clean_cpu: list[float] = field(default_factory=list)
    killed_start: list[float] = field(default_factory=list)
    killed_cpu: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    resident: int = 0
    peak: int = 0
    eviction: list[float] = field(default_factory=list)
    eviction_cpu: list[float] = field(default_factory=list)


def make(folder: Path, count: int) -> Cache:
    root = folder / str(count)
    root.mkdir()
    began_at = time.monotonic()
    stock(root, count)
    _tell(f"{count} blobs made in {time.monotonic() - began_at:.0f} s")
    return Cache(count, root, index_bytes=(root / "index.db").stat().st_size)


# --- The server -----------------------------------------------------------------------------------


@contextmanager
def serving(cache: Cache) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A mirror, and the seconds from its start until `/readyz` said yes. Killed in the end, if it
    still runs.
    """
    port = free_port()
    config = cache.root / "mirror.yaml"
    config.write_text(f"listen: 127.0.0.1:{port}\noffline: true\nstorage: {{path: {cache.root}}}\n")
    command = [sys.executable, "-m", "mirror", "serve", "--config", str(config)]
    began_at = time.monotonic()
    with (cache.root / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=PROJECT, stderr=log, env=_environment())
    try:
        while not is_answered(port, "/readyz"):
            if process.poll() is not None or time.monotonic() > began_at + START_LIMIT_SECONDS:
                raise RuntimeError(f"mirror did not start: see {cache.root / 'log'}")
            time.sleep(LOOK_SECONDS)
        yield process, time.monotonic() - began_at
    finally:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """As an installed program's: its settings are its own, and its modules are compiled already."""
    ours = ("MIRROR_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def take_starts(cache: Cache) -> None:
    """One after a clean end and one after a kill, each of which the one before it makes."""
    with serving(cache) as (process, seconds):
        cache.clean_start.append(seconds)
        cache.clean_cpu.append(procfs.cpu_seconds([process.pid]))
        time.sleep(IDLE_SECONDS)
        cache.resident = procfs.memory_bytes([process.pid], "VmRSS")
        cache.peak = procfs.memory_bytes([process.pid], "VmHWM")
        process.kill()
    with serving(cache) as (process, seconds):
        cache.killed_start.append(seconds)
        cache.killed_cpu.append(procfs.cpu_seconds([process.pid]))
        end_cleanly(cache, process)


def end_cleanly(cache: Cache, process: "subprocess.Popen[bytes]") -> None:
    asked_at = time.monotonic()
    process.terminate()
    process.wait(STOP_LIMIT_SECONDS)
    cache.end.append(time.monotonic() - asked_at)


# --- Eviction -------------------------------------------------------------------------------------


async def evict(cache: Cache) -> None:
    """As many as make room for a download that a full cache is asked for."""
    store = BlobStore(cache.root)
    await store.open()
    index = await Index.open(store.paths.index)
    metrics = Metrics()
    usage = Usage(metrics)
    usage.add(*await index.usage())
    eviction = Eviction(store, index, usage, metrics, Limits(max_bytes=usage.size_bytes))
    going = await index.least_worth(EVICTED_BLOBS)
    eviction.room.arriving_bytes = lambda: sum(each.size_bytes for each in going)
    before = usage.blobs
    began_at, cpu_seconds = time.perf_counter(), time.process_time()
    await eviction.make_room(0)
    gone = before - usage.blobs
    cache.eviction.append((time.perf_counter() - began_at) / gone * 1e6)
    cache.eviction_cpu.append((time.process_time() - cpu_seconds) / gone * 1e6)
    await eviction.aclose()
    await index.aclose()
    await store.aclose()


# --- The report -----------------------------------------------------------------------------------


def lines(caches: list[Cache]) -> Iterator[str]:
    yield "| blobs | " + " | ".join(f"{each.blobs:,}" for each in caches) + " |"
    yield "| --- |" + " ---: |" * len(caches)
    yield _row("start after a clean end, s", [_spread(each.clean_start, 2) for each in caches])
    yield _row("of it processor time", [_spread(each.clean_cpu, 2) for each in caches])
    yield _row("start after a kill, s", [_spread(each.killed_start, 2) for each in caches])
    yield _row("of it processor time", [_spread(each.killed_cpu, 2) for each in caches])
    yield _row("clean end, s", [_spread(each.end, 2) for each in caches])
    yield _row("eviction, µs for each blob", [_spread(each.eviction, 0) for each in caches])
    yield _row("of it processor time", [_spread(each.eviction_cpu, 0) for each in caches])
    yield _row("idle, VmRSS, MiB", [f"{each.resident / 2**20:.0f}" for each in caches])
    yield _row("idle, VmHWM, MiB", [f"{each.peak / 2**20:.0f}" for each in caches])
    yield _row("index on the disk, MiB", [f"{each.index_bytes / 2**20:.1f}" for each in caches])


def _row(title: str, cells: list[str]) -> str:
    return " | ".join([f"| {title}", *cells]) + " |"


def _spread(samples: list[float], digits: int) -> str:
    if not samples:
        return "-"
    low, middle, high = min(samples), median(samples), max(samples)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(folder: Path, counts: list[int], rounds: int) -> list[Cache]:
    caches = [make(folder, count) for count in counts]
    procfs.settle()
    for cache in caches:
        with serving(cache) as (process, _):  # the first clean end, and the first backup
            process.terminate()
            process.wait(STOP_LIMIT_SECONDS)
    for number in range(rounds):
        for cache in caches if number % 2 else reversed(caches):
            take_starts(cache)
            _tell(f"{cache.blobs} blobs: {cache.clean_start[-1]:.2f} {cache.killed_start[-1]:.2f}")
    for number in range(rounds):
        for cache in caches if number % 2 else reversed(caches):
            if cache.blobs >= rounds * EVICTED_BLOBS:
                asyncio.run(evict(cache))
    return caches


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.million", description=__doc__)
    parser.add_argument("--blobs", type=int, default=MANY_BLOBS, help="the most (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is repeated")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="%(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, to a file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)  # so that the server is ended and the folder removed
    most: int = arguments.blobs
    counts = sorted({0, min(FEW_BLOBS, most), min(SOME_BLOBS, most), most})
    with tempfile.TemporaryDirectory(prefix="mirror-bench-", dir=arguments.dir) as folder:
        caches = measure(Path(folder), counts, arguments.rounds)
        print("\n".join(lines(caches)))
        if arguments.json:
            samples = [asdict(cache) for cache in caches]
            arguments.json.write_text(json.dumps(samples, default=str, indent=1))
    return 0


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
