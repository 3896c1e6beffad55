"""nginx twice: over static files, what a server can do at most, and as a cache that knows nothing
of registries."""

from pathlib import Path

from bench.content import MANIFEST_TYPE, Tree
from bench.server import Server


class Nginx(Server):
    """What both have in common: two workers, sendfile, connections that stay."""

    program = "nginx"
    version_flag = "-v"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.access_log = folder / "access.log"

    def arguments(self) -> list[str]:
        return ["-p", str(self.folder), "-c", str(self.config_path)]

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
{self.site()}
}}
"""

    def site(self) -> str:
        """The rest of the http block."""
        raise NotImplementedError


class NginxStatic(Nginx):
    """Files that answer like a registry, the upstream among them."""

    name = "nginx-static"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tree = Tree(folder / "root")

    def site(self) -> str:
        return f"""\
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
  }}"""


class NginxCache(Nginx):
    """`proxy_cache`: one download of each path at a time, for which the others wait as long as it
    takes; nothing is hashed, and nothing known of logins, tags or repositories."""

    name = "nginx-cache"

    def __init__(self, folder: Path, upstream_port: int) -> None:
        super().__init__(folder)
        self._upstream_port = upstream_port

    def site(self) -> str:
        return f"""\
  proxy_cache_path {self.folder}/data levels=1:2 keys_zone=cache:10m max_size=100g inactive=7d
    use_temp_path=off;
  upstream registry {{
    server 127.0.0.1:{self._upstream_port};
    keepalive 32;
  }}
  server {{
    listen 127.0.0.1:{self.port} backlog=1024;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_cache cache;
    proxy_cache_lock on;
    proxy_cache_lock_age 10m;
    proxy_cache_lock_timeout 10m;
    location / {{
      proxy_pass http://registry;
      proxy_cache_valid 200 1h;
    }}
  }}"""
