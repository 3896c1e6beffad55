"""One run: start everything, make it warm, then round after round through measures and servers."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import load, machine, procfs
from bench.content import Image
from bench.measures import Measure, Sample, WarmImage, all_measures
from bench.scale import Scale
from bench.servers import DockerRegistry, Mirror, Nginx, Server
from bench.upstream import Upstream

SERVER_NAMES = (Mirror.name, DockerRegistry.name, Nginx.name)
FOREIGN_LOAD = "others' cores"


@dataclass
class Run:
    """All samples: by row of the report, by server, one for each round."""

    scale: Scale
    servers: list[str]
    machine: dict[str, str]
    commands: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    def add(self, measure: Measure, server: str, sample: Sample) -> None:
        by_server = self.samples.setdefault(" ".join(measure.rows), {})
        by_server.setdefault(server, []).append(sample)

    def samples_of(self, row: str, server: str) -> list[Sample]:
        for rows, by_server in self.samples.items():
            if row in rows.split():
                return by_server.get(server, [])
        return []


@dataclass(frozen=True)
class Stage:
    """What is up and running while the measures are taken."""

    upstream: Upstream
    servers: list[Server]
    warm: WarmImage

    def server_for(self, measure: Measure, server: Server) -> Server:
        return self.upstream if measure.cold and isinstance(server, Nginx) else server


def measure_all(scale: Scale, names: list[str], cache_parent: Path, upstream_parent: Path) -> Run:
    """Raises ServerError or LoadError when a server cannot even be started and made warm."""
    with (
        _temporary_folder(cache_parent) as cache_folder,
        _temporary_folder(upstream_parent) as upstream_folder,
        _stage(scale, names, cache_folder, upstream_folder) as stage,
    ):
        run = Run(scale, names, machine.description(cache_folder, upstream_folder))
        measures = all_measures(scale, stage.upstream, stage.warm)
        run.commands = _commands(scale, stage)
        for round_number in range(scale.rounds):
            _take_round(run, stage, measures, round_number)
    return run


def _take_round(run: Run, stage: Stage, measures: list[Measure], round_number: int) -> None:
    """Each measure goes through all servers before the next; another server begins each round."""
    first = round_number % len(stage.servers)
    order = stage.servers[first:] + stage.servers[:first]
    for measure in measures:
        for server in order:
            sample = _sample(measure, stage.server_for(measure, server))
            run.add(measure, server.name, sample)
            _progress(f"round {round_number + 1}/{run.scale.rounds} {server.name}", sample)


def _sample(measure: Measure, server: Server) -> Sample:
    if not server.alive:
        server.start()
    before = procfs.Clock.now()
    try:
        sample = measure.take(server)
    except load.LoadError as error:
        ended = "" if server.alive else " (the server has ended)"
        sample = Sample(failure=f"{error}{ended}")
    sample.details[FOREIGN_LOAD] = procfs.Clock.now().since(before)[1]
    return sample


@contextmanager
def _stage(
    scale: Scale, names: list[str], cache_folder: Path, upstream_folder: Path
) -> Iterator[Stage]:
    with ExitStack() as stack:
        upstream = Upstream(upstream_folder / "upstream")
        servers = [_server(name, cache_folder / name, upstream) for name in names]
        image = upstream.tree.add_image(scale.small_bytes, scale.middle_bytes, scale.large_bytes)
        for server in (upstream, *servers):
            stack.callback(server.stop)
            server.start()
            _progress(f"{server.name} listens on port {server.port}")
        for server in servers:
            if isinstance(server, Nginx):
                upstream.tree.copy_to(server.tree)
            _make_warm(server, image)
        yield Stage(upstream, servers, WarmImage(image, *image.layers))


def _server(name: str, folder: Path, upstream: Upstream) -> Server:
    if name == Mirror.name:
        return Mirror(folder, upstream.port)
    if name == DockerRegistry.name:
        return DockerRegistry(folder, upstream.port)
    return Nginx(folder)


def _make_warm(server: Server, image: Image) -> None:
    """Twice: the first fills the cache, the second sees that the cache has the right bytes."""
    for _ in range(2):
        load.check(server.address, image.tag_path, image.manifest)
        for layer in image.layers:
            load.check(server.address, layer.path, layer)
        procfs.settle()


def _commands(scale: Scale, stage: Stage) -> dict[str, str]:
    commands = {server.name: " ".join(server.command()) for server in stage.servers}
    for server in stage.servers:
        commands[f"{server.name}, its configuration"] = server.config()
    address = stage.servers[0].address
    tag_path = stage.warm.image.tag_path
    wrk = load.wrk_command(address, tag_path, scale.connections, scale.window_seconds)
    commands["manifest by tag and small blob"] = " ".join(wrk)
    commands["larger blobs"] = "bench/load.py: stream (warm), download (cold)"
    return commands


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mirror-bench-", dir=parent) as folder:
        yield Path(folder)


def _progress(what: str, sample: Sample | None = None) -> None:
    if sample is not None:
        said = sample.failure or ", ".join(f"{k} {v:.4g}" for k, v in sample.values.items())
        what = f"{what}: {said}"
    print(what, file=sys.stderr, flush=True)
