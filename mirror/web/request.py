"""The facts of one request, gathered on its way through, for its log line and its counts."""

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import web

from mirror.addressing import Address, Kind
from mirror.metrics import NO_UPSTREAM, Cache
from mirror.names import Digest
from mirror.web.counts import Counts

NO_ADDRESS = Address(Kind.OTHER)


@dataclass(frozen=True, slots=True)
class FilePart:
    """The bytes of a stored blob that an answer consists of."""

    digest: Digest
    start: int
    count: int
    is_whole: bool


@dataclass(slots=True)
class Facts:
    """Filled in by whoever knows; `sent_bytes` counts the body's, `status` is set as headers go.

    `probe` is the path of a page about the mirror itself: logged at debug level, not counted.
    `is_pull_saved`: a manifest was given without a pull upstream. Until `repeat_until`, on the
    monotonic clock, the same request has the same answer, and nobody needs to be asked or looked
    up for it; None: not even now. `file` is what sendfile took the whole body from.
    """

    address: Address = NO_ADDRESS
    cache: Cache = Cache.NONE
    status: int | None = None
    sent_bytes: int = 0
    cut_short: bool = False
    error: str | None = None
    probe: str | None = None
    is_pull_saved: bool = False
    repeat_until: float | None = None
    file: FilePart | None = None
    started_at: float = field(default_factory=time.monotonic)
    deadline: asyncio.Timeout | None = None

    @property
    def upstream(self) -> str:
        return self.address.upstream or NO_UPSTREAM

    def answers(self) -> None:
        """Headers go out: what follows may take as long as it takes."""
        if self.deadline is not None:
            self.deadline.reschedule(None)

    def first_byte(self, counts: Counts) -> None:
        """To be called as the headers go out."""
        seconds = time.monotonic() - self.started_at
        counts.first_byte_sent(self.upstream, self.address.kind.value, seconds)


FACTS = web.RequestKey("facts", Facts)
