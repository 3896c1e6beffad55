"""Images small enough for tests, with true digests."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

Json = dict[str, object]


@dataclass(frozen=True)
class Image:
    """A manifest as it stands in a registry, and the digests of what it names."""

    digest: str
    manifest: bytes = field(repr=False)
    media_type: str
    config: str
    layers: tuple[str, ...]
    descriptor: Json = field(repr=False)


@dataclass(frozen=True)
class Index:
    """A multi-platform index; `images` are by platform, like "linux/arm64"."""

    digest: str
    manifest: bytes = field(repr=False)
    media_type: str
    images: Mapping[str, Image]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def describe(data: bytes, media_type: str, **more: object) -> Json:
    """The descriptor of some content."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def platform_of(name: str) -> Json:
    system, architecture, *variant = name.split("/")
    parts: Json = {"architecture": architecture, "os": system}
    return {**parts, "variant": variant[0]} if variant else parts


def make_config(layers: Sequence[bytes], platform: str = "linux/amd64") -> bytes:
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    return _encode({**platform_of(platform), "config": {}, "rootfs": rootfs})


def make_image(
    layers: Sequence[bytes],
    config: bytes,
    *,
    docker: bool = False,
    subject: Json | None = None,
    artifact_type: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """An image manifest; with a subject and an artifact type it is a referrer, like a signature."""
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    config_type = DOCKER_CONFIG if docker else OCI_EMPTY if artifact_type else OCI_CONFIG
    layer_type = DOCKER_LAYER if docker else OCI_LAYER
    extra: Json = {"artifactType": artifact_type, "subject": subject, "annotations": annotations}
    manifest = _encode(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": describe(config, config_type),
            "layers": [describe(layer, layer_type) for layer in layers],
            **{name: value for name, value in extra.items() if value},
        }
    )
    return Image(
        digest=digest_of(manifest),
        manifest=manifest,
        media_type=media_type,
        config=digest_of(config),
        layers=tuple(digest_of(layer) for layer in layers),
        descriptor=describe(manifest, media_type),
    )


def make_index(images: Mapping[str, Image], *, docker: bool = False) -> Index:
    media_type = DOCKER_INDEX if docker else OCI_INDEX
    entries = [{**i.descriptor, "platform": platform_of(name)} for name, i in images.items()]
    body = _encode({"schemaVersion": 2, "mediaType": media_type, "manifests": entries})
    return Index(digest_of(body), body, media_type, dict(images))


def referrer_entry(digest: str, body: bytes, media_type: str, subject: str) -> Json | None:
    """How a manifest stands in the referrers list of its subject; None if it refers to another."""
    try:
        manifest = json.loads(body)
    except ValueError:
        return None
    if not isinstance(manifest, dict) or (manifest.get("subject") or {}).get("digest") != subject:
        return None
    config_type = (manifest.get("config") or {}).get("mediaType")
    entry: Json = {
        "mediaType": media_type,
        "digest": digest,
        "size": len(body),
        "artifactType": manifest.get("artifactType") or config_type,
        "annotations": manifest.get("annotations"),
    }
    return {name: value for name, value in entry.items() if value is not None}


def _encode(value: Json) -> bytes:
    return json.dumps(value, indent=2).encode()
