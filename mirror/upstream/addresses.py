"""Which addresses a redirect may lead to, so that no upstream can point the mirror at its
neighbours.

Reach grows inwards: public < private network < this host. A redirect may lead outwards or stay at
the upstream's own reach, never inwards; link-local addresses (cloud metadata) are never reached.
"""

import asyncio
import socket
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver


class Reach(IntEnum):
    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    FORBIDDEN = 3


class ForbiddenAddress(OSError):
    """The target lies further inwards than the one that named it."""


def reach_of(address: str) -> Reach:
    """Of a literal address. Raises ValueError for anything else."""
    ip = _unmapped(ip_address(address.partition("%")[0]))
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return Reach.FORBIDDEN
    if ip.is_loopback:
        return Reach.LOOPBACK
    return Reach.PUBLIC if ip.is_global else Reach.PRIVATE


def literal_reach(host: str) -> Reach | None:
    """The reach of a host written as an address; None for a name."""
    try:
        return reach_of(host)
    except ValueError:
        return None


def _unmapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """IPv4 inside IPv6 (mapped, 6to4, NAT64-style prefixes are not global) counts as what it is."""
    if isinstance(ip, IPv6Address):
        return ip.ipv4_mapped or ip.sixtofour or ip
    return ip


class BoundedResolver(AbstractResolver):
    """Names to addresses within a time, and no further inwards than `limit`.

    The check sits where the connection takes its address from, so that a name which resolves
    differently the second time gains nothing.
    """

    def __init__(self, timeout_seconds: float, limit: Reach | None = None) -> None:
        self._resolver = ThreadedResolver()
        self._timeout_seconds = timeout_seconds
        self._limit = limit

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                found = await self._resolver.resolve(host, port, family)
        except TimeoutError:
            raise OSError(f"no answer from DNS within {self._timeout_seconds:g} s") from None
        if self._limit is None:
            return found
        allowed = [each for each in found if reach_of(each["host"]) <= self._limit]
        if not allowed:
            raise ForbiddenAddress(f"{host} resolves to an address that a redirect may not reach")
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


async def reach_of_host(host: str, timeout_seconds: float) -> Reach:
    """The innermost address that a host name has. Raises OSError."""
    literal = literal_reach(host)
    if literal is not None:
        return literal
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_seconds):
        found: list[Any] = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return max(reach_of(each[4][0]) for each in found)
