"""What a manifest says: its media type, what it consists of, and what a client accepts. No I/O.

Bodies are only read here; nothing is ever encoded again (image-spec, "Media Types").
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mirror.errors import MirrorError
from mirror.names import Digest

# The distribution-spec asks registries to take manifests of up to 4 MB; containerd's own limit,
# 4 * 1048 * 1048, lies just above this one.
MANIFEST_LIMIT_BYTES = 4 * 1024 * 1024

# Images have some 127 layers at most; 4 MB of JSON could name 40,000.
MAX_BLOBS_NAMED = 1_000

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
INDEXES = frozenset({DOCKER_LIST, OCI_INDEX})
# Of a blob nobody knows more, before a manifest says it.
BLOB_TYPE = "application/octet-stream"

# Quay converts what the Accept header leaves out, so an upstream is always told of everything.
ACCEPT_EVERYTHING = ", ".join(
    [
        OCI_INDEX,
        OCI_MANIFEST,
        DOCKER_LIST,
        DOCKER_MANIFEST,
        OCI_ARTIFACT,
        DOCKER_SCHEMA1_SIGNED,
        DOCKER_SCHEMA1,
        "*/*;q=0.1",
    ]
)

# Configs are `application/vnd.…json`, too.
_MANIFEST_TYPE = re.compile(
    r"application/vnd\.[a-z0-9.+-]+\.(manifest(\.list)?|index)\.v[a-z0-9.]+\+(json|prettyjws)"
)
_FALLBACK_PLATFORM = ("linux", "amd64")
# RFC 9110 §12.4.2.
_NOT_ACCEPTABLE = re.compile(r"\s*q=0(\.0{0,3})?\s*")
# Nothing is larger, whatever an upstream says: the index holds numbers of 64 bits.
MAX_SIZE_BYTES = 1 << 62
# A type is kept in the index, and told to clients.
_TELLABLE_TYPE = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A content as others refer to it; the size may be unknown where only a HEAD was seen."""

    digest: Digest
    media_type: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's bytes exactly as received, and the type to serve them with."""

    digest: Digest
    media_type: str
    body: bytes

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.digest, self.media_type, len(self.body))


def is_manifest_type(media_type: str) -> bool:
    """Whether a Content-Type says something; registries also send generic ones."""
    return _MANIFEST_TYPE.fullmatch(media_type) is not None


def bare_type(content_type: str) -> str:
    """A Content-Type without its parameters; nothing for what could not be told on."""
    return _tellable(content_type.partition(";")[0].strip().lower())


def media_type_of(body: bytes, content_type: str) -> str | None:
    """The header's type where it is specific, else what the body says; None: not a manifest."""
    document = _document(body)
    if document is None:
        return None
    header = bare_type(content_type)
    if is_manifest_type(header):
        return header
    named = document.get("mediaType")
    if isinstance(named, str) and is_manifest_type(named):
        return named
    if "manifests" in document:
        return OCI_INDEX
    if "layers" in document and "config" in document:
        return OCI_MANIFEST
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in document else DOCKER_SCHEMA1
    return None


def blobs_of(body: bytes) -> list[Descriptor]:
    """The config and layers that a repository must hold to have taken this manifest.

    No more than MAX_BLOBS_NAMED: of others the upstream is asked, as of what nobody names.
    Non-distributable layers and index entries are left out: a registry does not check that it
    has them, so that they prove nothing about what a repository may read.
    """
    document = _document(body) or {}
    entries = [document.get("config"), *_list_of(document, "layers"), *_list_of(document, "blobs")]
    found = (_descriptor(entry) for entry in entries if not _is_foreign(entry))
    known = (descriptor for descriptor in found if descriptor is not None)
    return list(islice(known, MAX_BLOBS_NAMED))


@dataclass(frozen=True, slots=True)
class Named:
    """What an image consists of, beside the manifest itself: `children`, in an index, are manifests
    in turn, and `platforms` those of them that are images. Any of it may be elsewhere.
    """

    digests: tuple[Digest, ...] = ()
    children: tuple[Digest, ...] = ()
    platforms: tuple[Digest, ...] = ()


def named_in(body: bytes) -> Named:
    """All that a manifest names, also what is not distributable; nothing where it is none."""
    document = _document(body) or {}
    entries = _list_of(document, "manifests")
    parts = [document.get("config"), *_list_of(document, "layers"), *_list_of(document, "blobs")]
    children = _digests_of(entries)
    platforms = _digests_of(filter(_is_for_a_platform, entries))
    return Named((*_digests_of(parts), *children), children, platforms)


def fallback_child(body: bytes) -> Digest | None:
    """The linux/amd64 entry of an index: what CNCF distribution serves to clients that do not
    accept indexes.
    """
    for entry in _list_of(_document(body) or {}, "manifests"):
        platform = entry.get("platform") if isinstance(entry, dict) else None
        if not isinstance(platform, dict):
            continue
        if (platform.get("os"), platform.get("architecture")) == _FALLBACK_PLATFORM:
            descriptor = _descriptor(entry)
            return descriptor.digest if descriptor else None
    return None


def is_accepted(media_type: str, accept_headers: Iterable[str]) -> bool:
    """Whether Accept lists the type. None sent, or `*/*` among them, accepts everything."""
    ranges = list(_media_ranges(accept_headers))
    return not ranges or any(each in (media_type, "*/*", "application/*") for each in ranges)


def _media_ranges(accept_headers: Iterable[str]) -> Iterator[str]:
    for header in accept_headers:
        for part in header.split(","):
            media_range, *parameters = part.lower().split(";")
            if media_range.strip() and not any(map(_NOT_ACCEPTABLE.fullmatch, parameters)):
                yield media_range.strip()


def _document(body: bytes) -> dict[str, Any] | None:
    """The JSON object in `body`; None where there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _list_of(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return value if isinstance(value, list) else []


def _is_foreign(entry: object) -> bool:
    if not isinstance(entry, dict):
        return True
    media_type = str(entry.get("mediaType", ""))
    return bool(entry.get("urls")) or "foreign" in media_type or "nondistributable" in media_type


def _is_for_a_platform(entry: object) -> bool:
    """Attestations stand in an index as images for an unknown system."""
    platform = entry.get("platform") if isinstance(entry, dict) else None
    return isinstance(platform, dict) and platform.get("os") != "unknown"


def _digests_of(entries: Iterable[object]) -> tuple[Digest, ...]:
    """Each once."""
    found: dict[Digest, None] = {}
    for entry in entries:
        with suppress(MirrorError):
            if isinstance(entry, dict):
                found[Digest.parse(str(entry.get("digest")))] = None
    return tuple(found)


def _descriptor(entry: dict[str, Any]) -> Descriptor | None:
    size_bytes = entry.get("size")
    if not isinstance(size_bytes, int) or not 0 <= size_bytes < MAX_SIZE_BYTES:
        return None
    try:
        digest = Digest.parse(str(entry.get("digest")))
    except MirrorError:
        return None
    return Descriptor(digest, _tellable(str(entry.get("mediaType", ""))), size_bytes)


def _tellable(media_type: str) -> str:
    """JSON may hold half a character, and a header any byte."""
    return media_type if _TELLABLE_TYPE.fullmatch(media_type) else ""
