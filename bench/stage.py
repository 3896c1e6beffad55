"""What is up and running while the measures of a round are taken."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import load
from bench.content import Image
from bench.field import server
from bench.load import LoadError
from bench.measures import Measure, WarmImage
from bench.nginx import NginxStatic
from bench.scale import Scale
from bench.server import Server, ServerError
from bench.upstream import FarUpstream, Upstream

Place = tuple[str, bool]
"""A server's name, and whether it is the one before the far upstream."""


@dataclass(frozen=True)
class Upstreams:
    near: Upstream
    far: FarUpstream
    warm: WarmImage


@dataclass
class Stage:
    """The servers, and why those that could not be made ready take no part."""

    upstreams: Upstreams
    servers: dict[Place, Server] = field(default_factory=dict)
    broken: dict[Place, str] = field(default_factory=dict)

    def server(self, name: str, measure: Measure) -> Server:
        """Running. Raises ServerError when it cannot be had."""
        if measure.cold and name == NginxStatic.name:
            return measure.upstream
        place = name, measure.far
        if place in self.broken:
            raise ServerError(self.broken[place])
        found = self.servers[place]
        if not found.alive:
            found.start()
        return found


@contextmanager
def upstreams(scale: Scale, folder: Path) -> Iterator[Upstreams]:
    """Raises ServerError: without them nothing can be measured."""
    near, far = Upstream(folder / "near"), FarUpstream(folder / "far")
    image = near.tree.add_image(scale.small_bytes, scale.middle_bytes, scale.large_bytes)
    with ExitStack() as stack:
        for upstream in (near, far):
            stack.callback(upstream.stop)
            upstream.start()
        yield Upstreams(near, far, WarmImage(image, *image.layers))


@contextmanager
def stage(kinds: dict[str, type[Server]], folder: Path, given: Upstreams) -> Iterator[Stage]:
    """All servers with empty caches, of which the near ones are then made warm."""
    made = Stage(given)
    with ExitStack() as stack:
        for place in [(name, far) for name in kinds for far in (False, True)]:
            name, far = place
            if far and name == NginxStatic.name:
                continue
            upstream = given.far if far else given.near
            one = server(kinds[name], folder / f"{name}-{far}", upstream.port, far)
            stack.callback(one.stop)
            made.servers[place] = one
            try:
                one.start()
                if not far:
                    _make_warm(one, given)
            except (ServerError, LoadError) as error:
                made.broken[place] = str(error)
        yield made


def _make_warm(one: Server, given: Upstreams) -> None:
    """Twice: the first fills the cache, the second sees that the cache has the right bytes."""
    if isinstance(one, NginxStatic):
        given.near.tree.copy_to(one.tree)
    for _ in range(2):
        _check(one, given.warm.image, given.near.tree.root)
        given.near.settle()


def _check(one: Server, image: Image, root: Path) -> None:
    load.check(one.address, image.tag_path, root)
    for layer in image.layers:
        load.check(one.address, layer.path, root)
