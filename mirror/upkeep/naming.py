"""Images by the names that people give them.

`nginx`, `nginx:1.27`, `quay.io/org/app`, `corp/app@sha256:…`. Also of an upstream that is no longer
configured: what came from it may still be here.
"""

from dataclasses import dataclass

from mirror.addressing import Directory
from mirror.errors import MirrorError, NameUnknown
from mirror.names import Digest, Reference, Repository, Tag, printable
from mirror.upkeep.lines import Refused

DEFAULT_TAG = Tag("latest")
MAX_NAME_CHARACTERS = 1_000
AS_LISTED = "`mirror ls` tells what is here, and by which names"


@dataclass(frozen=True, slots=True)
class ImageName:
    repository: Repository
    reference: Reference

    def __str__(self) -> str:
        sign = "@" if isinstance(self.reference, Digest) else ":"
        return f"{self.repository}{sign}{self.reference}"


def parse_image(text: str, directory: Directory) -> ImageName:
    """Where there is both a tag and a digest, the digest says which. Raises Refused."""
    if len(text) > MAX_NAME_CHARACTERS:
        raise Refused(f"an image's name has no more than {MAX_NAME_CHARACTERS} characters")
    if _is_digest(text):
        raise Refused(f"{text}: a digest does not tell the repository; {AS_LISTED}")
    name, _, digest = text.partition("@")
    before, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        name = before
    else:
        tag = DEFAULT_TAG
    try:
        reference: Reference = Digest.parse(digest) if "@" in text else Tag.parse(tag)
        return ImageName(_repository(name, directory), reference)
    except MirrorError as error:
        raise Refused(f"{printable(text)}: {error.message}") from None


def not_here(name: ImageName, directory: Directory, advice: str) -> Refused:
    """What cannot be here by this name gets another advice: people pull as from a host of ours."""
    upstream = name.repository.upstream
    if upstream in directory.hosts:
        return Refused(f"{name} is not here; {advice}")
    return Refused(
        f"{name} is not here, and {upstream} is not an upstream of this mirror; the mirror's own "
        f"address is left out. {AS_LISTED}"
    )


def _is_digest(text: str) -> bool:
    try:
        Digest.parse(text)
    except MirrorError:
        return False
    return True


def _repository(name: str, directory: Directory) -> Repository:
    """Raises NameInvalid, NameUnknown."""
    try:
        return Repository.parse(*directory.locate(name))
    except NameUnknown:
        upstream, slash, rest = name.partition("/")
        if not slash:
            raise
        return Repository.parse(upstream.lower(), rest)
