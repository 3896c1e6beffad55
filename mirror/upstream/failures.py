"""What an exchange that failed means: for who asked, and for the endpoint's circuit."""

import errno
import os
import ssl

import aiohttp
from yarl import URL

from mirror.errors import UpstreamBroken, UpstreamError, UpstreamUnreachable
from mirror.upstream.addresses import ForbiddenAddress
from mirror.upstream.circuits import Failure


def error_of_exchange(upstream: str, error: Exception, url: URL) -> UpstreamError:
    """URLs are told by their host alone, for paths are signed."""
    host = url.host or "?"
    reason = _reason(error)
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ForbiddenAddress):
        return UpstreamBroken(upstream, reason)
    if isinstance(error, aiohttp.ClientSSLError) and error.host != host:
        return UpstreamBroken(
            upstream,
            f"no safe connection to {error.host}, the proxy: {reason}; see `proxies` in the "
            "configuration, and `tls` of the upstream",
        )
    if isinstance(error, aiohttp.ClientSSLError):
        return UpstreamBroken(
            upstream, f"no safe connection to {host}: {reason}; see `tls` in the configuration"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return UpstreamUnreachable(
            upstream,
            f"the proxy gives no way to {host}: it answered {error.status}; see `proxies` in the "
            "configuration",
        )
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        host = f"{error.host}, the proxy,"
    if isinstance(error, aiohttp.ServerConnectionError | aiohttp.ClientOSError | OSError):
        return UpstreamUnreachable(
            upstream, f"{host} cannot be reached: {reason}. Cached content is still served"
        )
    return UpstreamBroken(upstream, f"{host} sent an unusable answer: {reason}")


def failure_of(error: UpstreamError, *, is_redirected: bool) -> Failure:
    """Where a redirect led to a host that is down, the endpoint itself did answer."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Failure.NO_ANSWER if is_redirected else Failure.NO_CONNECTION
    if isinstance(error, UpstreamUnreachable):
        return Failure.NO_ANSWER
    return Failure.BAD_ANSWER


def _reason(error: Exception) -> str:
    """Short, and without URLs, which aiohttp puts into some of its messages."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return _unconnected(error.os_error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it hung up"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _unconnected(error: OSError) -> str:
    """In the system's words: the library's are of calls and tuples."""
    has_own_words = isinstance(error, ForbiddenAddress | ssl.SSLError)
    if not has_own_words and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__
