"""What is measured. Each measure takes one server once and gives the values of one or more rows."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from bench import load, procfs
from bench.content import Blob, Image
from bench.scale import Scale
from bench.servers import Server
from bench.upstream import Upstream

GIGA = 1e9
MIB = 1 << 20


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
    """`cold` says that nginx stands for the upstream itself here: clients with no cache between."""

    cold: ClassVar[bool]
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
        procfs.settle()
        self.upstream.forget()
        sample = self.load(server)
        sample.details["upstream requests"] = self.upstream.requests()
        for layer in self.warm.image.layers:
            if self.upstream.fetched(layer).gets:
                raise load.LoadError("it was not warm: the upstream was asked for a layer")
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
        rate = load.request_rate(
            server.address, self.path, self.scale.connections, self.scale.window_seconds
        )
        return Sample({self.rows[0]: rate.per_second}, {"p50": rate.p50, "p99": rate.p99})


class Throughput(Warm):
    """Gigabytes per second, by our reader."""

    def __init__(
        self,
        scale: Scale,
        upstream: Upstream,
        warm: WarmImage,
        row: str,
        blob: Blob,
        clients: int,
    ) -> None:
        super().__init__(scale, upstream, warm)
        self.rows = (row,)
        self.blob = blob
        self.clients = clients

    def load(self, server: Server) -> Sample:
        crowd = load.stream(
            server.address,
            self.blob,
            self.clients,
            self.scale.window_seconds,
            self.scale.copy_bodies,
        )
        value = crowd.body_bytes / crowd.seconds / GIGA
        return Sample({self.rows[0]: value}, {"generator cores": crowd.cpu_seconds / crowd.seconds})


class Arrival(Measure):
    """Clients want one blob that no cache has; its manifest was pulled before, as clients do."""

    cold = True
    size: int
    clients: int

    def take(self, server: Server) -> Sample:
        image = self.upstream.tree.add_image(self.size)
        try:
            load.check(server.address, image.tag_path, image.manifest)
            procfs.settle()
            return self._measured(server, image.layers[0])
        finally:
            self.upstream.tree.remove_layers(image)

    def _measured(self, server: Server, blob: Blob) -> Sample:
        pids = server.pids
        self.upstream.forget()
        procfs.reset_peak(pids)
        cpu_before = procfs.cpu_seconds(pids)
        with procfs.AnonymousMemory(pids) as anonymous:
            crowd = load.download(server.address, blob, self.clients, self.scale.copy_bodies)
        procfs.settle()  # a copy in the background belongs to what the blob costs
        fetched = self.upstream.fetched(blob)
        peak_bytes = procfs.memory_bytes(pids, "VmHWM")
        cpu_seconds = procfs.cpu_seconds(pids) - cpu_before
        load.check(server.address, blob.path, blob)
        return Sample(
            self.values(crowd, fetched.sent_bytes / blob.size, peak_bytes, anonymous.peak_bytes),
            {
                "first byte, first client, s": min(crowd.first_byte_seconds),
                "first byte, last client, s": max(crowd.first_byte_seconds),
                "upstream GETs": fetched.gets,
                "upstream HEADs": fetched.heads,
                "server CPU s": cpu_seconds,
                "generator CPU s": crowd.cpu_seconds,
            },
        )

    @abstractmethod
    def values(
        self, crowd: load.Crowd, copies: float, peak_bytes: int, anonymous_bytes: int
    ) -> dict[str, float]:
        """The rows' values of one arrival; `copies`: upstream bytes as a multiple of the blob."""


class Cold(Arrival):
    rows = ("cold_seconds", "cold_copies")
    clients = 1

    def __init__(self, scale: Scale, upstream: Upstream) -> None:
        super().__init__(scale, upstream)
        self.size = scale.large_bytes

    def values(
        self, crowd: load.Crowd, copies: float, peak_bytes: int, anonymous_bytes: int
    ) -> dict[str, float]:
        return {"cold_seconds": crowd.seconds, "cold_copies": copies}


class Herd(Arrival):
    rows = ("herd_seconds", "herd_copies", "herd_peak_mib", "herd_anonymous_mib")

    def __init__(self, scale: Scale, upstream: Upstream) -> None:
        super().__init__(scale, upstream)
        self.size = scale.herd_bytes
        self.clients = scale.herd_clients

    def values(
        self, crowd: load.Crowd, copies: float, peak_bytes: int, anonymous_bytes: int
    ) -> dict[str, float]:
        return {
            "herd_seconds": crowd.seconds,
            "herd_copies": copies,
            "herd_peak_mib": peak_bytes / MIB,
            "herd_anonymous_mib": anonymous_bytes / MIB,
        }


def all_measures(scale: Scale, upstream: Upstream, warm: WarmImage) -> list[Measure]:
    """In the order in which each round takes them."""
    common = (scale, upstream, warm)
    return [
        Requests(*common, "manifest_rate", warm.image.tag_path),
        Requests(*common, "small_rate", warm.small.path),
        Throughput(*common, "middle_gbps", warm.middle, scale.connections),
        Throughput(*common, "large_1_gbps", warm.large, 1),
        Throughput(*common, "large_4_gbps", warm.large, 4),
        Cold(scale, upstream),
        Herd(scale, upstream),
    ]
