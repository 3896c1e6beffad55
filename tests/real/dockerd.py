"""Docker Engine with `registry-mirrors`: a dockerd of our own, without bridge or firewall rules."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.real.mirror import Mirror
from tests.real.programs import environment, need, need_containers, run, running


class Docker:
    """The command line of one dockerd. Asks the mirror for docker.io only, as Docker does."""

    def __init__(self, folder: Path) -> None:
        self._argv = [need("docker"), "-H", f"unix://{folder}/docker.sock"]
        self._env = {"DOCKER_CONFIG": str(folder / "config")}

    def pull(self, reference: str) -> None:
        self._docker("pull", "--quiet", reference)

    def forget(self) -> None:
        if images := self._docker("images", "--all", "--quiet").split():
            self._docker("rmi", "--force", *set(images))

    def digests(self, reference: str) -> set[str]:
        """The digest that the tag had, and the config's, which is the image's id."""
        (image,) = json.loads(self._docker("image", "inspect", reference))
        return {image["Id"], *(name.partition("@")[2] for name in image["RepoDigests"])}

    def run(self, reference: str) -> str:
        return self._docker("run", "--rm", "--network", "none", "--pull", "never", reference)

    def is_ready(self) -> bool:
        argv = [*self._argv, "version"]
        env = environment(self._env)
        return subprocess.run(argv, capture_output=True, check=False, env=env).returncode == 0

    def _docker(self, *argv: str) -> str:
        return run(*self._argv, *argv, env=self._env)


@contextmanager
def docker_engine(folder: Path, mirror: Mirror) -> Iterator[Docker]:
    """A dockerd for which `mirror` is the mirror of docker.io."""
    need_containers()
    docker = Docker(folder)
    argv = [
        need("dockerd"),
        "--iptables=false",
        "--bridge=none",
        "--storage-driver=vfs",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/docker.pid",
        f"--host=unix://{folder}/docker.sock",
        f"--registry-mirror=http://{mirror.address}",
    ]
    with running(argv, log=folder / "dockerd.log", ready=docker.is_ready):
        yield docker
