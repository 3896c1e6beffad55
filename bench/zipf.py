"""A cache a third of the working set: what the store's eviction keeps of Zipf streams.

python -m bench.zipf [--blobs N] [--requests N] [--dir FOLDER] [--json FILE]

Store, index and eviction are the mirror's own, with its rounds in the background; the files are
sparse, of the sizes of layers, configs and manifests. Beside it: least recently used, and a bound
that no cache of this size can beat (policies.py).
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from bench.policies import Hits, Stream, least_recently_used, upper_bound
from bench.stock import digest_of
from mirror.manifest import BLOB_TYPE, Descriptor
from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.proxy.contents import Contents
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.index import Index
from mirror.store.quarantine import Quarantine
from mirror.store.room import Limits
from mirror.store.usage import Usage

BLOBS, REQUESTS = 2_000, 40_000
CACHE_SHARE = 1 / 3
EXPONENTS = (0.8, 1.0)
# With drift, so many of these turns swap so many pairs of blobs in what is asked for.
TURNS_OF_A_STEP = 400
SWAPS_OF_A_STEP = 20
MIN_BLOB_BYTES, MAX_BLOB_BYTES = 500, 2_000_000_000
# The files are counted after so many arrivals: that takes as long as the store has blobs.
COUNTED_EVERY = 50


def layers(blobs: int) -> list[int]:
    """Sizes as of layers and manifests: half of them below a megabyte, few above a gigabyte."""
    chance = random.Random(3)
    drawn = (int(chance.lognormvariate(14, 2.2)) for _ in range(blobs))
    return [min(MAX_BLOB_BYTES, max(MIN_BLOB_BYTES, size)) for size in drawn]


def zipf(blobs: int, requests: int, exponent: float, *, drifts: bool = False) -> list[int]:
    """Requests for blobs by their number; with `drifts`, what is asked for changes over time."""
    chance = random.Random(7)
    weights = list(accumulate((n + 1) ** -exponent for n in range(blobs)))
    names = chance.sample(range(blobs), blobs)
    asked: list[int] = []
    while len(asked) < requests:
        count = min(TURNS_OF_A_STEP, requests - len(asked))
        asked += [names[n] for n in chance.choices(range(blobs), cum_weights=weights, k=count)]
        for _ in range(SWAPS_OF_A_STEP if drifts else 0):
            a, b = chance.randrange(blobs), chance.randrange(blobs)
            names[a], names[b] = names[b], names[a]
    return asked


# --- The store ------------------------------------------------------------------------------------


@dataclass
class Held:
    """The store with all that decides what it holds, and the most that it held."""

    store: BlobStore
    usage: Usage
    eviction: Eviction
    contents: Contents
    most_bytes: int = 0
    arrivals: int = 0

    async def ask(self, digest: Digest, size_bytes: int) -> bool:
        """Whether it was here; it is from now on."""
        self.eviction.note_use(digest)
        if await self.store.has(digest):
            return True
        self.eviction.room.arriving_bytes = lambda: size_bytes
        await self.eviction.make_room(0)
        await asyncio.to_thread(self._bring, digest, size_bytes)
        self.eviction.room.arriving_bytes = lambda: 0
        await self.contents.note_stored(Descriptor(digest, BLOB_TYPE, size_bytes))
        return False

    def _bring(self, digest: Digest, size_bytes: int) -> None:
        """As many bytes as it has, none of which takes room on the disk."""
        beside = self.store.paths.staged_small()
        with beside.open("xb") as file:
            file.truncate(size_bytes)
        self.store.commit(beside, digest)
        self.arrivals += 1
        if self.arrivals % COUNTED_EVERY == 0:
            on_disk_bytes = sum(size for _, size, _ in self.store.walk())
            self.most_bytes = max(self.most_bytes, on_disk_bytes)


@asynccontextmanager
async def holding(folder: Path, max_bytes: int) -> AsyncIterator[Held]:
    """An empty store that may hold so much."""
    store, metrics = BlobStore(folder), Metrics()
    await store.open()
    index = await Index.open(store.paths.index)
    usage = Usage(metrics)
    eviction = Eviction(store, index, usage, metrics, Limits(max_bytes, min_free_bytes=0))
    quarantine = Quarantine(store, index, usage, metrics)
    contents = Contents(store, index, quarantine, usage, eviction, hot_bytes=0)
    await eviction.take_stock()
    eviction.open()
    try:
        yield Held(store, usage, eviction, contents)
    finally:
        await contents.aclose()
        await quarantine.aclose()
        await eviction.aclose()
        await index.aclose()
        await store.aclose()


async def kept(stream: Stream, folder: Path, max_bytes: int) -> tuple[Hits, int]:
    """What the store had of it, and the most bytes that it held."""
    hits = hit_bytes = 0
    async with holding(folder, max_bytes) as held:
        for blob in stream.asked:
            size_bytes = stream.sizes[blob]
            if await held.ask(digest_of(blob), size_bytes):
                hits, hit_bytes = hits + 1, hit_bytes + size_bytes
            held.most_bytes = max(held.most_bytes, held.usage.size_bytes)
        return Hits(hits, hit_bytes), held.most_bytes


# --- The report -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """Rates are (of requests, of bytes)."""

    name: str
    ours: tuple[float, float]
    recent: tuple[float, float]
    bound: tuple[float, float]
    most_bytes: int
    max_bytes: int
    seconds: float


def measure(name: str, stream: Stream, parent: Path) -> Result:
    max_bytes = int(sum(stream.sizes) * CACHE_SHARE)
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mirror-bench-", dir=parent) as folder:
        ours, most_bytes = asyncio.run(kept(stream, Path(folder), max_bytes))
    return Result(
        name,
        ours.rates(stream),
        least_recently_used(stream, max_bytes).rates(stream),
        upper_bound(stream, max_bytes).rates(stream),
        most_bytes,
        max_bytes,
        time.monotonic() - began_at,
    )


def lines(results: list[Result]) -> Iterator[str]:
    yield "| hits, % of requests (of bytes) | ours | least recently used | most possible | held |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for each in results:
        rates = [f"{100 * a:.1f} ({100 * b:.1f})" for a, b in (each.ours, each.recent, each.bound)]
        held = f"{100 * each.most_bytes / each.max_bytes:.1f} % of {each.max_bytes / 1e9:.1f} GB"
        yield " | ".join([f"| {each.name}", *rates, held]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.zipf", description=__doc__)
    parser.add_argument("--blobs", type=int, default=BLOBS, help="of the working set (%(default)s)")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="%(default)s")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="%(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, to a file")
    arguments = parser.parse_args()
    results = []
    for exponent in EXPONENTS:
        for drifts in (False, True):
            asked = zipf(arguments.blobs, arguments.requests, exponent, drifts=drifts)
            name = f"Zipf {exponent}{', drifting' if drifts else ''}"
            results.append(measure(name, Stream(asked, layers(arguments.blobs)), arguments.dir))
            print(f"{name}: {results[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(lines(results)))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in results], indent=1))
    return 0 if all(each.most_bytes <= each.max_bytes for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
