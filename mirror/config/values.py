"""What a value may be: each type refuses what is none of it with a sentence that says what is."""

import re
import ssl
from collections.abc import Sized
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, InstanceOf, SecretStr
from yarl import URL

from mirror.config.units import Bytes
from mirror.egress import ForwardProxy
from mirror.errors import NameInvalid
from mirror.names import Repository
from mirror.weburls import parse_url

_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(:\d{1,5})?", re.ASCII)
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.ASCII)
_PROXY = re.compile(r"https?://([^\s/?#@]*@)?[^\s/?#@]+/?", re.ASCII | re.IGNORECASE)
_ALIAS = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*", re.ASCII)
_ONE_LINE = re.compile(r"[^\x00\r\n]+")
_USERNAME = re.compile(r"[^:\x00-\x1f\x7f]+")
_ROOT_OF_THE_API = "v2"

MAX_WORKERS = 64
MIN_CONNECTIONS = 2
MAX_CONNECTIONS = 10_000
MIN_RATE_BYTES = 64 * 1024
MIN_MEMORY_BYTES = 16 * 1024 * 1024

Several = TypeVar("Several", bound=Sized)


def is_host(value: str) -> bool:
    """`quay.io`, `registry.corp:5000`."""
    return bool(_HOST.fullmatch(value))


def not_empty(value: Several) -> Several:
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


def one_password(text: str) -> str:
    """Of a file or a variable, where a newline often stands behind it. Raises ValueError."""
    if not (password := text.strip("\r\n")):
        raise ValueError("a password must not be empty")
    if not _ONE_LINE.fullmatch(password):
        raise ValueError("a password is a single line of text")
    return password


def _password(value: SecretStr) -> SecretStr:
    return SecretStr(one_password(value.get_secret_value()))


def _endpoint(value: str) -> str:
    if "@" in value:
        raise ValueError("a login does not belong in an endpoint; put it under `credentials`")
    try:
        is_right = bool(_ENDPOINT.fullmatch(value) and URL(value).host)
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError("an endpoint is http://host[:port][/path], or the same with https://")
    if value.rstrip("/").endswith(f"/{_ROOT_OF_THE_API}"):
        raise ValueError(
            "an endpoint stands before /v2/, which is put behind it for each request: leave it out"
        )
    return value


def _proxy(value: object) -> ForwardProxy:
    """Without a scheme, as many write it, one that is spoken to in plain HTTP."""
    text = value if isinstance(value, str) else ""
    if "://" not in text:
        text = f"http://{text}"
    try:
        url = parse_url(text)
    except ValueError:
        url = URL()
    if not (_PROXY.fullmatch(text) and url.host) or ":" in (url.user or ""):
        raise ValueError(
            "a proxy is http://host:port or https://host:port; user:password@ may stand before the "
            "host, their special characters as %XX"
        )
    login = (url.user or "", url.password or "")
    return ForwardProxy(url.origin(), login if any(login) else None)


def _separated(value: object) -> object:
    """NO_PROXY is one text, with commas."""
    return tuple(re.split(r"[,\s]+", value.strip(", \t\n"))) if isinstance(value, str) else value


def _alias(value: str) -> str:
    if not _ALIAS.fullmatch(value):
        raise ValueError("an alias is lower-case letters and digits, separated by single . _ or -")
    if value == _ROOT_OF_THE_API:
        raise ValueError("every path begins with v2; an alias needs a name of its own")
    return value


def _realm(value: str) -> str:
    if not is_host(value):
        raise ValueError("a token realm is a host, like auth.corp or auth.corp:8443")
    return value


def _path_prefix(value: str) -> str:
    if value:
        try:
            Repository.parse("", value)
        except NameInvalid:
            raise ValueError("a path prefix is the start of a repository name") from None
    return value


def _workers(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("this must be a whole number")
    return value


def _in_bounds(value: int) -> int:
    if not 1 <= value <= MAX_WORKERS:
        raise ValueError(f"this must be a whole number from 1 to {MAX_WORKERS}")
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


FilePath = Annotated[Path, BeforeValidator(_path)]
ReadableFile = Annotated[FilePath, AfterValidator(_readable_file)]
Certificates = Annotated[ReadableFile, AfterValidator(_certificates)]
Username = Annotated[str, AfterValidator(_username)]
Password = Annotated[SecretStr, AfterValidator(_password)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
ProxyUrl = Annotated[InstanceOf[ForwardProxy], BeforeValidator(_proxy)]
Separated = Annotated[tuple[str, ...], BeforeValidator(_separated)]
Alias = Annotated[str, AfterValidator(_alias)]
Realm = Annotated[str, AfterValidator(_realm)]
PathPrefix = Annotated[str, AfterValidator(_path_prefix)]
Connections = Annotated[int, AfterValidator(_connections)]
Workers = Annotated[int, BeforeValidator(_workers), AfterValidator(_in_bounds)]
Rate = Annotated[Bytes, AfterValidator(_rate)]
MaxSize = Annotated[Bytes, AfterValidator(_max_size)]
Memory = Annotated[Bytes, AfterValidator(_memory)]
