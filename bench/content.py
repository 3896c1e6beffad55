"""The images of the benchmark, as the folder of files that a static server turns into a registry.

Layers of one size differ in their last bytes only, so that making one costs a copy and no hashing:
caches tell them apart by their digest, and whoever hashes them has all of it to hash.

<root>/v2/library/bench/manifests/sha256:<hex>     by digest
<root>/v2/library/bench/manifests/t-<hex>          the same by tag: the tag names the digest, so
                                                   that a regex can make Docker-Content-Digest
<root>/v2/library/bench/blobs/sha256:<hex>
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

REPOSITORY = "library/bench"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
PIECE_BYTES = 4 << 20
UNIQUE_BYTES = 32


@dataclass(frozen=True)
class Blob:
    """A file of the registry, with its path in URLs."""

    digest: str
    size: int

    @property
    def path(self) -> str:
        return f"/v2/{REPOSITORY}/blobs/{self.digest}"


@dataclass(frozen=True)
class Image:
    manifest: Blob
    layers: tuple[Blob, ...]

    @property
    def tag_path(self) -> str:
        return f"/v2/{REPOSITORY}/manifests/t-{self.manifest.digest.removeprefix('sha256:')}"


class Tree:
    """Makes and removes images below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "v2" / REPOSITORY / "blobs"
        self._manifests = root / "v2" / REPOSITORY / "manifests"
        self._blobs.mkdir(parents=True)
        self._manifests.mkdir(parents=True)
        self._random = root / "random"
        self._random.touch()
        self._hashes: dict[int, _Hash] = {}

    def add_image(self, *layer_sizes: int) -> Image:
        """An image of random layers of these sizes, unlike any made before."""
        layers = tuple(self._add_random(size) for size in layer_sizes)
        config_digest = self._add(b'{"architecture":"amd64","os":"linux"}')
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPE, config_digest),
            "layers": [_descriptor(LAYER_TYPE, layer) for layer in layers],
        }
        body = json.dumps(manifest, indent=2).encode()
        hex_digest = hashlib.sha256(body).hexdigest()
        (self._manifests / f"sha256:{hex_digest}").write_bytes(body)
        (self._manifests / f"t-{hex_digest}").write_bytes(body)
        return Image(Blob(f"sha256:{hex_digest}", len(body)), layers)

    def remove_layers(self, image: Image) -> None:
        for layer in image.layers:
            (self._blobs / layer.digest).unlink()

    def copy_to(self, other: "Tree") -> None:
        shutil.copytree(self.root / "v2", other.root / "v2", dirs_exist_ok=True)

    def _add(self, body: bytes) -> Blob:
        blob = Blob(f"sha256:{hashlib.sha256(body).hexdigest()}", len(body))
        (self._blobs / blob.digest).write_bytes(body)
        return blob

    def _add_random(self, size: int) -> Blob:
        common, unique = size - UNIQUE_BYTES, os.urandom(UNIQUE_BYTES)
        hashed = self._hash_of_random(common).copy()
        hashed.update(unique)
        blob = Blob(f"sha256:{hashed.hexdigest()}", size)
        with self._random.open("rb") as source, (self._blobs / blob.digest).open("wb") as file:
            for start in range(0, common, PIECE_BYTES):
                file.write(source.read(min(PIECE_BYTES, common - start)))
            file.write(unique)
        return blob

    def _hash_of_random(self, size: int) -> "_Hash":
        """Of the first bytes of the random file, which grows as it must."""
        if size not in self._hashes:
            with self._random.open("ab") as file:
                while (missing := size - file.tell()) > 0:
                    file.write(os.urandom(min(PIECE_BYTES, missing)))
            self._hashes[size] = hashed = hashlib.sha256()
            with self._random.open("rb") as file:
                for start in range(0, size, PIECE_BYTES):
                    hashed.update(file.read(min(PIECE_BYTES, size - start)))
        return self._hashes[size]


def _descriptor(media_type: str, blob: Blob) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}
