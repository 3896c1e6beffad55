"""The mirror as its users run it: a process with a configuration file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.real.programs import answers, free_port, running
from tests.real.registry import Upstream
from tests.real.relay import Relay

SERVE = [sys.executable, "-m", "mirror", "serve"]
IMPORTABLE = {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "SSL_CERT_FILE": os.devnull,
    "NO_PROXY": "*",
}
"""The environment in which any working directory finds the package. Reading the certificates of the
system, which no upstream of a test has, takes a tenth of a start; nor does its proxy know any.
"""


@dataclass(frozen=True)
class Mirror:
    """A running mirror, asked through a relay that counts."""

    relay: Relay

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.relay.port}"


@contextmanager
def mirroring(
    upstream: Upstream,
    folder: Path,
    names: tuple[str, ...] = ("docker.io", "registry.example"),
    **rules: Any,
) -> Iterator[Mirror]:
    """An empty mirror which knows `upstream` under each of `names`, the first being the default.

    `rules` are the settings of each of them beside its endpoints.
    """
    port = free_port()
    entry = {"endpoints": [upstream.endpoint], "tag_ttl": "5m"} | rules
    settings = {
        "listen": f"127.0.0.1:{port}",
        "storage": {"path": str(folder / "cache")},
        "default_upstream": names[0],
        "upstreams": {name: dict(entry) for name in names},
    }
    with serving(settings, folder), Relay(port) as relay:
        yield Mirror(relay)


@contextmanager
def serving(settings: Mapping[str, Any], folder: Path) -> Iterator[None]:
    """`mirror serve` with these settings, ready."""
    config = folder / "mirror.yaml"
    config.write_text(yaml.safe_dump(dict(settings)))
    port = int(settings["listen"].rpartition(":")[2])
    with running(
        [*SERVE, "--config", str(config)],
        log=folder / "mirror.log",
        ready=lambda: answers(port, "/readyz"),
        env=IMPORTABLE,
    ):
        yield
