"""Images that really run: made here byte by byte, so that a test knows every digest beforehand.

An image of this machine's platform has three layers (busybox with a root folder, 3 MiB of noise, a
few bytes) and prints its `greeting` when the noise that arrived is the noise that was made.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from tests.real.programs import need, run
from tests.real.registry import Upstream

Kind = Literal["manifest", "index", "docker"]
"""A lone OCI manifest, an OCI index of two platforms, a lone Docker schema 2 manifest."""

KINDS: tuple[Kind, ...] = get_args(Kind)

HERE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
ELSEWHERE = {"amd64": "arm64", "arm64": "amd64"}[HERE]

_OCI = "application/vnd.oci.image."
_NOISE_SIZE = 3 * 1024 * 1024
_APPLETS = ("cat", "echo", "sh", "sha256sum")
_COMMAND = ["/bin/sh", "-c", "sha256sum -c -s /noise.sha256 && cat /greeting"]


@dataclass(frozen=True)
class Image:
    """What was pushed, all of it by digest."""

    name: str
    """As clients write it, without tag: docker.io/library/demo."""
    digest: str
    """Of what the tag names: a manifest or an index."""
    manifest: str
    """Of the manifest for this machine's platform."""
    config: str
    layers: tuple[str, ...]
    content: Mapping[str, bytes] = field(repr=False)
    """Every byte that belongs to this machine's platform, and the index."""
    greeting: str
    tag: str = "1"

    @property
    def tagged(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def pinned(self) -> str:
        return f"{self.name}@{self.digest}"

    @property
    def blobs(self) -> tuple[str, ...]:
        return (self.config, *self.layers)


class Layout:
    """An OCI image layout in the making."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content: dict[str, bytes] = {}
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(self, media_type: str, data: bytes) -> dict[str, Any]:
        """The descriptor of `data`, which is in the layout from now on."""
        digest = digest_of(data)
        self.content[digest] = data
        (self.folder / "blobs" / digest.replace(":", "/")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def add_image(self, architecture: str, layers: list[bytes]) -> dict[str, Any]:
        """The descriptor of a manifest of that platform with these layers (tar archives)."""
        config: dict[str, Any] = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": _COMMAND, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in layers]},
        }
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}manifest.v1+json",
            "config": self.add(f"{_OCI}config.v1+json", _json(config)),
            "layers": [self.add(f"{_OCI}layer.v1.tar+gzip", _gzip(tar)) for tar in layers],
        }
        platform_of = {"architecture": architecture, "os": "linux"}
        return self.add(manifest["mediaType"], _json(manifest)) | {"platform": platform_of}

    def finish(self, top: dict[str, Any]) -> None:
        index = {"schemaVersion": 2, "manifests": [top]}
        (self.folder / "index.json").write_bytes(_json(index))


def publish(upstream: Upstream, name: str, kind: Kind = "index") -> Image:
    """Pushes a new image, which shares no blob with any other, under `name` and tag 1."""
    with TemporaryDirectory(prefix="image") as folder:
        return _publish(upstream, Layout(Path(folder)), name, kind)


def _publish(upstream: Upstream, layout: Layout, name: str, kind: Kind) -> Image:
    token = secrets.token_hex(8)
    greeting = f"greetings from {token}"
    layers = [_busybox(token), _noise(), _tar({"greeting": greeting})]
    top = manifest = layout.add_image(HERE, layers)
    if kind == "index":
        other = layout.add_image(ELSEWHERE, [_tar({"nothing": f"runs here: {token}"})])
        index: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}index.v1+json",
            "manifests": [manifest, other],
        }
        top = layout.add(index["mediaType"], _json(index))
    layout.finish(top)
    _push(upstream, layout.folder, name, kind)
    if kind == "docker":
        return _read_back(upstream, name, greeting)
    return _image(name, top["digest"], manifest["digest"], layout.content, greeting)


def new_name(registry: str = "docker.io/library") -> str:
    """A name that no image has, here or at Docker Hub, where some clients look when all fails."""
    return f"{registry}/mirror-test-{secrets.token_hex(6)}"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _push(upstream: Upstream, folder: Path, name: str, kind: Kind) -> None:
    how = ["--format", "v2s2"] if kind == "docker" else ["--all", "--preserve-digests"]
    repository = name.partition("/")[2]
    target = f"docker://127.0.0.1:{upstream.port}/{repository}:1"
    run(
        need("skopeo"), "--insecure-policy", "copy", "--dest-tls-verify=false", *how,
        f"oci:{folder}", target,
    )  # fmt: skip


def _read_back(upstream: Upstream, name: str, greeting: str) -> Image:
    """The image as the upstream has it, after skopeo converted it on the way."""
    path = f"/v2/{name.partition('/')[2]}"
    raw = upstream.read(f"{path}/manifests/1")
    manifest = json.loads(raw)
    digests = [part["digest"] for part in (manifest["config"], *manifest["layers"])]
    content = {digest: upstream.read(f"{path}/blobs/{digest}") for digest in digests}
    top = digest_of(raw)
    return _image(name, top, top, content | {top: raw}, greeting)


def _image(name: str, top: str, manifest: str, content: dict[str, bytes], greeting: str) -> Image:
    parsed = json.loads(content[manifest])
    config = parsed["config"]["digest"]
    layers = tuple(layer["digest"] for layer in parsed["layers"])
    ours = {digest: content[digest] for digest in (top, manifest, config, *layers)}
    return Image(name, top, manifest, config, layers, ours, greeting)


def _busybox(token: str) -> bytes:
    """A root folder in which a shell runs."""
    program = Path(need("busybox")).read_bytes()
    links = {f"bin/{applet}": "busybox" for applet in _APPLETS}
    users = f"root:x:0:0:{token}:/:/bin/sh\n"
    return _tar({"bin/busybox": program, "etc/passwd": users}, links)


def _noise() -> bytes:
    noise = secrets.token_bytes(_NOISE_SIZE)
    return _tar({"noise": noise, "noise.sha256": f"{hashlib.sha256(noise).hexdigest()}  /noise\n"})


def _tar(files: Mapping[str, str | bytes], links: Mapping[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            data = text.encode() if isinstance(text, str) else text
            member = tarfile.TarInfo(name)
            member.mode, member.size = 0o755, len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return out.getvalue()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()
