"""The answers of a registry that works as it should."""

import json
import re
from http import HTTPStatus
from urllib.parse import quote

from multidict import CIMultiDict, MultiDict

from tests.fakes.delivery import Answer
from tests.fakes.images import OCI_INDEX, Json

DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def json_answer(status: int, value: object, media_type: str = "application/json") -> Answer:
    headers = CIMultiDict(
        {"Content-Type": media_type, "Docker-Distribution-API-Version": "registry/2.0"}
    )
    return Answer(status, headers, json.dumps(value).encode())


def error(status: int, code: str, message: str = "") -> Answer:
    return json_answer(status, {"errors": [{"code": code, "message": message, "detail": None}]})


def name_unknown() -> Answer:
    return error(404, "NAME_UNKNOWN", "repository name not known to registry")


def not_a_page() -> Answer:
    return Answer(404, CIMultiDict({"Content-Type": "text/plain"}), b"404 page not found\n")


def redirect(location: str) -> Answer:
    return Answer(HTTPStatus.TEMPORARY_REDIRECT, CIMultiDict({"Location": location}))


def manifest(body: bytes, media_type: str, digest: str, headers: CIMultiDict[str]) -> Answer:
    tag = f'"{digest}"'
    about = CIMultiDict({"Content-Type": media_type, "Docker-Content-Digest": digest, "ETag": tag})
    if headers.get("If-None-Match") == tag:
        return Answer(HTTPStatus.NOT_MODIFIED, about)
    return Answer(HTTPStatus.OK, about, body)


def blob(method: str, data: bytes, digest: str | None, headers: CIMultiDict[str]) -> Answer:
    """The whole blob, or one range of it; without a digest as a CDN gives it."""
    about = CIMultiDict({"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"})
    if digest is not None:
        about["Docker-Content-Digest"] = digest
    window = _window(headers.get("Range", ""), len(data)) if method == "GET" else None
    if window is None:
        return Answer(HTTPStatus.OK, about, data)
    start, stop = window
    if start >= stop:
        about["Content-Range"] = f"bytes */{len(data)}"
        return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, about)
    about["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Answer(HTTPStatus.PARTIAL_CONTENT, about, data[start:stop])


def _window(wanted: str, size: int) -> tuple[int, int] | None:
    """Start and stop of a single range; None for no range, several, or one that is malformed."""
    found = _RANGE.fullmatch(wanted.strip())
    if found is None or wanted.strip() == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


def tags(repository: str, names: list[str], query: MultiDict[str]) -> Answer:
    """One page of tags, sorted, with a link to the next page if there is one."""
    left = [name for name in sorted(names) if name > query.get("last", "")]
    page = left[: int(query["n"])] if "n" in query else left
    answer = json_answer(200, {"name": repository, "tags": page})
    if page and len(page) < len(left):
        url = f"/v2/{repository}/tags/list?n={query['n']}&last={quote(page[-1])}"
        answer.headers["Link"] = f'<{url}>; rel="next"'
    return answer


def referrers(entries: list[Json], artifact_type: str | None) -> Answer:
    if artifact_type:
        entries = [entry for entry in entries if entry.get("artifactType") == artifact_type]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    answer = json_answer(200, index, OCI_INDEX)
    if artifact_type:
        answer.headers["OCI-Filters-Applied"] = "artifactType"
    return answer
