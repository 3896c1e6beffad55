"""One client's connection: its parser, its limits in time, and answers that are given again."""

import asyncio
from http import HTTPStatus
from typing import Protocol

import structlog
from aiohttp import web

from mirror.errors import MirrorError, RequestInvalid
from mirror.web.places import TAKE_SECONDS, Places, place_of, turn_away
from mirror.web.repeats import is_one_head
from mirror.web.replay import SEND_SECONDS

MAX_REQUEST_LINE_BYTES = 16 * 1024
# containers/image writes up to 1,024 ranges into one header.
MAX_HEADER_BYTES = 64 * 1024
# Also the time that a connection has for each request's headers.
KEEPALIVE_SECONDS = 75
# For the rest of a body that nobody wants; then the connection ends.
LINGERING_SECONDS = 10
FAILED = "the mirror failed; its log says more"

_log = structlog.get_logger()


class Answerer(Protocol):
    """Whom connections ask outside of a request's usual way."""

    def refuse(self, request: web.BaseRequest, error: MirrorError) -> web.Response:
        """The answer to what is no request."""

    def repeat(
        self, head: bytes, transport: asyncio.Transport, client: str
    ) -> asyncio.Task[None] | bool:
        """Whether a request that came before in just these bytes is answered with this; a task
        where the answer is still on its way.
        """


class Connection(web.RequestHandler):
    """What is wrong in a request's form is refused in our own words."""

    __slots__ = (
        "_answerer",
        "_client",
        "_is_plain",
        "_place",
        "_places",
        "_sending",
        "_taking",
        "head",
    )

    def __init__(self, manager: web.Server, answerer: Answerer, places: Places) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_REQUEST_LINE_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            lingering_time=LINGERING_SECONDS,
            auto_decompress=False,  # bodies of requests are read past, never looked into
        )
        self._answerer = answerer
        self._places = places
        self._place: str | None = None
        self._client = ""
        self._taking: asyncio.TimerHandle | None = None
        # An answer that is given again and still on its way; nothing is read meanwhile.
        self._sending: asyncio.Task[None] | None = None
        # Each request so far came in one piece, and had no body.
        self._is_plain = True
        # The request under way, where it did so, too, and nothing came after it.
        self.head: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - so TCP's are
        # None where the client was gone before we looked.
        self._client, *_ = transport.get_extra_info("peername") or ("",)
        place = place_of(self._client)
        if not self._places.take(place):
            turn_away(transport)
            return
        self._place = place
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._sending is not None:
            self._sending.cancel()
        if self._place is not None:
            self._places.give_back(self._place)
            self._place = None
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        is_plain = self._is_plain and is_one_head(data)
        is_next = is_plain and self._is_idle()
        self.head = data if is_next else None
        if is_next and self._is_repeated(data):
            return
        waiting = len(self._messages)
        try:
            super().data_received(data)
        except (IndexError, ValueError):
            # What the parser means to refuse is a request for `handle_error`; a target like
            # http://[]@/ slips through it (yarl 1.25).
            self.force_close()
        # Bytes of a body are never to be taken for a request.
        self._is_plain = is_plain and self._has_one_more_without_body(waiting)

    def pause_writing(self) -> None:
        """The client has to take what was written for it."""
        super().pause_writing()
        if self.transport is not None:
            self._taking = self._loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_clock()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Of requests that were understood, only a client's hang-up should come here."""
        if isinstance(exc, ConnectionError):
            raise exc
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("request failed", path=request.path[:1000], exc_info=exc)
            return self._answerer.refuse(request, MirrorError(FAILED))
        # What the parser says, without the client's bytes, which it shows on further lines.
        reason = (message or "no HTTP").splitlines()[0].strip(" :")
        invalid = RequestInvalid(f"this is not a request: {reason}")
        return self._answerer.refuse(request, invalid)

    def _is_idle(self) -> bool:
        """Whether all that came was answered, and the client took the answers."""
        waiter, transport = self._waiter, self.transport
        if waiter is None or waiter.done() or not isinstance(transport, asyncio.Transport):
            return False
        return not transport.get_write_buffer_size()

    def _has_one_more_without_body(self, waiting: int) -> bool:
        return len(self._messages) == waiting + 1 and self._messages[-1][1].is_eof()

    def _is_repeated(self, head: bytes) -> bool:
        transport = self.transport
        if not isinstance(transport, asyncio.Transport):
            return False
        answered = self._answerer.repeat(head, transport, self._client)
        if isinstance(answered, asyncio.Task):
            self._sending = answered
            transport.pause_reading()
            self._next_keepalive_close_time = self._loop.time() + SEND_SECONDS
            answered.add_done_callback(self._note_sent)
        elif answered:
            self._next_keepalive_close_time = self._loop.time() + KEEPALIVE_SECONDS
        return bool(answered)

    def _note_sent(self, _task: asyncio.Task[None]) -> None:
        self._sending = None
        self._next_keepalive_close_time = self._loop.time() + KEEPALIVE_SECONDS
        if isinstance(self.transport, asyncio.Transport) and not self.transport.is_closing():
            self.transport.resume_reading()

    def _stop_clock(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None
