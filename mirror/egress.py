"""Which proxy stands between the mirror and an upstream, if any. No I/O.

As curl and Go read HTTPS_PROXY, HTTP_PROXY and NO_PROXY, where these differ the more generous way:
a domain exempts what is below it, with or without a dot in front; so do networks.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from yarl import URL

_WITH_PORT = re.compile(r"(.+):(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ForwardProxy:
    """`login` is a user and a password."""

    url: URL
    login: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Exemption:
    """Of a network, or else of a domain; `*` is all of them."""

    network: IPv4Network | IPv6Network | None
    domain: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "_Exemption":
        network, port = _network(text), None
        if network is None and (match := _WITH_PORT.fullmatch(text)):
            text, port = match[1], int(match[2])
            network = _network(text)
        return cls(network, _in_ascii(text.removeprefix("*.").strip(".").lower()), port)

    def holds_for(self, host: str, port: int | None) -> bool:
        if self.port not in (None, port):
            return False
        if self.network is not None:
            ip = _ip(host)
            return ip is not None and ip in self.network
        return self.domain in ("*", host) or host.endswith(f".{self.domain}")


class Egress:
    """`http` and `https` go by the scheme of what is asked for; `none_for` are hosts (a port may
    follow), domains and networks, and `*` for everything. No proxy leads to this host.
    """

    def __init__(
        self,
        http: ForwardProxy | None = None,
        https: ForwardProxy | None = None,
        none_for: Iterable[str] = (),
    ) -> None:
        self._proxies = {"http": http, "https": https}
        self._exemptions = [_Exemption.parse(each) for each in none_for]

    def proxy_for(self, url: URL) -> ForwardProxy | None:
        """None: straight there."""
        proxy = self._proxies.get(url.scheme)
        host = (url.raw_host or "").rstrip(".").lower()
        if proxy is None or _is_this_host(host):
            return None
        is_exempt = any(each.holds_for(host, url.port) for each in self._exemptions)
        return None if is_exempt else proxy


def _is_this_host(host: str) -> bool:
    ip = _ip(host)
    return host == "localhost" if ip is None else ip.is_loopback


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


def _in_ascii(domain: str) -> str:
    """As it stands in a URL (IDNA)."""
    try:
        return domain.encode("idna").decode()
    except UnicodeError:
        return domain
