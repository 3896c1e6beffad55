"""What can be set, with its defaults. README.md tells what each setting means."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from mirror.config.sources import KeyPath
from mirror.config.units import Bytes, Listen, Seconds
from mirror.config.values import (
    Alias,
    Certificates,
    Connections,
    Endpoint,
    FilePath,
    MaxSize,
    Memory,
    Password,
    PathPrefix,
    ProxyUrl,
    Rate,
    ReadableFile,
    Realm,
    Separated,
    Username,
    Workers,
    is_host,
    not_empty,
    one_password,
)
from mirror.names import OTHER_NAMES_OF_DOCKER_HUB

# The registries that a mirror serves without any configuration, and where their API is.
WELL_KNOWN = {
    "docker.io": "https://registry-1.docker.io",
    "ghcr.io": "https://ghcr.io",
    "quay.io": "https://quay.io",
    "registry.k8s.io": "https://registry.k8s.io",
    "gcr.io": "https://gcr.io",
    "public.ecr.aws": "https://public.ecr.aws",
    "mcr.microsoft.com": "https://mcr.microsoft.com",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Credential(_Model):
    """A login. The file is read anew for each login, so that a rotated secret takes effect."""

    username: Username
    password: Password | None = None
    password_file: ReadableFile | None = None

    def read_password(self) -> str:
        """Raises OSError when the file has gone, ValueError when it is empty or no line of text: as
        it is for a moment where a new password is written in place.
        """
        if self.password_file is None:
            return self.password.get_secret_value() if self.password else ""
        return one_password(self.password_file.read_text(encoding="utf-8-sig"))


class Tls(_Model):
    ca_file: Certificates | None = None
    skip_verify: bool = False


class UpstreamSettings(_Model):
    endpoints: Annotated[tuple[Endpoint, ...], AfterValidator(not_empty)]
    alias: Alias | None = None
    path_prefix: PathPrefix = ""
    credentials: tuple[Credential, ...] = ()
    token_realms: frozenset[Realm] = frozenset()
    tls: Tls = Tls()
    tag_ttl: Seconds = 300
    stale_for: Seconds = 30 * 86400
    not_found_ttl: Seconds = 5
    when_gone: Literal["forget", "serve"] = "forget"
    prefetch: bool = True
    max_connections: Connections = 384
    max_rate: Rate | None = None
    connect_timeout: Annotated[Seconds, Field(gt=0)] = 5
    idle_timeout: Annotated[Seconds, Field(gt=0)] = 30


class Proxies(_Model):
    """Towards upstreams; see egress.py."""

    http: ProxyUrl | None = None
    https: ProxyUrl | None = None
    none_for: Separated = ()


class Storage(_Model):
    path: FilePath = Path("mirror-data")
    max_size: MaxSize | None = None
    min_free: Bytes | None = None
    scrub_rate: Bytes = 20 * 1024 * 1024


class Log(_Model):
    format: Literal["json", "text"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


def _well_known_upstreams() -> dict[str, UpstreamSettings]:
    return {name: UpstreamSettings(endpoints=(url,)) for name, url in WELL_KNOWN.items()}


class Settings(_Model):
    """Right in each value; `contradictions` tells what is wrong between them."""

    listen: Listen = ("127.0.0.1", 5000)
    workers: Workers = 1
    storage: Storage = Storage()
    cache_memory: Memory = 64 * 1024 * 1024
    default_upstream: str | None = None
    offline: bool = False
    shutdown_grace: Seconds = 30
    log: Log = Log()
    proxies: Proxies = Proxies()
    upstreams: Annotated[dict[str, UpstreamSettings], AfterValidator(not_empty)] = Field(
        default_factory=_well_known_upstreams
    )

    @field_validator("upstreams", mode="before")
    @classmethod
    def _fill_well_known(cls, upstreams: object) -> object:
        """`docker.io: {tag_ttl: 1h}` keeps the endpoints that everybody knows."""
        if not isinstance(upstreams, Mapping):
            return upstreams
        return {name: _with_endpoints(name, value) for name, value in upstreams.items()}

    @property
    def default(self) -> str | None:
        """The upstream of requests that name none: as set, else docker.io where it is mirrored."""
        if self.default_upstream is None and "docker.io" in self.upstreams:
            return "docker.io"
        return self.default_upstream


def contradictions(document: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with names and between values: where, and what would be right.

    Looks at the values as they came, so that this is told beside every other mistake.
    """
    upstreams = document.get("upstreams", WELL_KNOWN)
    if not isinstance(upstreams, Mapping):
        return
    default = document.get("default_upstream")
    if isinstance(default, str) and default not in upstreams:
        known = ", ".join(sorted(upstreams))
        yield ("default_upstream",), f"{default!r} is not one of the upstreams: {known}"
    taken = {*upstreams, *OTHER_NAMES_OF_DOCKER_HUB}
    for name, upstream in upstreams.items():
        if wrong := _wrong_with_host(name):
            yield ("upstreams", name), wrong
        if not isinstance(upstream, Mapping):
            continue
        alias = upstream.get("alias")
        if isinstance(alias, str):
            if alias in taken:
                yield ("upstreams", name, "alias"), f"{alias!r} already stands for another upstream"
            taken.add(alias)
        yield from _wrong_passwords(("upstreams", name, "credentials"), upstream.get("credentials"))


def _wrong_with_host(name: str) -> str | None:
    if name in OTHER_NAMES_OF_DOCKER_HUB:
        return "images call this registry docker.io; use that name"
    if not is_host(name) or ("." not in name and ":" not in name):
        return (
            "this must be a registry's host as in image names, like quay.io or registry.corp:5000; "
            "put a short name under `alias`"
        )
    return None


def _wrong_passwords(path: KeyPath, credentials: object) -> Iterator[tuple[KeyPath, str]]:
    for n, credential in enumerate(credentials if isinstance(credentials, list) else ()):
        if isinstance(credential, Mapping):
            given = [credential.get(key) is not None for key in ("password", "password_file")]
            if given.count(True) != 1:
                yield (*path, n), "a credential needs either a password or a password_file"


def _with_endpoints(name: object, value: object) -> object:
    if name not in WELL_KNOWN or not (value is None or isinstance(value, Mapping)):
        return value
    return {"endpoints": [WELL_KNOWN[str(name)]], **(value or {})}
