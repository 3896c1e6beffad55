"""What can be set, with its defaults. Each field's description is what `README.md` tells."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

from mirror.config.units import Listen, Seconds
from mirror.names import Repository

_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(:\d{1,5})?", re.ASCII)
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.ASCII)
_ALIAS = r"^[a-z0-9]+([._-][a-z0-9]+)*$"

# The registries that a mirror without any configuration serves, and where their API is.
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


def _readable_file(value: object) -> object:
    path = Path(value) if isinstance(value, str) else None
    if path is None or not path.is_file():
        raise ValueError("no such file; it must exist and be readable by the mirror")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    return path


ReadableFile = Annotated[Path, BeforeValidator(_readable_file)]


class Credential(_Model):
    """A login. The file is read anew for each login, so that a rotated secret takes effect."""

    username: Annotated[str, StringConstraints(min_length=1, pattern=r"^[^:\x00-\x1f]+$")]
    password: SecretStr | None = None
    password_file: ReadableFile | None = None

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if (self.password is None) == (self.password_file is None):
            raise ValueError("give either password or password_file")
        return self

    def read_password(self) -> str:
        """Raises OSError when the file has gone."""
        if self.password_file is not None:
            return self.password_file.read_text().strip("\r\n")
        return self.password.get_secret_value() if self.password else ""


class Tls(_Model):
    ca_file: ReadableFile | None = None
    skip_verify: bool = False


class UpstreamSettings(_Model):
    endpoints: Annotated[tuple[str, ...], Field(min_length=1)]
    alias: Annotated[str, StringConstraints(pattern=_ALIAS)] | None = None
    path_prefix: str = ""
    credentials: tuple[Credential, ...] = ()
    token_realms: frozenset[str] = frozenset()
    tls: Tls = Tls()
    tag_ttl: Seconds = 300
    stale_for: Seconds = 30 * 86400
    not_found_ttl: Seconds = 5
    when_gone: Literal["forget", "serve"] = "forget"
    connect_timeout: Annotated[Seconds, Field(gt=0)] = 5
    idle_timeout: Annotated[Seconds, Field(gt=0)] = 30

    @field_validator("endpoints")
    @classmethod
    def _are_urls(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        for endpoint in endpoints:
            if not _ENDPOINT.fullmatch(endpoint):
                raise ValueError(
                    "an endpoint is http(s)://host[:port][/path], without a login in it"
                )
        return endpoints

    @field_validator("path_prefix")
    @classmethod
    def _is_a_name(cls, prefix: str) -> str:
        if prefix:
            try:
                Repository.parse("", prefix)
            except Exception as error:
                raise ValueError("a path prefix is the start of a repository name") from error
        return prefix


class Storage(_Model):
    path: Path = Path("mirror-data")


class Log(_Model):
    format: Literal["json", "text"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


def _well_known_upstreams() -> dict[str, UpstreamSettings]:
    return {name: UpstreamSettings(endpoints=(url,)) for name, url in WELL_KNOWN.items()}


class Settings(_Model):
    listen: Listen = ("127.0.0.1", 5000)
    storage: Storage = Storage()
    default_upstream: str | None = None
    offline: bool = False
    shutdown_grace: Seconds = 30
    log: Log = Log()
    upstreams: Annotated[dict[str, UpstreamSettings], Field(min_length=1)] = Field(
        default_factory=_well_known_upstreams
    )

    @field_validator("upstreams", mode="before")
    @classmethod
    def _fill_well_known(cls, upstreams: object) -> object:
        """`docker.io: {tag_ttl: 1h}` keeps the endpoints that everybody knows."""
        if not isinstance(upstreams, Mapping):
            return upstreams
        return {name: _with_endpoints(name, value) for name, value in upstreams.items()}

    @field_validator("upstreams")
    @classmethod
    def _are_hosts(cls, upstreams: dict[str, UpstreamSettings]) -> dict[str, UpstreamSettings]:
        for name in upstreams:
            if name in ("index.docker.io", "registry-1.docker.io"):
                raise ValueError(f"images name {name} as docker.io; write that")
            if not _HOST.fullmatch(name) or ("." not in name and ":" not in name):
                raise ValueError(
                    f"{name!r} is not a registry's host as images name it, like quay.io or "
                    "registry.corp:5000; a short name goes under `alias`"
                )
        return upstreams

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        aliases = [each.alias for each in self.upstreams.values() if each.alias]
        for alias in aliases:
            if aliases.count(alias) > 1 or alias in self.upstreams:
                raise ValueError(f"the alias {alias!r} stands for more than one upstream")
        if self.default_upstream is not None and self.default_upstream not in self.upstreams:
            raise ValueError(
                f"default_upstream {self.default_upstream!r} is none of the upstreams "
                f"{', '.join(sorted(self.upstreams))}"
            )
        return self

    @property
    def default(self) -> str | None:
        """The upstream of requests that name none: as set, else docker.io where it is mirrored."""
        if self.default_upstream is None and "docker.io" in self.upstreams:
            return "docker.io"
        return self.default_upstream


def _with_endpoints(name: object, value: object) -> object:
    if name not in WELL_KNOWN or not (value is None or isinstance(value, Mapping)):
        return value
    return {"endpoints": [WELL_KNOWN[str(name)]], **(value or {})}
