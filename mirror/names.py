"""What things are called: digests, tags, repositories. Text becomes one of these at the door.

Grammar: OCI distribution-spec, "Pulling manifests" (name, reference), and image-spec, "Digests".
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from mirror.errors import DigestInvalid, ManifestUnknown, NameInvalid

# Besides docker.io, as images call it.
OTHER_NAMES_OF_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io")
# Clients commonly limit host and name together to 255 characters.
MAX_NAME_CHARACTERS = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_HEX_CHARACTERS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")
_SHOWN_CHARACTERS = 100


def shown(text: str) -> str:
    """Text from outside as it may stand in a message: quoted, escaped and cut."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


def printable(text: str) -> str:
    """Text from outside that stays one line, and sends a terminal no commands."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


@dataclass(frozen=True, slots=True)
class Digest:
    """A content's address, `sha256:<64 hex>` or `sha512:<128 hex>`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises DigestInvalid."""
        algorithm, _, hex_part = text.partition(":")
        if len(hex_part) != _HEX_CHARACTERS.get(algorithm) or not _HEX.fullmatch(hex_part):
            raise DigestInvalid(
                f"{shown(text)} is not a digest: sha256 or sha512, a colon, lower-case hex"
            )
        return cls(algorithm, hex_part)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Self:
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def matches(self, content: bytes) -> bool:
        return self == Digest.of(content, self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class Tag(str):
    """A tag that follows the grammar."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ManifestUnknown: no registry can hold a tag that the grammar forbids."""
        if not _TAG.fullmatch(text):
            raise ManifestUnknown(f"{shown(text)} is not a tag that a registry could hold")
        return cls(text)


Reference = Tag | Digest


def parse_reference(text: str) -> Reference:
    """A tag, or a digest where there is a colon. Raises DigestInvalid, ManifestUnknown."""
    return Digest.parse(text) if ":" in text else Tag.parse(text)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of one upstream; the same name under another upstream is another repository."""

    upstream: str
    name: str

    @classmethod
    def parse(cls, upstream: str, name: str) -> Self:
        """Raises NameInvalid. Docker Hub's official images get the `library/` they live under."""
        if len(name) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
            raise NameInvalid(
                f"{shown(name)} is not a repository name: lower-case letters and digits, with "
                f"single separators . _ - and slashes, at most {MAX_NAME_CHARACTERS} characters"
            )
        if upstream == "docker.io" and "/" not in name:
            name = f"library/{name}"
        return cls(upstream, name)

    def __str__(self) -> str:
        return f"{self.upstream}/{self.name}"
