"""One run: round after round, everything is started, made warm, and goes through the measures."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import host, machine, procfs, wrk
from bench.arrivals import cold_measures
from bench.load import LoadError
from bench.measures import Measure, Sample, warm_measures
from bench.scale import Scale
from bench.server import Server, ServerError
from bench.stage import Stage, Upstreams, stage, upstreams

FOREIGN_LOAD = "others' cores"
STOLEN = "cores that the host gave to others"
WAITED = "waited for the host, s"
TAKEN = "times taken"


@dataclass
class Run:
    """All samples: by row of the report, by server, one for each round."""

    scale: Scale
    servers: list[str]
    machine: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
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


def measure_all(
    scale: Scale, kinds: dict[str, type[Server]], cache_parent: Path, upstream_parent: Path
) -> Run:
    """Raises ServerError when there is no upstream; whatever else fails is a failed sample."""
    with (
        _temporary_folder(cache_parent) as cache_folder,
        _temporary_folder(upstream_parent) as upstream_folder,
        upstreams(scale, upstream_folder) as given,
    ):
        run = Run(scale, list(kinds), machine.description(cache_folder, upstream_folder))
        run.versions = {name: kind.version() for name, kind in kinds.items()}
        measures = [
            *warm_measures(scale, given.near, given.warm),
            *cold_measures(scale, given.near, given.far, given.warm),
        ]
        for round_number in range(scale.rounds):
            folder = cache_folder / f"round-{round_number + 1}"
            with stage(kinds, folder, given) as made:
                run.commands = _commands(scale, made, given)
                _take_round(run, made, measures, round_number)
            shutil.rmtree(folder)  # a round leaves gigabytes in each cache
    return run


def _take_round(run: Run, made: Stage, measures: list[Measure], round_number: int) -> None:
    """Each measure goes through all servers before the next; another server begins each round."""
    first = round_number % len(run.servers)
    order = run.servers[first:] + run.servers[:first]
    for measure in measures:
        for name in order:
            sample = _sample(measure, made, name)
            run.add(measure, name, sample)
            _progress(f"round {round_number + 1}/{run.scale.rounds} {name}", sample)


def _sample(measure: Measure, made: Stage, name: str) -> Sample:
    """The one of a few for which this machine was there most of all, or the first that it was."""
    taken: list[Sample] = []
    while len(taken) < host.TAKEN_AT_MOST:
        waited_seconds = host.wait_until_all_there()
        taken.append(_taken(measure, made, name))
        taken[-1].details[WAITED] = waited_seconds
        if _stolen(taken[-1]) <= host.most_stolen_cores():
            break
    best = min(taken, key=_stolen)
    best.details[TAKEN] = len(taken)
    return best


def _stolen(sample: Sample) -> float:
    return float(sample.details[STOLEN])


def _taken(measure: Measure, made: Stage, name: str) -> Sample:
    before = procfs.Clock.now()
    try:
        sample = measure.take(made.server(name, measure))
    except (ServerError, LoadError) as error:
        sample = Sample(failure=str(error))
    cores = procfs.Clock.now().since(before)
    sample.details |= {FOREIGN_LOAD: cores.others, STOLEN: cores.stolen}
    return sample


def _commands(scale: Scale, made: Stage, given: Upstreams) -> dict[str, str]:
    commands = {}
    for (name, far), server in made.servers.items():
        if (name, far) in made.broken:
            continue
        title = f"{name}, before the far upstream" if far else name
        commands[title] = " ".join(server.command())
        commands[f"{title}, its configuration"] = server.config()
    address, tag_path = given.near.address, given.warm.image.tag_path
    command = wrk.command(address, tag_path, scale.connections, scale.window_seconds)
    commands["manifest by tag and small blob"] = " ".join(command)
    commands["larger blobs"] = "bench/reader.py"
    return commands


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mirror-bench-", dir=parent) as folder:
        yield Path(folder)


def _progress(what: str, sample: Sample) -> None:
    said = sample.failure or ", ".join(f"{k} {v:.4g}" for k, v in sample.values.items())
    print(f"{what}: {said}", file=sys.stderr, flush=True)
