"""Who may be connected: so many in all, so many from one place, and nobody for ever.

What aiohttp bounds itself: the number (128) and the length of headers, the requests that are sent
ahead, the time for a body that nobody wants, and, by its keep-alive timer, the time in which a
request's head has to be complete. What is bounded here: the number of connections, and the time in
which an answer has to be taken.
"""

import asyncio
import json
import resource
import socket
from collections import Counter
from ipaddress import IPv6Address

from mirror.web.counts import Counts

MAX_CONNECTIONS = 16_384
# Of the descriptors that the process may have; blobs, upstreams and the index need the others.
MAX_SHARE_OF_DESCRIPTORS = 0.75
# One address may be a gateway, or a proxy in front of this mirror, with hundreds of nodes behind.
MAX_SHARE_OF_ONE_PLACE = 0.5
# A client that takes nothing at all for so long has gone, or is hostile.
STALL_SECONDS = 300
# What is written ahead of a client, a few megabytes at most, has to be taken within this time.
TAKE_SECONDS = 1800
RETRY_AFTER_SECONDS = 30
# A host may have all of a /64 for itself (RFC 6177).
_PLACE_BITS = 64

_REFUSAL = {"errors": [{"code": "UNAVAILABLE", "message": "too many connections to this mirror"}]}


def connections_allowed() -> int:
    """By what the process may have now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, int(soft * MAX_SHARE_OF_DESCRIPTORS))


def place_of(host: str) -> str:
    """The address for which connections are counted: of IPv6, the network."""
    if ":" not in host:
        return host
    address = IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{int(address) >> (128 - _PLACE_BITS):x}::"


class Places:
    """The connections there are, by where they come from."""

    def __init__(self, limit: int, counts: Counts) -> None:
        self._limit = limit
        self._counts = counts
        self._limit_of_one = max(1, int(limit * MAX_SHARE_OF_ONE_PLACE))
        self._taken: Counter[str] = Counter()
        self._total = 0

    def take(self, place: str) -> bool:
        """Whether there is room; whoever takes a place gives it back."""
        if self._total >= self._limit or self._taken[place] >= self._limit_of_one:
            self._counts.connection_refused()
            return False
        self._total += 1
        self._taken[place] += 1
        return True

    def give_back(self, place: str) -> None:
        self._total -= 1
        self._taken[place] -= 1
        if not self._taken[place]:
            del self._taken[place]


def end_stalled_connections(listener: socket.socket) -> None:
    """Lets the kernel end what was accepted here and then takes nothing: it counts also while
    sendfile waits and while a closed connection has something left to send (tcp(7)).
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL_SECONDS * 1000)


def turn_away(transport: asyncio.Transport) -> None:
    """503 before anything was asked: clients come again, or go to the registry itself."""
    body = json.dumps(_REFUSAL).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nServer: mirror\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {RETRY_AFTER_SECONDS}\r\n"
        "Connection: close\r\n\r\n"
    )
    transport.set_protocol(asyncio.Protocol())
    transport.write(head.encode() + body)
    transport.close()
