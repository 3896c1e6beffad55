"""podman with mirrors in registries.conf, which stand for every registry and not only docker.io."""

from __future__ import annotations

import json
from pathlib import Path

from tests.real.mirror import Mirror
from tests.real.programs import need, need_containers, run

_REGISTRY = """
[[registry]]
prefix = "{name}"
location = "{name}"
[[registry.mirror]]
location = "{mirror}/{name}"
insecure = true
"""

# Podman would raise these limits beyond what root may where CAP_SYS_RESOURCE is missing.
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


class Podman:
    """A podman whose images and settings all lie in `folder`."""

    def __init__(self, folder: Path, mirror: Mirror, *names: str) -> None:
        need_containers()
        registries = folder / "registries.conf"
        registries.write_text(
            "".join(_REGISTRY.format(name=name, mirror=mirror.address) for name in names)
        )
        self._env = {"CONTAINERS_REGISTRIES_CONF": str(registries)}
        self._argv = [
            need("podman"),
            f"--root={folder}/root",
            f"--runroot={folder}/runroot",
            f"--tmpdir={folder}/state",
            f"--runtime={need('runc')}",
            "--storage-driver=vfs",
            "--events-backend=file",
            "--cgroup-manager=cgroupfs",
        ]

    def pull(self, reference: str) -> None:
        self._podman("pull", "--quiet", reference)

    def forget(self) -> None:
        self._podman("rmi", "--all", "--force")

    def digests(self, reference: str) -> set[str]:
        """The index's, the manifest's, and the config's, which is the image's id."""
        (image,) = json.loads(self._podman("image", "inspect", reference))
        names = (name.partition("@")[2] for name in image["RepoDigests"])
        return {f"sha256:{image['Id']}", image["Digest"], *names}

    def run(self, reference: str) -> str:
        return self._podman("run", "--rm", "--network=none", "--pull=never", *_LIMITS, reference)

    def _podman(self, *argv: str) -> str:
        return run(*self._argv, *argv, env=self._env)
