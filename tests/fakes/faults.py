"""What may go wrong with an answer. Several faults on one answer add up.

Places (`at_bytes`, `at`) count in the body as it is sent: for a ranged answer from its first
byte. -1 stands for "before the headers".
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from multidict import CIMultiDict

from tests.fakes.delivery import BEFORE_HEADERS, PIECE_BYTES, Answer, Delivery, End, Hold
from tests.fakes.seen import Kind, Seen

GARBAGE_PAGE = b"<!DOCTYPE html><html><body>Please log in to the guest network.</body></html>"


class Fault:
    """May hide something of the request, change the answer, or shape its delivery."""

    def hide(self, headers: CIMultiDict[str]) -> None:
        """Takes out request headers that the server shall overlook."""

    def change(self, answer: Answer) -> None:
        """Makes the answer another one."""

    def shape(self, delivery: Delivery) -> None:
        """Says how the answer goes out."""


@dataclass(frozen=True)
class Status(Fault):
    """Another status in place of the answer."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def change(self, answer: Answer) -> None:
        answer.status, answer.body = self.code, self.body
        answer.headers = CIMultiDict(self.headers)


@dataclass(frozen=True)
class Garbage(Fault):
    """A web page with 200, as captive portals and proxies give."""

    def change(self, answer: Answer) -> None:
        answer.status, answer.body = 200, GARBAGE_PAGE
        answer.headers = CIMultiDict({"Content-Type": "text/html; charset=utf-8"})


@dataclass(frozen=True)
class OtherBody(Fault):
    """200 with a body that nobody asked for, of no telling type."""

    body: bytes

    def change(self, answer: Answer) -> None:
        answer.status, answer.body = 200, self.body
        answer.headers = CIMultiDict({"Content-Type": "application/octet-stream"})


@dataclass(frozen=True)
class Header(Fault):
    """One header set to a value, or with None taken out."""

    name: str
    value: str | None

    def change(self, answer: Answer) -> None:
        answer.headers.popall(self.name, None)
        if self.value is not None:
            answer.headers[self.name] = self.value


@dataclass(frozen=True)
class NoDigestHeader(Fault):
    """Docker-Content-Digest left out."""

    def change(self, answer: Answer) -> None:
        answer.headers.popall("Docker-Content-Digest", None)


@dataclass(frozen=True)
class GenericType(Fault):
    """Content-Type says nothing."""

    def change(self, answer: Answer) -> None:
        answer.headers["Content-Type"] = "application/octet-stream"


@dataclass(frozen=True)
class IgnoreRange(Fault):
    """Range is overlooked: 200 with the whole body."""

    def hide(self, headers: CIMultiDict[str]) -> None:
        headers.popall("Range", None)

    def change(self, answer: Answer) -> None:
        answer.headers.popall("Accept-Ranges", None)


@dataclass(frozen=True)
class FromTheStart(IgnoreRange):
    """206 with the body's beginning, wherever a Range begins; None: with all of it."""

    count: int | None = None

    def change(self, answer: Answer) -> None:
        whole = answer.body
        answer.status, answer.body = 206, whole[: self.count]
        answer.headers["Content-Range"] = f"bytes 0-{len(answer.body) - 1}/{len(whole)}"


@dataclass(frozen=True)
class WrongTotal(Fault):
    """206 tells that the whole is so much longer than it is; 200 tells the truth."""

    delta: int

    def change(self, answer: Answer) -> None:
        if answer.status == 206:
            part, _, total = answer.headers["Content-Range"].partition("/")
            answer.headers["Content-Range"] = f"{part}/{int(total) + self.delta}"


@dataclass(frozen=True)
class WrongByte(Fault):
    """One byte flipped; nothing happens when the body is shorter."""

    at: int

    def change(self, answer: Answer) -> None:
        if self.at < len(answer.body):
            spoilt = bytearray(answer.body)
            spoilt[self.at] ^= 0xFF
            answer.body = bytes(spoilt)


@dataclass(frozen=True)
class WrongLength(Fault):
    """Content-Length is off by so much; the connection is closed after the body."""

    delta: int

    def shape(self, delivery: Delivery) -> None:
        delivery.length_delta = self.delta


@dataclass(frozen=True)
class NoLength(Fault):
    """No Content-Length: chunked, or ended by closing the connection."""

    chunked: bool = True

    def shape(self, delivery: Delivery) -> None:
        delivery.length = "chunked" if self.chunked else "untold"


@dataclass(frozen=True)
class Cut(Fault):
    """Closed (FIN) after so much of the body."""

    at_bytes: int

    def shape(self, delivery: Delivery) -> None:
        delivery.end = End(self.at_bytes, reset=False)


@dataclass(frozen=True)
class Reset(Fault):
    """Reset (RST) after so much of the body."""

    at_bytes: int

    def shape(self, delivery: Delivery) -> None:
        delivery.end = End(self.at_bytes, reset=True)


@dataclass(frozen=True)
class HangUp(Fault):
    """Closed without an answer."""

    def shape(self, delivery: Delivery) -> None:
        delivery.end = End(BEFORE_HEADERS, reset=False)


@dataclass(frozen=True)
class Delay(Fault):
    """The answer begins later."""

    seconds: float

    def shape(self, delivery: Delivery) -> None:
        delivery.delay_seconds = self.seconds


@dataclass(frozen=True)
class Trickle(Fault):
    """The body comes slowly, in small pieces."""

    bytes_per_second: float
    chunk_bytes: int | None = None  # None: twenty pieces a second

    def shape(self, delivery: Delivery) -> None:
        delivery.bytes_per_second = self.bytes_per_second
        piece = self.chunk_bytes or int(self.bytes_per_second / 20)
        delivery.piece_bytes = max(1, min(piece, PIECE_BYTES))


@dataclass(frozen=True)
class Stall(Fault):
    """So much of the body, then nothing until `registry.release()`."""

    at_bytes: int

    def shape(self, delivery: Delivery) -> None:
        delivery.holds.append(Hold(self.at_bytes, delivery.released, asyncio.Event()))


@dataclass(frozen=True, eq=False)
class Gate(Fault):
    """So much of the body, then nothing until the gate is opened; it stays open."""

    at_bytes: int
    opened: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    reached: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def open(self) -> None:
        self.opened.set()

    def shape(self, delivery: Delivery) -> None:
        delivery.holds.append(Hold(self.at_bytes, self.opened, self.reached))


@dataclass(eq=False)
class Rule:
    """Which requests meet which faults, and how often."""

    faults: tuple[Fault, ...]
    kind: Kind | None = None
    method: str | None = None
    repository: str | None = None
    reference: str | None = None
    times: int | None = None  # None: until healed
    skip: int = 0  # so many fitting requests go through first
    before_auth: bool = False  # also for requests that would only get a challenge
    used: int = 0

    def takes(self, seen: Seen, *, challenged: bool) -> bool:
        """Whether this request meets the faults; counts it if so."""
        if challenged and not self.before_auth:
            return False
        if not seen.is_like(self.method, self.kind, self.repository, self.reference):
            return False
        if self.times is not None and self.used >= self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.used += 1
        return True
