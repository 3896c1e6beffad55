"""What can be set, with its defaults. README.md tells what each setting means."""

import re
import ssl
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
)
from yarl import URL

from mirror.config.sources import KeyPath
from mirror.config.units import Bytes, Listen, Seconds
from mirror.errors import NameInvalid
from mirror.names import OTHER_NAMES_OF_DOCKER_HUB, Repository

_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(:\d{1,5})?", re.ASCII)
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.ASCII)
_ALIAS = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*", re.ASCII)
_USERNAME = re.compile(r"[^:\x00-\x1f\x7f]+")
_ROOT_OF_THE_API = "v2"
MAX_WORKERS = 64

MIN_CONNECTIONS = 2
MAX_CONNECTIONS = 10_000
MIN_RATE_BYTES = 64 * 1024
MIN_MEMORY_BYTES = 16 * 1024 * 1024

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

Several = TypeVar("Several", bound=Sized)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _not_empty(value: Several) -> Several:
    if not value:
        raise ValueError("at least one is needed here")
    return value


def _path(value: object) -> object:
    if value == "":
        raise ValueError("this must be a path")
    return value


def _readable_file(value: Path) -> Path:
    if not value.is_file():
        raise ValueError(f"there is no file {value}")
    try:
        value.open("rb").close()
    except OSError as error:
        raise ValueError(f"the file {value} cannot be read: {error.strerror}") from None
    return value


def _certificates(value: Path) -> Path:
    try:
        ssl.create_default_context(cafile=value)
    except OSError:
        raise ValueError(f"the file {value} contains no PEM certificates") from None
    return value


def _username(value: str) -> str:
    if not _USERNAME.fullmatch(value):
        raise ValueError("a user name must not be empty, nor contain a colon or control characters")
    return value


def _password(value: SecretStr) -> SecretStr:
    if not value.get_secret_value():
        raise ValueError("a password must not be empty")
    return value


def _endpoint(value: str) -> str:
    if "@" in value:
        raise ValueError("a login does not belong in an endpoint; put it under `credentials`")
    try:
        is_right = bool(_ENDPOINT.fullmatch(value) and URL(value).host)
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError("an endpoint is http://host[:port][/path], or the same with https://")
    return value


def _alias(value: str) -> str:
    if not _ALIAS.fullmatch(value):
        raise ValueError("an alias is lower-case letters and digits, separated by single . _ or -")
    if value == _ROOT_OF_THE_API:
        raise ValueError("every path begins with v2; an alias needs a name of its own")
    return value


def _realm(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError("a token realm is a host, like auth.corp or auth.corp:8443")
    return value


def _path_prefix(value: str) -> str:
    if value:
        try:
            Repository.parse("", value)
        except NameInvalid:
            raise ValueError("a path prefix is the start of a repository name") from None
    return value


def _connections(value: int) -> int:
    if not MIN_CONNECTIONS <= value <= MAX_CONNECTIONS:
        raise ValueError(
            f"this must be a number from {MIN_CONNECTIONS}, one for blobs and one for the rest, "
            f"to {MAX_CONNECTIONS}"
        )
    return value


def _rate(value: int) -> int:
    if value < MIN_RATE_BYTES:
        raise ValueError("with less than 64KiB in a second no image would ever arrive")
    return value


def _max_size(value: int) -> int:
    if not value:
        raise ValueError("with no room nothing is kept; leave it out where the disk is the limit")
    return value


def _memory(value: int) -> int:
    if value < MIN_MEMORY_BYTES:
        raise ValueError(
            "this must be at least 16MiB: half of it has to hold a large manifest or two"
        )
    return value


ReadableFile = Annotated[Path, BeforeValidator(_path), AfterValidator(_readable_file)]


class Credential(_Model):
    """A login. The file is read anew for each login, so that a rotated secret takes effect."""

    username: Annotated[str, AfterValidator(_username)]
    password: Annotated[SecretStr, AfterValidator(_password)] | None = None
    password_file: ReadableFile | None = None

    def read_password(self) -> str:
        """Raises OSError when the file has gone, ValueError when it is empty or no text: as it is
        for a moment where a new password is written in place.
        """
        if self.password_file is None:
            return self.password.get_secret_value() if self.password else ""
        if not (password := self.password_file.read_text().strip("\r\n")):
            raise ValueError("the password file is empty")
        return password


class Tls(_Model):
    ca_file: Annotated[ReadableFile, AfterValidator(_certificates)] | None = None
    skip_verify: bool = False


class UpstreamSettings(_Model):
    endpoints: Annotated[
        tuple[Annotated[str, AfterValidator(_endpoint)], ...], AfterValidator(_not_empty)
    ]
    alias: Annotated[str, AfterValidator(_alias)] | None = None
    path_prefix: Annotated[str, AfterValidator(_path_prefix)] = ""
    credentials: tuple[Credential, ...] = ()
    token_realms: frozenset[Annotated[str, AfterValidator(_realm)]] = frozenset()
    tls: Tls = Tls()
    tag_ttl: Seconds = 300
    stale_for: Seconds = 30 * 86400
    not_found_ttl: Seconds = 5
    when_gone: Literal["forget", "serve"] = "forget"
    prefetch: bool = True
    max_connections: Annotated[int, AfterValidator(_connections)] = 384
    max_rate: Annotated[Bytes, AfterValidator(_rate)] | None = None
    connect_timeout: Annotated[Seconds, Field(gt=0)] = 5
    idle_timeout: Annotated[Seconds, Field(gt=0)] = 30


class Storage(_Model):
    path: Annotated[Path, BeforeValidator(_path)] = Path("mirror-data")
    max_size: Annotated[Bytes, AfterValidator(_max_size)] | None = None
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
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    storage: Storage = Storage()
    cache_memory: Annotated[Bytes, AfterValidator(_memory)] = 64 * 1024 * 1024
    default_upstream: str | None = None
    offline: bool = False
    shutdown_grace: Seconds = 30
    log: Log = Log()
    upstreams: Annotated[dict[str, UpstreamSettings], AfterValidator(_not_empty)] = Field(
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
    if not _HOST.fullmatch(name) or ("." not in name and ":" not in name):
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
