"""Who takes part."""

from pathlib import Path

from bench.caches import Cache, Distribution, DockerRegistry, Drayage, Mirror, TwoMirrors, Zot
from bench.nginx import NginxCache, NginxStatic
from bench.server import Server

_KINDS: tuple[type[Server], ...] = (
    Mirror,
    TwoMirrors,
    DockerRegistry,
    Distribution,
    Zot,
    Drayage,
    NginxCache,
    NginxStatic,
)


def field() -> dict[str, type[Server]]:
    """By name, in the order of the report; mirror-2 only where `mirror` knows of workers."""
    return {kind.name: kind for kind in _KINDS if kind is not TwoMirrors or TwoMirrors.is_known()}


def server(kind: type[Server], folder: Path, upstream_port: int, far: bool) -> Server:
    """One of them, not started. Near its upstream, mirror does not fetch ahead (README.md)."""
    if issubclass(kind, Mirror):
        return kind(folder, upstream_port, prefetch=far)
    if issubclass(kind, Cache | NginxCache):
        return kind(folder, upstream_port)
    if issubclass(kind, NginxStatic):
        return kind(folder)
    raise TypeError(kind)
