"""Every error a client can be told, in one tree.

    MirrorError
    ├── RequestInvalid         400  not HTTP as this mirror understands it
    ├── NameInvalid            400  the request does not follow the grammar of names
    ├── DigestInvalid          400
    ├── NameUnknown            404  a registry outside the closed list, or no endpoint
    ├── ManifestUnknown        404
    ├── Unsupported            405  a write to a name that is only mirrored
    ├── RangeUnsatisfiable     416
    ├── StorageFailed          503  this mirror's own disk
    ├── TooBusy                503
    ├── ShuttingDown           503
    └── UpstreamError               what an upstream said, or did not say
        ├── UpstreamNotFound        404
        ├── UpstreamDenied          403
        └── UpstreamFailing         no usable answer: a remembered one may stand in
            ├── UpstreamRateLimited 429
            ├── UpstreamBroken      502
            │   └── WrongBytes
            ├── UpstreamUnreachable 504
            └── Offline             404

A 404 that is remembered is a kind of UpstreamNotFound (`RememberedAbsence` in proxy/absences.py).

The codes are those of the OCI distribution-spec, "Error Codes"; UNKNOWN and UNAVAILABLE are the
ones that registries in the field send where the specification has none.
"""

from collections.abc import Mapping


class MirrorError(Exception):
    """A request ends here; `status` and `code` say how, `message` says why and what can be done."""

    status = 500
    code = "UNKNOWN"

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = dict(headers or {})


class RequestInvalid(MirrorError):
    status = 400
    code = "UNSUPPORTED"


class NameInvalid(MirrorError):
    status = 400
    code = "NAME_INVALID"


class DigestInvalid(MirrorError):
    status = 400
    code = "DIGEST_INVALID"


class NameUnknown(MirrorError):
    status = 404
    code = "NAME_UNKNOWN"


class ManifestUnknown(MirrorError):
    status = 404
    code = "MANIFEST_UNKNOWN"


class Unsupported(MirrorError):
    status = 405
    code = "UNSUPPORTED"


class RangeUnsatisfiable(MirrorError):
    """RFC 9110 §15.5.17; carries the complete length for Content-Range."""

    status = 416
    code = "RANGE_INVALID"

    def __init__(self, size_bytes: int) -> None:
        super().__init__(
            f"the requested range lies outside the blob's {size_bytes} bytes",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )


class StorageFailed(MirrorError):
    status = 503
    code = "UNAVAILABLE"


class TooBusy(MirrorError):
    status = 503
    code = "UNAVAILABLE"


class ShuttingDown(MirrorError):
    status = 503
    code = "UNAVAILABLE"


class UpstreamError(MirrorError):
    """Base of what came of asking an upstream; `answered` is the status it gave, if it gave one."""

    status = 502

    def __init__(
        self,
        upstream: str,
        message: str,
        *,
        answered: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{upstream}: {message}", headers=headers)
        self.answered = answered


class UpstreamNotFound(UpstreamError):
    """The upstream answered that it does not have it. The OCI code follows from what was asked."""

    status = 404


class UpstreamDenied(UpstreamError):
    status = 403
    code = "DENIED"


class UpstreamFailing(UpstreamError):
    """The upstream could not say: whatever is remembered may be served in its place."""


class UpstreamRateLimited(UpstreamFailing):
    """429; `retry_after` is the upstream's own header value (seconds or a date) or our default."""

    status = 429
    code = "TOOMANYREQUESTS"

    def __init__(self, upstream: str, message: str, retry_after: str) -> None:
        super().__init__(upstream, message, answered=429, headers={"Retry-After": retry_after})


class UpstreamBroken(UpstreamFailing):
    """5xx, nonsense, or bytes that do not have the digest they were asked by."""


class WrongBytes(UpstreamBroken):
    """What came cannot be the content of the digest: none of it may be used."""


class UpstreamUnreachable(UpstreamFailing):
    status = 504
    code = "UNAVAILABLE"


class Offline(UpstreamFailing):
    """The mirror is configured never to ask. The OCI code follows from what was asked."""

    status = 404


# What a remembered answer may stand in for: nobody could say, or too many are asking.
UNANSWERED = (UpstreamFailing, TooBusy)
