"""The registries that are measured as pull-through caches, each as its documentation recommends."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from bench.server import PROJECT, Server, ServerError, find, said_by


class Cache(Server):
    def __init__(self, folder: Path, upstream_port: int) -> None:
        super().__init__(folder)
        self.upstream = f"http://127.0.0.1:{upstream_port}"
        self.data = folder / "data"


class Mirror(Cache):
    """With its defaults but for `settings`, further top-level lines, and `prefetch`."""

    name = "mirror"
    program = sys.executable
    ready_path = "/readyz"
    settings: ClassVar[str] = ""

    def __init__(self, folder: Path, upstream_port: int, prefetch: bool) -> None:
        super().__init__(folder, upstream_port)
        self._prefetch = prefetch

    def config(self) -> str:
        return f"""\
listen: 127.0.0.1:{self.port}
storage:
  path: {self.data}
default_upstream: docker.io
upstreams:
  docker.io:
    endpoints: ["{self.upstream}"]
    tag_ttl: 1h
    prefetch: {"true" if self._prefetch else "false"}
log:
  level: info
  format: json
{self.settings}"""

    def arguments(self) -> list[str]:
        return ["-m", "mirror", "serve", "--config", str(self.config_path)]

    @classmethod
    def version(cls) -> str:
        script = "import mirror; print(getattr(mirror, '__version__', 'unknown'))"
        version = said_by(sys.executable, "-c", script).strip().rpartition("\n")[2]
        commit = said_by("/usr/bin/git", "rev-parse", "--short", "HEAD").strip()
        changed = said_by("/usr/bin/git", "status", "--porcelain", "--", "mirror").strip()
        return f"{version} ({commit}{', with changes' if changed else ''})"


class TwoMirrors(Mirror):
    """The same as two worker processes."""

    name = "mirror-2"
    settings = "workers: 2\n"

    @classmethod
    def is_known(cls) -> bool:
        """Whether this `mirror` takes the setting."""
        command = [sys.executable, "-m", "mirror", "check-config", "--config", "/dev/stdin"]
        config = f"storage:\n  path: /tmp\n{cls.settings}"
        done = subprocess.run(
            command, input=config, text=True, capture_output=True, check=False, cwd=PROJECT
        )
        return done.returncode == 0


class DockerRegistry(Cache):
    """CNCF distribution 2.8, with the cache settings of Debian's package."""

    name = "docker-registry"
    program = "docker-registry"

    def config(self) -> str:
        return f"""\
version: 0.1
log:
  level: info
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: {self.data}
  delete:
    enabled: true
http:
  addr: 127.0.0.1:{self.port}
proxy:
  remoteurl: {self.upstream}
"""

    def arguments(self) -> list[str]:
        return ["serve", str(self.config_path)]


class Distribution(DockerRegistry):
    """CNCF distribution 3, configured alike; it would send traces to a collector else."""

    name = "distribution-3"
    program = "registry"
    environment: ClassVar = {"OTEL_TRACES_EXPORTER": "none"}


class Zot(Cache):
    """Its `sync` on demand, with the numbers of its example for Docker Hub but no limit on requests
    a second; tags are fresh for an hour, as mirror's."""

    name = "zot"
    program = "zot"

    @classmethod
    def version(cls) -> str:
        """The commit that the build wrote into it, or else the version of its module."""
        try:
            path = find(cls.program)
        except ServerError:
            return "missing"
        said = said_by(path, "--version") + said_by("/usr/bin/env", "go", "version", "-m", path)
        found = re.search(r'"commit":"([^"]+)"|\smod\s+\S+\s+(v\S+)', said)
        return next(filter(None, found.groups())) if found else "unknown"

    def config(self) -> str:
        registry = {
            "urls": [self.upstream],
            "onDemand": True,
            "tlsVerify": False,
            "manifestCheckInterval": "1h",
            "maxRetries": 5,
            "retryDelay": "1s",
            "maxRetryDelay": "30s",
            "syncTimeout": "10m",
            "reqConcurrent": 30,
            "disableHTTP2": True,
            "maxIdleConnsPerHost": 30,
            "content": [{"prefix": "**"}],
        }
        config = {
            "distSpecVersion": "1.1.1",
            "storage": {"rootDirectory": str(self.data)},
            "http": {"address": "127.0.0.1", "port": str(self.port)},
            "log": {"level": "info"},
            "extensions": {"sync": {"enable": True, "registries": [registry]}},
        }
        return json.dumps(config, indent=2) + "\n"

    def arguments(self) -> list[str]:
        return ["serve", str(self.config_path)]


class Drayage(Cache):
    """As `drayage init` writes it, but tags are fresh for an hour, as mirror's."""

    name = "drayage"
    program = "drayage"

    def __init__(self, folder: Path, upstream_port: int) -> None:
        super().__init__(folder, upstream_port)
        self.data.mkdir()  # it does not make it itself

    def config(self) -> str:
        return f"""\
listen = "127.0.0.1:{self.port}"
cache_dir = "{self.data}"
manifest_ttl_seconds = 3600

[upstreams.docker_io]
registry = "{self.upstream}"
"""

    def arguments(self) -> list[str]:
        return ["serve", "--config", str(self.config_path)]
