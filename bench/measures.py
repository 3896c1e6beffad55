"""What is measured. Each measure takes one server once and gives the values of one or more rows."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from bench import procfs, reader, wrk
from bench.content import Blob, Image
from bench.load import LoadError
from bench.reader import Crowd
from bench.scale import Scale
from bench.server import Server
from bench.upstream import Upstream

GIGA = 1e9


@dataclass
class Sample:
    """One server, one round: values by row, and what explains them; or why there are none."""

    values: dict[str, float] = field(default_factory=dict)
    details: dict[str, float | str] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class WarmImage:
    """The image that every server holds: one layer of each size."""

    image: Image
    small: Blob
    middle: Blob
    large: Blob


class Measure(ABC):
    """`cold`: the upstream itself stands for nginx-static here; `far`: it is the far one."""

    cold: ClassVar[bool]
    far = False
    rows: tuple[str, ...]

    def __init__(self, scale: Scale, upstream: Upstream) -> None:
        self.scale = scale
        self.upstream = upstream

    @abstractmethod
    def take(self, server: Server) -> Sample:
        """Raises LoadError when the server fails the measure."""


class Warm(Measure):
    """Measures of what is cached: the upstream must not be asked for content meanwhile."""

    cold = False

    def __init__(self, scale: Scale, upstream: Upstream, warm: WarmImage) -> None:
        super().__init__(scale, upstream)
        self.warm = warm

    def take(self, server: Server) -> Sample:
        self.upstream.settle()
        self.upstream.forget()
        sample = self.load(server)
        sample.details["upstream requests"] = self.upstream.requests()
        if self.upstream.fetched(*self.warm.image.layers).gets:
            raise LoadError("it was not warm: the upstream was asked for a layer")
        return sample

    @abstractmethod
    def load(self, server: Server) -> Sample:
        """The measuring itself."""


class Requests(Warm):
    """Requests per second, by wrk."""

    def __init__(
        self, scale: Scale, upstream: Upstream, warm: WarmImage, row: str, path: str
    ) -> None:
        super().__init__(scale, upstream, warm)
        self.rows = (row,)
        self.path = path

    def load(self, server: Server) -> Sample:
        rate = wrk.request_rate(
            server.address, self.path, self.scale.connections, self.scale.window_seconds
        )
        return Sample({self.rows[0]: rate.per_second}, {"p50": rate.p50, "p99": rate.p99})


class Throughput(Warm):
    """Gigabytes per second, by our reader; with a second row, the CPU seconds that each costs."""

    def __init__(
        self,
        scale: Scale,
        upstream: Upstream,
        warm: WarmImage,
        rows: tuple[str, ...],
        blob: Blob,
        clients: int,
    ) -> None:
        super().__init__(scale, upstream, warm)
        self.rows = rows
        self.blob = blob
        self.clients = clients

    def load(self, server: Server) -> Sample:
        pids = server.pids
        cpu_before = procfs.cpu_seconds(pids)
        scale = self.scale
        crowd = reader.stream(
            server.address, self.blob, self.clients, scale.window_seconds, scale.copy_bodies
        )
        cpu_seconds = procfs.cpu_seconds(pids) - cpu_before
        values = throughput(crowd, cpu_seconds)
        return Sample(
            dict(zip(self.rows, values, strict=False)),
            {"server CPU s": cpu_seconds, "generator cores": crowd.cpu_seconds / crowd.seconds},
        )


def throughput(crowd: Crowd, cpu_seconds: float) -> tuple[float, float]:
    """Gigabytes per second, and the server's CPU seconds for each. Raises LoadError."""
    if not crowd.body_bytes:
        raise LoadError(f"nothing came within {crowd.seconds:.1f} s")
    gigabytes = crowd.body_bytes / GIGA
    return gigabytes / crowd.seconds, cpu_seconds / gigabytes


def warm_measures(scale: Scale, upstream: Upstream, warm: WarmImage) -> list[Measure]:
    common = (scale, upstream, warm)
    return [
        Requests(*common, "manifest_rate", warm.image.tag_path),
        Requests(*common, "small_rate", warm.small.path),
        Throughput(*common, ("middle_gbps",), warm.middle, scale.connections),
        Throughput(*common, ("large_1_gbps",), warm.large, 1),
        Throughput(*common, ("large_4_gbps", "large_cpu"), warm.large, 4),
    ]
