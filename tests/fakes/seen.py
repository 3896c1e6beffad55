"""What a fake server remembers of each request."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from multidict import CIMultiDict, MultiDict

from tests.fakes.deadline import DEADLINE_SECONDS

Kind = Literal["ping", "manifest", "blob", "tags", "referrers", "token", "other"]

_REPOSITORY = r"/v2/(?P<repository>.+)"
_ROUTES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("ping", re.compile(r"/v2/?")),
    ("token", re.compile(r"/token/?")),
    ("manifest", re.compile(_REPOSITORY + r"/manifests/(?P<reference>[^/]+)")),
    ("blob", re.compile(_REPOSITORY + r"/blobs/(?P<reference>[^/]+)")),
    ("blob", re.compile(r"/(?P<repository>cdn)/(?P<reference>[^/]+)")),
    ("tags", re.compile(_REPOSITORY + r"/tags/list")),
    ("referrers", re.compile(_REPOSITORY + r"/referrers/(?P<reference>[^/]+)")),
)


@dataclass(eq=False)
class Seen:
    """One request, and how far its answer got; the last fields change while it is answered."""

    method: str
    target: str  # as it came, with percent signs and query
    path: str
    query: MultiDict[str]
    headers: CIMultiDict[str]
    body: bytes = b""
    kind: Kind = field(init=False, default="other")
    repository: str = field(init=False, default="")
    reference: str = field(init=False, default="")
    status: int = 0  # 0: no status line was sent (yet)
    bytes_sent: int = 0  # of the body
    held: bool = False  # stands at a Stall or a Gate
    hung_up: bool = False  # the client left before the end
    finished: bool = False

    def __post_init__(self) -> None:
        for kind, pattern in _ROUTES:
            if found := pattern.fullmatch(self.path):
                named = found.groupdict()
                self.kind = kind
                self.repository = named.get("repository", "")
                self.reference = named.get("reference", "")
                return

    @property
    def is_for_cdn(self) -> bool:
        return self.path.startswith("/cdn/")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")

    def is_like(
        self,
        method: str | None = None,
        kind: Kind | None = None,
        repository: str | None = None,
        reference: str | None = None,
        status: int | None = None,
    ) -> bool:
        """Whether all that is given fits; None fits everything."""
        return (
            method in (None, self.method)
            and kind in (None, self.kind)
            and repository in (None, self.repository)
            and reference in (None, self.reference)
            and status in (None, self.status)
        )


async def read_request(reader: asyncio.StreamReader) -> Seen | None:
    """The next request, or None when no (whole) request came any more."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        headers = CIMultiDict((name, value.strip()) for name, value in pairs)
        body = await reader.readexactly(int(headers.get("Content-Length", "0")))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        return None
    parts = urlsplit(target)
    query = MultiDict(parse_qsl(parts.query, keep_blank_values=True))
    return Seen(method, target, unquote(parts.path), query, headers, body)


class Journal:
    """The requests a server has seen, oldest first, and questions about them."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.most_at_once = 0
        self._open: set[Seen] = set()
        self._stirred = asyncio.Event()

    def count(
        self,
        method: str | None = None,
        kind: Kind | None = None,
        repository: str | None = None,
        reference: str | None = None,
        status: int | None = None,
    ) -> int:
        """How many requests fit."""
        like = (method, kind, repository, reference, status)
        return sum(seen.is_like(*like) for seen in self.requests)

    def body_bytes(self, kind: Kind | None = None) -> int:
        """The body bytes written for requests of that kind."""
        return sum(seen.bytes_sent for seen in self.requests if seen.is_like(kind=kind))

    def in_flight(self, kind: Kind | None = None) -> int:
        """How many requests are being answered now."""
        return sum(seen.is_like(kind=kind) for seen in self._open)

    def forget(self) -> None:
        """Starts counting anew; what is being answered now stays in flight."""
        self.requests.clear()
        self.most_at_once = len(self._open)

    async def until(self, condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
        """Waits for a condition on this server; asked again whenever something happens here."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._stirred.clear()
                await self._stirred.wait()

    async def until_count(self, number: int = 1, *, kind: Kind | None = None) -> None:
        """Waits until that many requests of the kind have come in."""
        await self.until(lambda: self.count(kind=kind) >= number)

    def _note(self, seen: Seen) -> None:
        self.requests.append(seen)
        self._open.add(seen)
        self.most_at_once = max(self.most_at_once, len(self._open))
        self._stir()

    def _note_end(self, seen: Seen) -> None:
        self._open.discard(seen)
        seen.finished, seen.held = True, False
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()
