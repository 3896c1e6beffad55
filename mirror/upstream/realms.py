"""To which hosts an upstream's password may go: its own registrable domain, and what is
configured.
"""

from functools import cache
from ipaddress import ip_address

from publicsuffixlist import PublicSuffixList
from yarl import URL

from mirror.weburls import has_host


def is_allowed_realm(realm: URL, endpoint: URL, extra_hosts: frozenset[str]) -> bool:
    """Whether a challenge from `endpoint` may send us to `realm` for a token.

    The same registrable domain (auth.docker.io for registry-1.docker.io); the very same host and
    port where there is no such thing (addresses, localhost, single words); a configured host, with
    its port where that is not the scheme's own. Never from HTTPS to HTTP, and never with a login in
    the URL. Raises ValueError for URLs that are none.
    """
    if realm.scheme not in ("http", "https") or not realm.host or not endpoint.host:
        return False
    if not has_host(realm):
        return False
    if realm.user is not None or (endpoint.scheme == "https" and realm.scheme != "https"):
        return False
    spellings = {realm.host_port_subcomponent, f"{realm.host_subcomponent}:{realm.port}"}
    if spellings & {each.lower() for each in extra_hosts}:
        return True
    if (realm.host, realm.port) == (endpoint.host, endpoint.port):
        return True
    domain = _registrable_domain(realm.host)
    return domain is not None and domain == _registrable_domain(endpoint.host)


def _registrable_domain(host: str) -> str | None:
    try:
        ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        domain: str | None = _suffixes().privatesuffix(name)
        return domain
    return None


@cache
def _suffixes() -> PublicSuffixList:
    """The Mozilla list, as the library carries it; private sections (github.io) count too."""
    return PublicSuffixList()
