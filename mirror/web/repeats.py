"""Answers given again to requests that come again byte for byte, as nodes of one kind send them.

Reading a request and writing its answer's headers costs ten times what it takes to look the whole
request up. Only what was understood once, has no body and leaves its connection open is looked up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus

import structlog
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from cachetools import LRUCache

from mirror.web.replies import WRITE_BYTES
from mirror.web.request import FACTS, Facts

# Then the request goes its whole way again, past the store's and the index's word.
REPEAT_SECONDS = 5.0
MAX_REQUEST_BYTES = 4096
# What is longer takes its time anyway, and is sent in slices.
FILE_BYTES = 8 * 1024 * 1024
# Headers and objects beside a request and an answer's body.
_OVERHEAD_BYTES = 2048
_END_OF_HEAD = b"\r\n\r\n"

Log = structlog.typing.FilteringBoundLogger


@dataclass(slots=True, eq=False)
class Given:
    """What is told of an answer: its facts, and what its log lines share in `log`. So many `times`
    it was given again and is not counted yet.
    """

    method: str
    facts: Facts
    log: Log
    times: int = 0


@dataclass(slots=True, eq=False)
class Repeat:
    """An answer as it was given, but for its date: with its body, or where that lies in a file."""

    given: Given
    head: bytes
    body: bytes
    until: float
    held_bytes: int

    def cut_short(self, started_at: float, sent_bytes: int, error: str) -> Facts:
        """Of one more time, of which so much of the body was sent."""
        return replace(
            self.given.facts,
            started_at=started_at,
            sent_bytes=sent_bytes,
            cut_short=True,
            error=error,
        )

    def written(self) -> bytes:
        """But for what is in a file."""
        date = rfc822_formatted_time().encode()
        return b"".join((self.head, b"Date: ", date, _END_OF_HEAD, self.body))


class Repeats:
    """`until` counts on the monotonic clock."""

    def __init__(self, most_bytes: int, log_for: Callable[[Facts, str], Log]) -> None:
        """`most_bytes` is what all may take; larger than any of them."""
        self._log_for = log_for
        self._known: LRUCache[bytes, Repeat] = LRUCache(
            most_bytes, getsizeof=lambda repeat: repeat.held_bytes
        )
        # What was asked in an earlier one may have been answered by what was forgotten since.
        self.generation = 0

    def find(self, request: bytes, now: float) -> Repeat | None:
        """By all that the client sent."""
        repeat = self._known.get(request)
        return repeat if repeat is not None and now < repeat.until else None

    def keep(self, request: bytes, parsed: web.BaseRequest, response: web.StreamResponse) -> None:
        """Where its facts allow it."""
        facts = parsed[FACTS]
        if facts.repeat_until is None or not _can_come_again(parsed):
            return
        body = _body_of(response, facts)
        if body is None:
            return
        until = min(facts.repeat_until, time.monotonic() + REPEAT_SECONDS)
        head = _head_of(response, len(body) if facts.file is None else facts.file.count)
        sent = b"" if parsed.method == hdrs.METH_HEAD else body
        held_bytes = len(request) + len(head) + len(sent) + _OVERHEAD_BYTES
        sent_bytes = len(sent) if facts.file is None else facts.file.count
        given = Given(
            parsed.method,
            replace(facts, deadline=None, sent_bytes=sent_bytes),
            self._log_for(facts, parsed.method),
        )
        self._known[request] = Repeat(given, head, sent, until, held_bytes)

    def clear(self) -> None:
        self.generation += 1
        self._known.clear()


def is_one_head(data: bytes) -> bool:
    """Whether this is one request's head and nothing else, as far as can be seen from outside."""
    if len(data) > MAX_REQUEST_BYTES or not data.startswith((b"GET ", b"HEAD ")):
        return False
    return data.find(_END_OF_HEAD) == len(data) - len(_END_OF_HEAD)


def _can_come_again(request: web.BaseRequest) -> bool:
    """Secrets are not kept, though nobody asked for them."""
    return (
        request.version == HttpVersion11
        and request.keep_alive
        and not request.body_exists
        and hdrs.AUTHORIZATION not in request.headers
    )


def _body_of(response: web.StreamResponse, facts: Facts) -> bytes | None:
    """Nothing, where all of it is in a file; None: not to be given again."""
    if facts.file is not None:
        is_all = facts.sent_bytes == facts.file.count <= FILE_BYTES and not facts.cut_short
        return b"" if is_all else None
    if not isinstance(response, web.Response) or response.status != HTTPStatus.OK:
        return None
    body = response.body if isinstance(response.body, bytes) else b""
    return body if len(body) <= WRITE_BYTES else None


def _head_of(response: web.StreamResponse, body_bytes: int) -> bytes:
    headers = dict(response.headers.items())
    headers.pop(hdrs.DATE, None)
    headers.setdefault(hdrs.CONTENT_LENGTH, str(body_bytes))
    status = HTTPStatus(response.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, ""]).encode()
