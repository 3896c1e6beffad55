"""How much faster a far upstream is through the mirror than without it.

python -m bench.far [--rounds N]

The upstream is far_server.py: 80 ms for each request, 20 MB/s for each connection. Each sample
pulls an image that nobody has pulled before, as containerd does: the manifest by its tag, then up
to three layers at a time, each on a connection of its own; once directly and once through a mirror,
in turns.
"""

import argparse
import http.client
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median

from bench import load, procfs
from bench.content import Blob, Image
from bench.servers import Mirror, Server
from bench.upstream import Upstream

LATENCY_SECONDS = 0.08
BYTES_PER_SECOND = 20e6
AT_ONCE = 3
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the folders in it have random names
SHAPES = {
    "one layer of 100 MB": (100_000_000,),
    "20 layers of 5 MB": (5_000_000,) * 20,
    "4 layers of 50 MB": (50_000_000,) * 4,
}


class FarUpstream(Upstream):
    name = "direct"

    def config(self) -> str:
        return ""

    def command(self) -> list[str]:
        numbers = [str(LATENCY_SECONDS), str(BYTES_PER_SECOND)]
        files = [str(self.tree.root), str(self.access_log)]
        return [sys.executable, "-m", "bench.far_server", str(self.port), *files, *numbers]


@dataclass(frozen=True)
class Sample:
    """`copies`: what the upstream sent of the layers, as a multiple of them."""

    seconds: float
    copies: float
    gets: int


def pull(server: Server, image: Image) -> float:
    """The seconds that one client takes, from connecting to the last byte."""
    started = time.monotonic()
    _read(server, image.tag_path, image.manifest.size)
    waiting: SimpleQueue[Blob] = SimpleQueue()
    for layer in image.layers:
        waiting.put(layer)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for work in [threads.submit(_pull_layers, server, waiting) for _ in range(AT_ONCE)]:
            work.result()
    return time.monotonic() - started


def _pull_layers(server: Server, waiting: "SimpleQueue[Blob]") -> None:
    with closing(_connection(server)) as connection:
        while True:
            try:
                layer = waiting.get_nowait()
            except Empty:
                return
            _get(connection, layer.path, layer.size)


def _read(server: Server, path: str, size: int) -> None:
    with closing(_connection(server)) as connection:
        _get(connection, path, size)


def _connection(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*server.address, timeout=load.STALL_LIMIT_SECONDS)


def _get(connection: http.client.HTTPConnection, path: str, size: int) -> None:
    """Raises LoadError for anything but the whole."""
    connection.request("GET", path, headers={"Accept": load.ACCEPT})
    response = connection.getresponse()
    buffer, read = bytearray(1 << 20), 0
    while count := response.readinto(buffer):
        read += count
    if response.status != 200 or read != size:
        raise load.LoadError(f"{path}: {response.status} with {read} of {size} bytes")


def take(server: Server, upstream: FarUpstream, sizes: tuple[int, ...]) -> Sample:
    image = upstream.tree.add_image(*sizes)
    try:
        procfs.settle()
        upstream.forget()
        seconds = pull(server, image)
        procfs.settle()
        fetched = [upstream.fetched(layer) for layer in image.layers]
        for layer in image.layers:
            if server is not upstream:
                load.check(server.address, layer.path, layer)
    finally:
        upstream.tree.remove_layers(image)
    copies = sum(each.sent_bytes for each in fetched) / sum(sizes)
    return Sample(seconds, copies, sum(each.gets for each in fetched))


@contextmanager
def _servers() -> Iterator[tuple[FarUpstream, Mirror]]:
    with (
        tempfile.TemporaryDirectory(prefix="mirror-bench-") as cache,
        tempfile.TemporaryDirectory(prefix="mirror-bench-", dir=SHARED_MEMORY) as files,
    ):
        upstream = FarUpstream(Path(files) / "upstream")
        mirror = Mirror(Path(cache) / "mirror", upstream.port)
        try:
            upstream.start()
            mirror.start()
            yield upstream, mirror
        finally:
            mirror.stop()
            upstream.stop()


def _line(shape: str, direct: list[Sample], mirrored: list[Sample]) -> str:
    ratios = [ours.seconds / theirs.seconds for ours, theirs in zip(mirrored, direct, strict=True)]
    cells = [
        shape,
        f"{median(each.seconds for each in direct):.2f}",
        f"{median(each.seconds for each in mirrored):.2f}",
        f"{median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f})",
        f"{median(each.copies for each in mirrored):.3f}x",
        f"{median(each.gets for each in mirrored):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.far", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is repeated")
    rounds: int = parser.parse_args().rounds
    print("| | direct, s | mirror, s | mirror ÷ direct | upstream bytes | upstream GETs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with _servers() as (upstream, mirror):
        for shape, sizes in SHAPES.items():
            samples: dict[Server, list[Sample]] = {upstream: [], mirror: []}
            for number in range(rounds):
                for server in (upstream, mirror) if number % 2 else (mirror, upstream):
                    samples[server].append(take(server, upstream, sizes))
                    print(shape, server.name, samples[server][-1], file=sys.stderr, flush=True)
            print(_line(shape, samples[upstream], samples[mirror]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
