"""Headers and bodies that all answers share; errors become OCI JSON here and nowhere else."""

import json
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus

from aiohttp import web

from mirror.addressing import Address, Kind
from mirror.errors import MirrorError, Offline, UpstreamNotFound
from mirror.manifest import Descriptor
from mirror.names import Digest

# Names and versions of libraries are nobody's business.
SOFTWARE = {"Server": "mirror"}
_COMMON = {"Docker-Distribution-API-Version": "registry/2.0", **SOFTWARE}
_JSON = "application/json"
HOT_DIGESTS = 4096
# Of a larger body only so much waits in the connection of a client that reads slowly.
WRITE_BYTES = 256 * 1024
# RFC 9111 §5.5 has retired the Warning header; clients of registries still show it.
_STALE_WARNING = '110 - "Response is Stale"'


def base_headers(address: Address) -> dict[str, str]:
    """`OCI-Namespace` tells through which upstream an answer came (distribution-spec, "Registry
    Proxying").
    """
    if address.upstream is None:
        return dict(_COMMON)
    return {**_COMMON, "OCI-Namespace": address.upstream}


def stale_headers(stale_seconds: float | None) -> dict[str, str]:
    if stale_seconds is None:
        return {}
    return {"Warning": _STALE_WARNING, "Age": str(int(stale_seconds))}


@lru_cache(HOT_DIGESTS)
def content_headers(digest: Digest) -> Mapping[str, str]:
    return {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}


def manifest_headers(descriptor: Descriptor) -> dict[str, str]:
    return {"Content-Type": descriptor.media_type, **content_headers(descriptor.digest)}


def json_reply(
    document: object, headers: dict[str, str], status: int = 200, content_type: str = _JSON
) -> web.Response:
    """Exactly `application/json`: Docker parses errors of no other type."""
    body = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    return web.Response(body=body, status=status, headers={**headers, "Content-Type": content_type})


def error_reply(error: MirrorError, address: Address) -> web.Response:
    """`{"errors": [{"code", "message"}]}` (distribution-spec, "Error Codes")."""
    document = {"errors": [{"code": _code_of(error, address.kind), "message": error.message}]}
    headers = {**base_headers(address), **error.headers}
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = "GET, HEAD"
    return json_reply(document, headers, error.status)


def is_unchanged(request: web.BaseRequest, digest: Digest) -> bool:
    """If-None-Match (RFC 9110 §13.1.2) against the digest, which is the ETag."""
    headers = request.headers.getall("If-None-Match", ())
    tags = {
        tag.strip().removeprefix("W/").strip('"') for each in headers for tag in each.split(",")
    }
    return not tags.isdisjoint(("*", str(digest)))


def _code_of(error: MirrorError, kind: Kind) -> str:
    """What is not there is named after what was asked for."""
    if not isinstance(error, UpstreamNotFound | Offline):
        return error.code
    return {Kind.MANIFEST: "MANIFEST_UNKNOWN", Kind.BLOB: "BLOB_UNKNOWN"}.get(kind, "NAME_UNKNOWN")
