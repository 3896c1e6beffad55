"""Measures of what no cache has yet: pulled as clients do, the manifest by its tag, then layers."""

from abc import abstractmethod

from bench import load, procfs, reader
from bench.content import Image
from bench.measures import GIGA, Measure, Sample, WarmImage
from bench.probe import Probe, percentile
from bench.reader import Crowd, Want
from bench.scale import Scale
from bench.server import Server
from bench.upstream import FarUpstream, Fetched, Upstream

MIB = 1 << 20
PROBE_INTERVAL_SECONDS = 0.02


class Arrival(Measure):
    """Images of `sizes` that are made for this sample, pulled, compared and removed again."""

    cold = True
    sizes: tuple[int, ...]
    images = 1

    def take(self, server: Server) -> Sample:
        images = [self.upstream.tree.add_image(*self.sizes) for _ in range(self.images)]
        try:
            self.upstream.settle()
            return self._measured(server, images)
        finally:
            for image in images:
                self.upstream.tree.remove_layers(image)

    def _measured(self, server: Server, images: list[Image]) -> Sample:
        layers = [layer for image in images for layer in image.layers]
        pids = server.pids
        cpu_before = procfs.cpu_seconds(pids)
        self.upstream.forget()
        sample = self.pull(server, images)
        self.upstream.settle()  # a copy in the background belongs to what the blob costs
        fetched = self.upstream.fetched(*layers)
        cpu_seconds = procfs.cpu_seconds(pids) - cpu_before
        if server is not self.upstream:
            for layer in layers:
                load.check(server.address, layer.path, self.upstream.tree.root)
        size = sum(layer.size for layer in layers)
        sample.values |= self.costs(fetched.sent_bytes / size, cpu_seconds / (size / GIGA), pids)
        sample.details |= _details(fetched, cpu_seconds)
        return sample

    @abstractmethod
    def pull(self, server: Server, images: list[Image]) -> Sample:
        """The measuring itself."""

    @abstractmethod
    def costs(self, copies: float, cpu: float, pids: list[int]) -> dict[str, float]:
        """The rows known afterwards, of upstream bytes by bytes and CPU seconds by gigabyte."""


def _details(fetched: Fetched, cpu_seconds: float) -> dict[str, float | str]:
    return {
        "upstream GETs": fetched.gets,
        "upstream HEADs": fetched.heads,
        "server CPU s": cpu_seconds,
    }


def _crowd_details(crowd: Crowd) -> dict[str, float | str]:
    return {
        "first answer, s": min(crowd.first_byte_seconds),
        "last answer begins, s": max(crowd.first_byte_seconds),
        "generator CPU s": crowd.cpu_seconds,
    }


class Pull(Arrival):
    """One client pulls an image. `row` is what its rows' keys begin with; `cpu`: of three rows."""

    def __init__(
        self, scale: Scale, upstream: Upstream, row: str, sizes: tuple[int, ...], cpu: bool = False
    ) -> None:
        super().__init__(scale, upstream)
        self.sizes = sizes
        self.far = isinstance(upstream, FarUpstream)
        self.rows = (f"{row}_seconds", f"{row}_copies", *([f"{row}_cpu"] if cpu else []))

    def pull(self, server: Server, images: list[Image]) -> Sample:
        crowd = reader.pull(server.address, images[0], self.scale.copy_bodies)
        return Sample({self.rows[0]: crowd.seconds}, _crowd_details(crowd))

    def costs(self, copies: float, cpu: float, pids: list[int]) -> dict[str, float]:
        return dict(zip(self.rows[1:], (copies, cpu), strict=False))


class Herd(Arrival):
    """Many clients pull the same image at the same time."""

    rows = ("herd_seconds", "herd_copies", "herd_peak_mib", "herd_anonymous_mib")

    def __init__(self, scale: Scale, upstream: Upstream) -> None:
        super().__init__(scale, upstream)
        self.sizes = (scale.herd_bytes,)

    def pull(self, server: Server, images: list[Image]) -> Sample:
        procfs.reset_peak(server.pids)
        crowd_of_one = images * self.scale.herd_clients
        with procfs.AnonymousMemory(server.pids) as anonymous:
            crowd = reader.pull_at_once(server.address, crowd_of_one, self.scale.copy_bodies)
        values = {
            "herd_seconds": crowd.seconds,
            "herd_anonymous_mib": anonymous.peak_bytes / MIB,
        }
        return Sample(values, _crowd_details(crowd))

    def costs(self, copies: float, cpu: float, pids: list[int]) -> dict[str, float]:
        return {
            "herd_copies": copies,
            "herd_peak_mib": procfs.memory_bytes(pids, "VmHWM") / MIB,
        }


class Busy(Arrival):
    """Some clients pull an image each, while others ask for something small and warm."""

    rows = ("busy_p99_ms", "busy_seconds")

    def __init__(self, scale: Scale, upstream: Upstream, warm: WarmImage) -> None:
        super().__init__(scale, upstream)
        self.sizes = (scale.large_bytes,)
        self.images = scale.busy_downloads
        self._small = warm.small

    def pull(self, server: Server, images: list[Image]) -> Sample:
        small = Want(self._small.path, self._small.size)
        with Probe(server.address, small, PROBE_INTERVAL_SECONDS) as probe:
            crowd = reader.pull_at_once(server.address, images, self.scale.copy_bodies)
        values = {
            "busy_p99_ms": percentile(probe.seconds, 0.99) * 1000,
            "busy_seconds": crowd.seconds,
        }
        answers: dict[str, float | str] = {
            "small answers": len(probe.seconds),
            "small answers, median, ms": percentile(probe.seconds, 0.5) * 1000,
            "small answers, longest, ms": max(probe.seconds) * 1000,
        }
        return Sample(values, answers | _crowd_details(crowd))

    def costs(self, copies: float, cpu: float, pids: list[int]) -> dict[str, float]:
        return {}


def cold_measures(
    scale: Scale, upstream: Upstream, far: FarUpstream, warm: WarmImage
) -> list[Measure]:
    layers = (scale.layer_bytes,) * scale.layers
    return [
        Pull(scale, upstream, "cold", (scale.large_bytes,), cpu=True),
        Pull(scale, upstream, "image", layers),
        Herd(scale, upstream),
        Busy(scale, upstream, warm),
        Pull(scale, far, "far_layer", (scale.herd_bytes,)),
        Pull(scale, far, "far_image", layers),
    ]
