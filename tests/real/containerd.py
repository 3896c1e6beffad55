"""containerd and its `ctr`, sent to the mirror by hosts.toml, with folders and a socket of its own.

Version 1 is what Debian has; version 2 is built with Go, pulls through its transfer service, and is
told to fetch each layer in parallel ranges.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.real.image import HERE, digest_of
from tests.real.mirror import Mirror
from tests.real.programs import (
    BUILT,
    find,
    lacking,
    listens,
    need,
    need_containers,
    run,
    running,
)

CHUNK = 256 * 1024
"""The size of version 2's parallel ranges."""

_COMMON = """
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/containerd.sock"
"""

_CONFIG = {
    1: 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' + _COMMON,
    2: f"""
version = 3
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
{_COMMON}
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 4
  concurrent_layer_fetch_buffer = {CHUNK}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{HERE}"
  snapshotter = "native"
""",
}

_HOSTS = """
server = "http://{mirror}"
[host."http://{mirror}"]
  capabilities = ["pull", "resolve"]
"""


class Ctr:
    """The command line of one containerd. The mirror hears of the registry by `?ns=`."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._folder = folder
        socket = f"{folder}/containerd.sock"
        self._argv = [need("ctr", program.parent), "--address", socket, "--namespace", "test"]

    def pull(self, reference: str) -> None:
        hosts = str(self._folder / "hosts")
        self._ctr("images", "pull", "--hosts-dir", hosts, "--snapshotter", "native", reference)

    def forget(self) -> None:
        if images := self._ctr("images", "ls", "--quiet").split():
            self._ctr("images", "rm", "--sync", *images)

    def digests(self, reference: str) -> set[str]:
        """The hashes of all files in its content store."""
        blobs = self._folder / "root/io.containerd.content.v1.content/blobs/sha256"
        return {digest_of(path.read_bytes()) for path in blobs.glob("*")}

    def run(self, reference: str) -> str:
        return self._ctr("run", "--rm", "--snapshotter", "native", reference, secrets.token_hex(8))

    def _ctr(self, *argv: str) -> str:
        return run(*self._argv, *argv)


@contextmanager
def containerd(major: int, folder: Path, mirror: Mirror) -> Iterator[Ctr]:
    """A containerd of that major version, for which `mirror` stands for every registry."""
    need_containers()
    program = _need_containerd(major)
    home = folder / f"c{major}"
    config, hosts = home / "config.toml", home / "hosts/_default/hosts.toml"
    hosts.parent.mkdir(parents=True)
    config.write_text(_CONFIG[major].format(folder=home))
    hosts.write_text(_HOSTS.format(mirror=mirror.address))
    with running(
        [str(program), "--config", str(config)],
        log=folder / f"containerd-{major}.log",
        ready=lambda: listens(home / "containerd.sock"),
        # So that it finds the shim of its own version, which lies beside it.
        env={"PATH": os.pathsep.join((str(program.parent), os.environ["PATH"]))},
    ):
        yield Ctr(program, home)


def _need_containerd(major: int) -> Path:
    fitting = [path for path in find("containerd", BUILT) if _major(path) == major]
    if not fitting or not fitting[0].with_name("containerd-shim-runc-v2").exists():
        lacking(f"containerd {major}.x and its shim")
    return fitting[0]


def _major(program: Path) -> int:
    version = re.search(r" v?(\d+)\.\d", run(str(program), "--version"))
    return int(version[1]) if version else 0
