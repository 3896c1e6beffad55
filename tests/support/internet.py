"""A small internet on loopback addresses: which of them count as far away, and who has a name."""

import socket
from collections.abc import Mapping

import pytest

from mirror.upstream import addresses
from mirror.upstream.addresses import Reach

# Loopback is a whole network: these stand in for hosts further outwards.
PUBLIC = "127.0.1.1"
PUBLIC_CDN = "127.0.1.2"
PRIVATE = "127.0.2.1"
PRIVATE_CDN = "127.0.2.2"
LINK_LOCAL = "127.0.3.1"
_REACHES = {
    PUBLIC: Reach.PUBLIC,
    PUBLIC_CDN: Reach.PUBLIC,
    PRIVATE: Reach.PRIVATE,
    PRIVATE_CDN: Reach.PRIVATE,
    LINK_LOCAL: Reach.FORBIDDEN,
}


def pretend(monkeypatch: pytest.MonkeyPatch, names: Mapping[str, str] | None = None) -> None:
    """Gives the addresses above their reach, and these names their address."""
    real_reach_of, real_getaddrinfo = addresses.reach_of, socket.getaddrinfo

    def reach_of(address: str) -> Reach:
        return _REACHES[address] if address in _REACHES else real_reach_of(address)

    def getaddrinfo(host: str, *arguments: object, **named: object) -> object:
        return real_getaddrinfo((names or {}).get(host, host), *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(addresses, "reach_of", reach_of)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
