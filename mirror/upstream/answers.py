"""From an upstream's status to the error that a client is told."""

import json
import re
from collections.abc import Mapping

from mirror.allowance import DEFAULT_REST_SECONDS
from mirror.errors import (
    UpstreamBroken,
    UpstreamDenied,
    UpstreamError,
    UpstreamFailing,
    UpstreamNotFound,
    UpstreamRateLimited,
)
from mirror.names import shown
from mirror.upstream.definition import ANONYMOUS


def error_of(
    upstream: str, what: str, status: int, headers: Mapping[str, str], body: bytes, account: str
) -> UpstreamError:
    """`what` is the thing asked for, `account` a username or `anonymous`."""
    said = f"answered {status} for {what}{_quoted_reason(body)}"
    match status:
        case 404 | 410:
            return UpstreamNotFound(upstream, said, answered=status)
        case 401 | 403:
            message = f"{said}; asked as {account}. {_login_hint(account)}"
            return UpstreamDenied(upstream, message, answered=status)
        case 407:
            said += ": the proxy wants a login; see `proxies` in the configuration"
        case 429:
            return UpstreamRateLimited(
                upstream, f"{said}; asked as {account}", _retry_after(headers)
            )
        case _:
            pass
    return UpstreamBroken(upstream, said, answered=status)


def login_error_of(
    upstream: str, host: str, status: int, headers: Mapping[str, str], body: bytes, account: str
) -> UpstreamError:
    """What a token server's refusal means. It says nothing about the content that is asked for."""
    said = f"its token server {host} answered {status}{_quoted_reason(body)}; asked as {account}"
    match status:
        case 401 | 403:
            return UpstreamDenied(upstream, f"{said}. {_login_hint(account)}", answered=status)
        case 429:
            return UpstreamRateLimited(upstream, said, _retry_after(headers))
        case _:
            return UpstreamBroken(upstream, said)


def most_telling(errors: list[UpstreamError]) -> UpstreamError:
    """Of several endpoints' errors: one that failed leaves open what the others deny."""
    for error in errors:
        if isinstance(error, UpstreamFailing):
            return error
    return errors[0]


def _retry_after(headers: Mapping[str, str]) -> str:
    """Seconds or a date (RFC 9110 §10.2.3), as clients can use it; GHCR has sent `985.86µs`."""
    told = headers.get("Retry-After", "").strip()
    usable = re.fullmatch(r"\d{1,6}|[A-Z][a-z]{2}, [\w :]{5,24} GMT", told, re.ASCII)
    return told if usable else str(DEFAULT_REST_SECONDS)


def _login_hint(account: str) -> str:
    if account == ANONYMOUS:
        return "It may not exist, or want a login: see `credentials` in the configuration"
    return f"It may not exist, or not be open to {account}: check that credential"


def _quoted_reason(body: bytes) -> str:
    """The first OCI error's code and message, made safe to repeat."""
    try:
        error = json.loads(body)["errors"][0]
        reason = f"{error.get('code', '')} {error.get('message', '')}".strip()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return f" ({shown(reason)})" if reason else ""
