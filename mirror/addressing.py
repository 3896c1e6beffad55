"""From a request's path and `?ns=` to what is asked of which upstream.

The four ways in which clients name the upstream, in the order in which they count:

    /v2/quay.io/org/app/…       a registry host as first component (podman, CRI-O, crane, helm)
    /quay.io/v2/org/app/…       the same, before /v2 (registry-mirrors with a path, hosts.toml)
    /v2/org/app/…?ns=quay.io    containerd, BuildKit, Docker with the containerd store
    /v2/org/app/…               the default upstream (Docker's registry-mirrors)

An alias works like its host, except where `ns` names another registry: there it is the first part
of that registry's repository, or `docker.io/corp/app` would silently become another image. The
list of upstreams is closed: a name outside it is refused, never looked up in DNS, never dialled.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from mirror.errors import NameInvalid, NameUnknown
from mirror.names import (
    OTHER_NAMES_OF_DOCKER_HUB,
    Digest,
    Reference,
    Repository,
    parse_reference,
    shown,
)


class Kind(StrEnum):
    """What is asked for; the values are the `kind` label of the metrics."""

    PING = "ping"
    CATALOG = "catalog"
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"
    UPLOAD = "upload"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Address:
    """A request, understood. `name` is the repository as the client wrote it, registry included."""

    kind: Kind
    upstream: str | None = None
    repository: Repository | None = None
    reference: Reference | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A request whose upstream is known; the rest of it is still text."""

    kind: Kind
    upstream: str | None
    name: str = ""
    remote_name: str = ""
    reference: str = ""

    def address(self) -> Address:
        """Raises NameInvalid, DigestInvalid, ManifestUnknown."""
        if self.upstream is None or self.kind in (Kind.PING, Kind.CATALOG):
            return Address(self.kind, self.upstream)
        if not self.remote_name:
            raise NameInvalid(f"{shown(self.name)} names no repository")
        repository = Repository.parse(self.upstream, self.remote_name)
        reference = _parse_reference_of(self.kind, self.reference)
        return Address(self.kind, self.upstream, repository, reference, self.name)


@dataclass(frozen=True, slots=True)
class Directory:
    """The closed list: every accepted spelling and alias of each upstream, and the default."""

    hosts: Mapping[str, str]
    aliases: Mapping[str, str]
    default: str | None

    @classmethod
    def of(cls, upstreams: Iterable[tuple[str, str | None]], default: str | None) -> Self:
        """`upstreams` are pairs of name and alias."""
        hosts: dict[str, str] = {}
        aliases: dict[str, str] = {}
        for name, alias in upstreams:
            for spelling in (name, *(OTHER_NAMES_OF_DOCKER_HUB if name == "docker.io" else ())):
                hosts[spelling] = name
                if ":" not in spelling:
                    hosts[f"{spelling}:443"] = name
            if alias is not None:
                aliases[alias] = name
        return cls(hosts, aliases, default)

    def route(self, path: str, namespaces: Sequence[str] = ()) -> Route:
        """`path` is percent-decoded except for %2F and %25; `namespaces` are all values of `ns`.

        Raises NameInvalid, NameUnknown.
        """
        prefix, rest = _split_at_v2(path)
        namespace = _one_namespace(namespaces)
        if rest in ("", "_catalog"):
            return Route(Kind.CATALOG if rest else Kind.PING, self._scope(prefix, namespace))
        kind, name, reference = _split_rest(rest)
        full_name = f"{prefix}/{name}" if prefix else name
        upstream, remote_name = self._upstream_of(full_name, namespace, prefixed=bool(prefix))
        return Route(kind, upstream, full_name, remote_name, reference)

    def locate(self, name: str) -> tuple[str, str]:
        """The upstream of an image's name without tag, and what it calls it. Raises NameUnknown."""
        return self._upstream_of(name, None, prefixed=False)

    def _scope(self, prefix: str, namespace: str | None) -> str | None:
        """The upstream that a ping or a catalogue is limited to; None: the mirror itself."""
        named = prefix.partition("/")[0] or namespace
        if not named:
            return None
        return self._known(named)

    def _known(self, name: str) -> str:
        upstream = self._spelled(name)
        if upstream is None:
            raise NameUnknown(
                f"{shown(name)} is not an upstream of this mirror; it serves "
                f"{', '.join(sorted(set(self.hosts.values())))}. An operator can add one under "
                "`upstreams` in the configuration."
            )
        return upstream

    def _spelled(self, name: str) -> str | None:
        return self.hosts.get(name.lower()) or self.aliases.get(name)

    def _upstream_of(self, name: str, namespace: str | None, *, prefixed: bool) -> tuple[str, str]:
        first, _, rest = name.partition("/")
        upstream = self.hosts.get(first.lower())
        if upstream is not None:
            return upstream, rest
        upstream = self.aliases.get(first)
        if upstream is not None and (
            prefixed or not namespace or self._spelled(namespace) == upstream
        ):
            return upstream, rest
        if prefixed:
            return self._known(first), rest
        if namespace:
            return self._known(namespace), name
        if _looks_like_host(first) or self.default is None:
            return self._known(first), rest
        return self.default, name


def _split_at_v2(path: str) -> tuple[str, str]:
    """(what stands before /v2, what stands behind /v2/)."""
    if path == "/v2" or path.startswith("/v2/"):
        return "", path[4:]
    if path.endswith("/v2"):
        path += "/"
    before, marker, rest = path.partition("/v2/")
    if not marker:
        raise NameUnknown(f"{shown(path)} is not a path of the registry API, which is under /v2/")
    return before.strip("/"), rest


def _one_namespace(namespaces: Sequence[str]) -> str | None:
    distinct = {namespace for namespace in namespaces if namespace}
    if len(distinct) > 1:
        raise NameInvalid("the request names several registries in `ns`; one is possible")
    return distinct.pop() if distinct else None


def _split_rest(rest: str) -> tuple[Kind, str, str]:
    """`<name>/manifests/<reference>` and its like, from the right: a name may hold these words."""
    name, _, last = rest.rpartition("/")
    name, _, verb = name.rpartition("/")
    if name.endswith("/blobs") and verb == "uploads":
        return Kind.UPLOAD, name.removesuffix("/blobs"), last
    match verb, last:
        case "blobs", "uploads":
            return Kind.UPLOAD, name, ""
        case "tags", "list":
            return Kind.TAGS, name, ""
        case "manifests", _:
            return Kind.MANIFEST, name, last
        case "blobs", _:
            return Kind.BLOB, name, last
        case "referrers", _:
            return Kind.REFERRERS, name, last
        case _:
            pass
    raise NameUnknown(f"{shown('/v2/' + rest)} is not an endpoint of the registry API")


def _parse_reference_of(kind: Kind, text: str) -> Reference | None:
    if kind is Kind.MANIFEST:
        return parse_reference(text)
    if kind in (Kind.BLOB, Kind.REFERRERS):
        return Digest.parse(text)
    return None


def _looks_like_host(component: str) -> bool:
    return "." in component or ":" in component or component == "localhost"
