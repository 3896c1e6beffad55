"""skopeo, which copies an image's bytes as they are, to where a test can look at them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.real.image import digest_of
from tests.real.mirror import Mirror
from tests.real.programs import need, run


class Skopeo:
    """Copies the images of the mirror, named by path (mirror/docker.io/library/demo)."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        self._program = need("skopeo")
        self._mirror = mirror
        self._folder = folder

    def pull(self, reference: str) -> None:
        self.copy(reference, self._folder / "image")

    def copy(self, reference: str, target: Path) -> None:
        """All platforms, unchanged, into a folder with a file for each blob and manifest."""
        source = f"docker://{self._mirror.address}/{reference}"
        what = ("--all", "--preserve-digests", "--src-tls-verify=false")
        run(self._program, "--insecure-policy", "copy", *what, source, f"dir:{target}")

    def forget(self) -> None:
        shutil.rmtree(self._folder / "image", ignore_errors=True)

    def digests(self, reference: str) -> set[str]:
        """The hashes of the files that the last pull wrote."""
        return files_in(self._folder / "image")


def files_in(folder: Path) -> set[str]:
    """The digests of all files under `folder`."""
    return {digest_of(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
