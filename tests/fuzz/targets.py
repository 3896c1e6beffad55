"""What is fuzzed: each target takes any bytes, and raises where the mirror breaks a promise."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress

from multidict import CIMultiDict
from yarl import URL

from mirror.addressing import Address, Directory
from mirror.byteranges import MAX_RANGES, parse_content_range, resolve
from mirror.errors import MirrorError, RangeUnsatisfiable
from mirror.manifest import blobs_of, fallback_child, is_accepted, media_type_of
from mirror.names import MAX_NAME_CHARACTERS
from mirror.proxy.weblinks import next_query
from mirror.upstream.addresses import literal_reach
from mirror.upstream.answers import error_of
from mirror.upstream.challenge import Challenge, parse_challenges
from mirror.upstream.realms import is_allowed_realm
from mirror.weburls import parse_url

DIRECTORY = Directory.of(
    [("docker.io", "hub"), ("quay.io", None), ("[::1]:5000", "v6")], "docker.io"
)
ENDPOINT = URL("https://registry.example.com")
_NAME = re.compile(r"[a-z0-9._-]+(/[a-z0-9._-]+)*")
_OTHER_DOTS = re.compile(r"(^|/)\.|\.(/|$)|\.\.")


def requests(data: bytes) -> None:
    """A request's target, Range, Accept; the lines of `data` are one each."""
    target, wanted, accept, size, *_ = [*data.split(b"\n"), b"", b"", b"", b""]
    _address(target)
    _ranges(wanted.decode("utf-8", "surrogateescape"), int.from_bytes(size[:5]))
    is_accepted("application/json", [accept.decode("utf-8", "surrogateescape")])


def challenges(data: bytes) -> None:
    """What an upstream sends in headers and documents; the lines of `data` are one header each."""
    lines = [line.decode("utf-8", "surrogateescape") for line in data.split(b"\n")]
    for challenge in parse_challenges(lines):
        _challenge(challenge)
    for line in lines:
        _content_range(line)
        next_query(line)
        _location(line)
        _retry_after(line)
    _manifest(data, lines[0])


def written(document: object) -> bytes:
    """JSON on one line, as a target takes it."""
    return json.dumps(document).encode()


TARGETS: Mapping[str, Callable[[bytes], None]] = {"requests": requests, "challenges": challenges}


def _address(target: bytes) -> None:
    """As the server reads it: aiohttp's parser builds the URL without looking into it."""
    path, _, query = target.decode("utf-8", "surrogateescape").partition("?")
    if not path.startswith("/"):
        path = f"/{path}"
    url = URL.build(path=path, query_string=query, encoded=True)
    try:
        address = DIRECTORY.route(url.path_safe, url.query.getall("ns", ())).address()
    except MirrorError as error:
        _is_the_clients_mistake(error)
    else:
        _stays_in_the_house(address)


def _is_the_clients_mistake(error: MirrorError) -> None:
    assert 400 <= error.status < 500
    assert error.message.isprintable()


def _stays_in_the_house(address: Address) -> None:
    assert address.upstream in {None, *DIRECTORY.hosts.values()}
    if address.repository is not None:
        name = address.repository.name
        assert _NAME.fullmatch(name)
        assert not _OTHER_DOTS.search(name)
        assert len(name) <= MAX_NAME_CHARACTERS + len("library/")
    if address.reference is not None:
        assert re.fullmatch(r"[\w.:-]+", str(address.reference), re.ASCII)


def _ranges(header: str, size_bytes: int) -> None:
    with suppress(RangeUnsatisfiable):
        found = resolve(header, size_bytes)
        assert len(found) <= MAX_RANGES
        assert all(0 <= each.start < each.end <= size_bytes for each in found)
        assert sum(each.length for each in found) <= size_bytes


def _challenge(challenge: Challenge) -> None:
    assert challenge.scheme == challenge.scheme.lower()
    assert all(name == name.lower() for name in challenge.parameters)
    with suppress(ValueError):
        realm = parse_url(challenge.parameters.get("realm", ""))
        if is_allowed_realm(realm, ENDPOINT, frozenset()):
            host = (realm.host or "").rstrip(".").lower()
            assert host == "example.com" or host.endswith(".example.com")
            assert (realm.scheme, realm.user) == ("https", None)


def _location(line: str) -> None:
    with suppress(ValueError):
        target = ENDPOINT.join(parse_url(line, encoded=True))
        if target.host and target.scheme in ("http", "https"):
            literal_reach(target.host)
            target.origin()


def _content_range(line: str) -> None:
    told = parse_content_range(line)
    if told is not None:
        start, end, size_bytes = told
        assert 0 <= start < end
        assert size_bytes is None or end <= size_bytes


def _retry_after(line: str) -> None:
    headers = CIMultiDict({"Retry-After": line})
    error = error_of("registry", "it", 429, headers, line.encode("utf-8", "replace"), "anonymous")
    assert error.headers["Retry-After"].isascii()
    assert error.headers["Retry-After"].isprintable()
    assert error.message.isprintable()


def _manifest(body: bytes, content_type: str) -> None:
    media_type_of(body, content_type)
    fallback_child(body)
    assert all(each.size_bytes is not None and each.size_bytes >= 0 for each in blobs_of(body))
