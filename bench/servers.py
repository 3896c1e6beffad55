"""The servers that are measured: how each is configured, started and stopped.

All log each request to a file, all listen on loopback, all keep their files below one folder.
"""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from bench import procfs
from bench.content import MANIFEST_TYPE, Tree

START_LIMIT_SECONDS = 30
STOP_LIMIT_SECONDS = 15
PROJECT = Path(__file__).resolve().parent.parent


class ServerError(Exception):
    """A server that does not start, with the end of its log."""


class Server(ABC):
    name: ClassVar[str]
    ready_path: ClassVar[str] = "/v2/"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.port = _free_port()
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def config(self) -> str:
        """The text of its configuration file."""

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it in the foreground."""

    @property
    def config_path(self) -> Path:
        return self.folder / "config"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """All its processes."""
        return procfs.family(self._process.pid) if self._process is not None else []

    def start(self) -> None:
        """Returns when it answers; raises ServerError when it does not."""
        self.config_path.write_text(self.config())
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MIRROR_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, cwd=PROJECT, env=environment
            )
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while not self._ready():
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{self.name} did not start: {self._end_of_log()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """May be called always."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection(*self.address, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", self.ready_path)
            return connection.getresponse().status == 200
        return False

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])


class Mirror(Server):
    name = "mirror"
    ready_path = "/readyz"

    def __init__(self, folder: Path, upstream_port: int) -> None:
        super().__init__(folder)
        self._upstream_port = upstream_port

    def config(self) -> str:
        return f"""\
listen: 127.0.0.1:{self.port}
storage:
  path: {self.folder / "data"}
default_upstream: docker.io
upstreams:
  docker.io:
    endpoints: ["http://127.0.0.1:{self._upstream_port}"]
    tag_ttl: 1h
    prefetch: false
log:
  level: info
  format: json
"""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "mirror", "serve", "--config", str(self.config_path)]


class DockerRegistry(Server):
    """CNCF distribution as a pull-through cache, with the cache settings of Debian's package."""

    name = "docker-registry"

    def __init__(self, folder: Path, upstream_port: int) -> None:
        super().__init__(folder)
        self._upstream_port = upstream_port

    def config(self) -> str:
        return f"""\
version: 0.1
log:
  level: info
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: {self.folder / "data"}
  delete:
    enabled: true
http:
  addr: 127.0.0.1:{self.port}
proxy:
  remoteurl: http://127.0.0.1:{self._upstream_port}
"""

    def command(self) -> list[str]:
        return ["/usr/bin/docker-registry", "serve", str(self.config_path)]


class Nginx(Server):
    """Files that answer like a registry: what a server can do at most, and the upstream of all."""

    name = "nginx"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tree = Tree(folder / "root")
        self.access_log = folder / "access.log"

    def config(self) -> str:
        return f"""\
user root;
daemon off;
worker_processes 2;
pid {self.folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  log_format bench '$request_method $uri $status $body_bytes_sent';
  access_log {self.access_log} bench;
  client_body_temp_path {self.folder}/temp-body;
  proxy_temp_path {self.folder}/temp-proxy;
  fastcgi_temp_path {self.folder}/temp-fastcgi;
  uwsgi_temp_path {self.folder}/temp-uwsgi;
  scgi_temp_path {self.folder}/temp-scgi;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000000;
  types {{ }}
  server {{
    listen 127.0.0.1:{self.port} backlog=1024;
    root {self.tree.root};
    location = /v2/ {{
      default_type application/json;
      add_header Docker-Distribution-Api-Version registry/2.0;
      return 200 '{{}}';
    }}
    location ~ "^/v2/.+/manifests/(?:sha256:|t-)(?<hex>[0-9a-f]{{64}})$" {{
      default_type {MANIFEST_TYPE};
      add_header Docker-Content-Digest sha256:$hex;
    }}
    location ~ "^/v2/.+/blobs/sha256:(?<hex>[0-9a-f]{{64}})$" {{
      default_type application/octet-stream;
      add_header Docker-Content-Digest sha256:$hex;
    }}
  }}
}}
"""

    def command(self) -> list[str]:
        return ["/usr/sbin/nginx", "-p", str(self.folder), "-c", str(self.config_path)]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
