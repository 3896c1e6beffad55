"""Inputs to begin with: what clients and upstreams really send, one of each kind."""

import json
from collections.abc import Mapping, Sequence

_DIGEST = "sha256:" + "0123456789abcdef" * 4
_REQUESTS = [
    "/v2/",
    "/v2/_catalog?n=100&last=library/debian",
    "/v2/library/debian/manifests/bookworm\n\napplication/json;q=0, */*\n",
    f"/v2/quay.io/org/app/blobs/{_DIGEST}\nbytes=0-99\n*/*\n\1\2\3",
    f"/v2/org/app/blobs/{_DIGEST}?ns=quay.io\nbytes=-7,0-0, 5-\n\n\1\2\3",
    f"/quay.io/v2/org/app/referrers/{_DIGEST}?artifactType=a%2Fb",
    "/v2/hub/app/tags/list?n=10",
    "/v2/[::1]:5000/a__b/c.d/e-f/manifests/v1.0",
    "/v2/library/x/blobs/uploads/?mount=sha256:0",
    "/v2/%2e%2e/..%2f/a/manifests/%00?ns=docker.io&ns=%ff",
]
_MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/json", "digest": _DIGEST, "size": 7},
    "layers": [{"mediaType": "x", "digest": _DIGEST, "size": 7, "urls": []}],
    "manifests": [
        {"digest": _DIGEST, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    ],
}
_CHALLENGES = [
    'Bearer realm="https://auth.example.com/token",service="registry",scope="repository:a:pull"',
    'Basic realm="a \\"quoted\\" one", Bearer realm="https://evil.test@example.com/"',
    "Negotiate YII=, Basic realm=x",
    "bytes 0-99/1234\nbytes 5-9/*\n985.86µs\nFri, 01 Jan 2027 00:00:00 GMT\n30",
    '</v2/a/tags/list?n=1&last=b>; rel="next"\n<http://evil.test/?ns=x&last=%00>; rel=next',
    json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}),
    json.dumps(_MANIFEST),
]

SEEDS: Mapping[str, Sequence[bytes]] = {
    "requests": [each.encode() for each in _REQUESTS],
    "challenges": [each.encode() for each in _CHALLENGES],
}
