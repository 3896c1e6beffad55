"""crane, the command line of go-containerregistry."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.real.mirror import Mirror
from tests.real.programs import BUILT, need, run
from tests.real.skopeo import files_in


class Crane:
    """Pulls the images of the mirror, named by path (mirror/docker.io/library/demo)."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        self._program = need("crane", BUILT)
        self._mirror = mirror
        self._folder = folder
        self._env = {"DOCKER_CONFIG": str(folder / "config")}

    def pull(self, reference: str) -> None:
        self.copy(reference, self._folder / "image")

    def copy(self, reference: str, target: Path) -> None:
        """All platforms, unchanged, into an OCI layout."""
        self._crane("pull", "--format=oci", self._name(reference), str(target))

    def forget(self) -> None:
        shutil.rmtree(self._folder / "image", ignore_errors=True)

    def digests(self, reference: str) -> set[str]:
        """The hashes of the files that the last pull wrote."""
        return files_in(self._folder / "image")

    def digest(self, reference: str) -> str:
        """What the tag names, by HEAD."""
        return self._crane("digest", self._name(reference)).strip()

    def validate(self, reference: str) -> None:
        """Reads the whole image and checks every digest and size in it."""
        self._crane("validate", "--remote", self._name(reference))

    def _name(self, reference: str) -> str:
        return f"{self._mirror.address}/{reference}"

    def _crane(self, *argv: str) -> str:
        return run(self._program, *argv, env=self._env)
