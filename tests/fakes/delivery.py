"""What is answered, and how it is put on the wire."""

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from multidict import CIMultiDict

PIECE_BYTES = 256 * 1024
BEFORE_HEADERS = -1


@dataclass
class Answer:
    """A response as it ought to be; Content-Length follows from the body."""

    status: int
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""


@dataclass(frozen=True)
class Hold:
    """A place in the body where nothing moves until `opened` is set."""

    at_bytes: int
    opened: asyncio.Event
    reached: asyncio.Event


@dataclass(frozen=True)
class End:
    """A place in the body where the connection ends."""

    at_bytes: int
    reset: bool


@dataclass
class Delivery:
    """How an answer is put on the wire; untouched it means at once, whole and correct."""

    released: asyncio.Event  # what a Stall waits for
    delay_seconds: float = 0
    bytes_per_second: float | None = None
    piece_bytes: int = PIECE_BYTES
    holds: list[Hold] = field(default_factory=list)
    end: End | None = None
    length: Literal["told", "chunked", "untold"] = "told"
    length_delta: int = 0
