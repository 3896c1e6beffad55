"""Which addresses a redirect may lead to, so that no upstream can point the mirror at its
neighbours.

Reach grows inwards: public < private network < this host. A redirect may lead outwards or stay at
the upstream's own reach, never inwards; link-local addresses and those of cloud metadata are never
reached.
"""

import asyncio
import errno
import socket
from enum import IntEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.threads import in_daemon

MAX_LOOKUPS = 8
# All that is given out for the Internet; `is_global` knows only the exceptions it was taught.
_PUBLIC_IPV6 = IPv6Network("2000::/3")
# NAT64 (RFC 6052): the last 32 bits are the IPv4 address that is meant.
_NAT64 = IPv6Network("64:ff9b::/96")
# Metadata services that are not link-local: AWS and Google over IPv6, Azure, Alibaba, Oracle.
_METADATA = frozenset(
    ip_address(each)
    for each in (
        "fd00:ec2::254",
        "fd20:ce::254",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
    )
)


class Reach(IntEnum):
    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    FORBIDDEN = 3


class ForbiddenAddress(OSError):
    """The target lies further inwards than the one that named it."""


def reach_of(address: str) -> Reach:
    """Of a literal address. Raises ValueError for anything else."""
    ip = _meant(ip_address(address.partition("%")[0]))
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA:
        return Reach.FORBIDDEN
    if ip.is_loopback:
        return Reach.LOOPBACK
    is_public = ip.is_global and (isinstance(ip, IPv4Address) or ip in _PUBLIC_IPV6)
    return Reach.PUBLIC if is_public else Reach.PRIVATE


def literal_reach(host: str) -> Reach | None:
    """The reach of a host written as an address; None for a name.

    The old spellings (127.1, 0x7f.1, 2130706433) reach a socket without a resolver, or mean an
    address to it; nobody writes them in good faith. A name never ends in a number (WHATWG URL).
    """
    host = host.rstrip(".")
    try:
        return reach_of(host)
    except ValueError:
        last = host.rpartition(".")[2].lower()
        is_number = last.isdigit() or last.startswith("0x") or ":" in host
        return Reach.FORBIDDEN if is_number else None


def _meant(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """IPv4 inside IPv6 (mapped, 6to4, NAT64) counts as what it is."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


class Names:
    """Names to addresses, within a time, and in threads of their own: where no name server answers,
    those that read the disk stay free, and the mirror can end.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._room = asyncio.Semaphore(MAX_LOOKUPS)

    async def look_up(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises OSError."""
        ask = partial(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
        )
        try:
            async with asyncio.timeout(self._timeout_seconds):
                found = await in_daemon(self._room, ask)
        except TimeoutError:
            told = f"no answer from DNS within {self._timeout_seconds:g} s"
            raise OSError(errno.ETIMEDOUT, told) from None
        except UnicodeError:
            raise OSError(errno.EINVAL, "not a name that DNS could know") from None
        return [_resolved(host, *each) for each in found]

    async def reach_of(self, host: str) -> Reach:
        """The innermost address that a host has. Raises OSError."""
        try:
            return reach_of(host)
        except ValueError:
            return max(reach_of(each["host"]) for each in await self.look_up(host))


class BoundedResolver(AbstractResolver):
    """For connections that may reach no further inwards than `limit`.

    The check sits where the connection takes its address from, so that a name which resolves
    differently the second time gains nothing.
    """

    def __init__(self, names: Names, limit: Reach | None = None) -> None:
        self._names = names
        self._limit = limit

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.look_up(host, port, family)
        if self._limit is None:
            return found
        allowed = [each for each in found if reach_of(each["host"]) <= self._limit]
        if not allowed:
            raise ForbiddenAddress(
                errno.EACCES, f"{host} resolves to an address that a redirect may not reach"
            )
        return allowed

    async def close(self) -> None:
        """Nothing: the names are the transport's."""


def _resolved(
    host: str, family: socket.AddressFamily, _kind: Any, proto: int, _name: Any, address: Any
) -> ResolveResult:
    """One line of getaddrinfo's. Link-local IPv6 addresses need their scope."""
    scope = f"%{address[3]}" if family == socket.AF_INET6 and address[3] else ""
    return ResolveResult(
        hostname=host,
        host=f"{address[0]}{scope}",
        port=address[1],
        family=family,
        proto=proto,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
