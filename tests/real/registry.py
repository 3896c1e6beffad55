"""The upstream: Debian's docker-registry (CNCF distribution), asked through a relay that counts."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.real.programs import answers, free_port, need, running
from tests.real.relay import Relay

_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


@dataclass(frozen=True)
class Upstream:
    """A registry: pushed to at `port`, mirrored through `relay`."""

    port: int
    relay: Relay

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.relay.port}"

    def read(self, path: str) -> bytes:
        """What the registry itself answers, past the relay."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers={"Accept": ", ".join(_MANIFESTS)})
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, f"GET {path}: {answer.status} {body!r}"
            return body
        finally:
            connection.close()


@contextmanager
def upstream_registry(folder: Path) -> Iterator[Upstream]:
    """An empty registry that keeps its blobs in `folder`."""
    program = need("docker-registry")
    port = free_port()
    config = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "registry.yml").write_text(yaml.safe_dump(config))
    with (
        running(
            [program, "serve", str(folder / "registry.yml")],
            log=folder / "registry.log",
            ready=lambda: answers(port, "/v2/"),
        ),
        Relay(port) as relay,
    ):
        yield Upstream(port, relay)
