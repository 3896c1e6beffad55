"""An upstream as its operator describes it: plain values, made by the configuration."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from yarl import URL

from mirror.egress import Egress

# Whom an upstream counts requests without a login for: the address they come from.
ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Account:
    """A login. `read_password` is called for each use, so that a rotated file takes effect; it is
    blocking, and raises OSError or ValueError where there is no password to be had.
    """

    username: str
    read_password: Callable[[], str] = field(repr=False)


def name_of(account: Account | None) -> str:
    """As it is told and counted; None is nobody."""
    return account.username if account else ANONYMOUS


@dataclass(frozen=True, slots=True)
class Upstream:
    """One registry: where it is, how to ask it, and how long its answers hold.

    `path_prefix` stands before each repository name upstream (Artifactory's repository key).
    `token_realms` are hosts, with port where not the scheme's own, besides its own domain to which
    a challenge may send us for a token. `keeps_vanished`: a tag that the upstream no longer has is
    served on. `prefetch`: the blobs of a manifest that is served are fetched before they are asked
    for. `max_connections` are to one of its hosts, of all kinds; `max_bytes_per_second` is of blobs
    over all connections, None: as fast as they come. `egress` is the way out of this site.
    """

    name: str
    endpoints: tuple[URL, ...]
    accounts: tuple[Account, ...] = ()
    path_prefix: str = ""
    token_realms: frozenset[str] = frozenset()
    tls: ssl.SSLContext | None = None
    tag_ttl_seconds: float = 300
    stale_for_seconds: float = 30 * 86400
    not_found_ttl_seconds: float = 5
    connect_timeout_seconds: float = 5
    idle_timeout_seconds: float = 30
    keeps_vanished: bool = False
    prefetch: bool = True
    max_connections: int = 384
    max_bytes_per_second: int | None = None
    egress: Egress = field(default_factory=Egress)

    def remote_name(self, repository_name: str) -> str:
        """The repository's name as this upstream knows it."""
        return f"{self.path_prefix}/{repository_name}" if self.path_prefix else repository_name
