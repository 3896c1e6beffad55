"""The sockets that a mirror listens on."""

import errno
import socket
from contextlib import suppress
from ipaddress import ip_address

from mirror.web.places import end_stalled_connections

BACKLOG = 1024
_NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class CannotListen(Exception):
    """The address is in use, or none of this machine's."""


def listening(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Listens on a host's addresses, on all of this machine's where the host is empty, and on a
    port that the system chooses where 0 is asked for. `shared`: others of this program may listen
    there as well, and the system shares connections out (SO_REUSEPORT, socket(7)).

    Blocking. Raises CannotListen; the caller closes the sockets.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            chosen = sockets[0].getsockname()[1] if sockets else port
            listener = _listening(family, (address, chosen), shared=shared, needed=not sockets)
            if listener is not None:
                sockets.append(listener)
    except OSError as error:
        for each in sockets:
            each.close()
        raise CannotListen((error.strerror or str(error)).partition(" (")[0].lower()) from error
    return sockets


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if not host:
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]  # noqa: S104 - as was asked
    with suppress(ValueError):  # an address needs no name server
        literal = ip_address(host)
        return [(socket.AF_INET if literal.version == 4 else socket.AF_INET6, host)]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, *_, address in found))


def _listening(
    family: socket.AddressFamily, address: tuple[str, int], *, shared: bool, needed: bool
) -> socket.socket | None:
    """None: a machine without IPv6 listens on what it has."""
    try:
        listener = socket.create_server(
            address, family=family, backlog=BACKLOG, reuse_port=shared, dualstack_ipv6=False
        )
    except OSError as error:
        if error.errno in _NO_SUCH_FAMILY and not needed:
            return None
        raise
    listener.setblocking(False)
    end_stalled_connections(listener)
    return listener
