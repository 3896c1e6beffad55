"""The HTTP server: one wrapper around every request, which turns errors into answers, writes its
one log line and counts it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from aiohttp import web

from mirror.errors import MirrorError, RequestInvalid, ShuttingDown
from mirror.metrics import Cache, Metrics
from mirror.proxy.absences import RememberedAbsence
from mirror.web.connections import (
    TAKE_SECONDS,
    Places,
    connections_allowed,
    end_stalled_connections,
    place_of,
    turn_away,
)
from mirror.web.registry import Registry
from mirror.web.replies import error_reply
from mirror.web.request import FACTS, Facts
from mirror.web.status import Status

MAX_REQUEST_LINE_BYTES = 16 * 1024
# containers/image writes up to 1,024 ranges into one header.
MAX_HEADER_BYTES = 64 * 1024
# Also the time that a connection has for each request's headers.
KEEPALIVE_SECONDS = 75
# For the rest of a body that nobody wants; then the connection ends.
LINGERING_SECONDS = 10
# Of a larger body only so much waits in the connection of a client that reads slowly.
SLICE_BYTES = 256 * 1024
CLIENT_CLOSED_REQUEST = 499
_FAILED = "the mirror failed; its log says more"
# For answers that are only being written, after the grace for the others is over.
CLOSING_SECONDS = 1

_log = structlog.get_logger()

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Refuse = Callable[[web.BaseRequest, MirrorError], web.Response]


class CannotListen(Exception):
    """The address is in use, or none of this machine's."""


class _Connection(web.RequestHandler):
    """One client's connection; what is wrong in a request's form is refused in our own words."""

    __slots__ = ("_place", "_places", "_refuse", "_taking")

    def __init__(self, manager: web.Server, refuse: Refuse, places: Places) -> None:
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
        self._refuse = refuse
        self._places = places
        self._place: str | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - so TCP's are
        # None where the client was gone before we looked.
        host, *_ = transport.get_extra_info("peername") or ("",)
        place = place_of(host)
        if not self._places.take(place):
            turn_away(transport)
            return
        self._place = place
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._place is not None:
            self._places.give_back(self._place)
            self._place = None
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except (IndexError, ValueError):
            # What the parser means to refuse is a request for `handle_error`; a target like
            # http://[]@/ slips through it (yarl 1.25).
            self.force_close()

    def pause_writing(self) -> None:
        """The client has to take what was written for it."""
        super().pause_writing()
        if self.transport is not None:
            self._taking = self._loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

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
            return self._refuse(request, MirrorError(_FAILED))
        # What the parser says, without the client's bytes, which it shows on further lines.
        reason = (message or "no HTTP").splitlines()[0].strip(" :")
        return self._refuse(request, RequestInvalid(f"this is not a request: {reason}"))


class Server:
    """Listens once opened. `aclose` lets running answers end."""

    def __init__(self, registry: Registry, status: Status, metrics: Metrics) -> None:
        self._metrics = metrics
        self._status = status
        self._registry = registry
        self._log = structlog.get_logger().bind()
        # Without an Application: its router costs every answer a tenth of its time, and all paths
        # but three are the registry's.
        self._connections = web.Server(self._handle, handler_cancellation=True)
        self._listener: asyncio.Server | None = None
        self._places = Places(connections_allowed(), metrics)
        self._running: set[asyncio.Task[object]] = set()

    async def open(self, host: str, port: int) -> int:
        """Returns the port, which the system chooses where 0 is asked for. Raises CannotListen."""
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                self._connection, host or None, port, backlog=1024
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotListen(reason.rpartition(": ")[2]) from error
        for each in self._listener.sockets:
            end_stalled_connections(each)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def aclose(self, grace_seconds: float) -> None:
        """Lets running answers end within the grace, and tells whoever else asks that it ends."""
        self._status.is_draining = True
        running = set(self._running)
        if running:
            _, late = await asyncio.wait(running, timeout=grace_seconds)
            for task in late:
                task.cancel()
        if self._listener is not None:
            self._listener.close()
        self._connections.pre_shutdown()
        await self._connections.shutdown(CLOSING_SECONDS)

    def _connection(self) -> _Connection:
        return _Connection(self._connections, self._refuse, self._places)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        page = self._status.pages.get(path) if request.method in ("GET", "HEAD") else None
        if page is not None:
            return await self._accompany(request, Facts(probe=path), page)
        return await self._accompany(request, Facts(), self._serve)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._status.is_draining:
            raise ShuttingDown("this mirror is shutting down", headers={"Connection": "close"})
        return await self._registry.handle(request)

    async def _accompany(
        self, request: web.BaseRequest, facts: Facts, handler: Handler
    ) -> web.StreamResponse:
        """Whatever happens: one answer, one log line."""
        request[FACTS] = facts
        # aiohttp gives each request a task of its own, which also writes the answer.
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            response = await _answer(request, facts, handler)
            facts.status = response.status
            body = response.body if isinstance(response, web.Response) else None
            if not isinstance(body, bytes) or request.method == "HEAD":
                return response
            if len(body) > SLICE_BYTES:
                return await _send_in_slices(request, response, body, facts)
            facts.sent_bytes += len(body)
            return response
        finally:
            self._observe(request, facts)

    def _refuse(self, request: web.BaseRequest, error: MirrorError) -> web.Response:
        facts = request[FACTS] = Facts()
        facts.error = error.message
        response = error_reply(error, facts.address)
        response.force_close()
        facts.status = response.status
        self._observe(request, facts)
        return response

    def _observe(self, request: web.BaseRequest, facts: Facts) -> None:
        address = facts.address
        kind = address.kind.value
        method = request.method
        status = facts.status or CLIENT_CLOSED_REQUEST
        if facts.probe is not None:
            seconds = round(time.monotonic() - facts.started_at, 4)
            self._log.debug("probe", path=facts.probe, status=status, seconds=seconds)
            return
        self._metrics.answered(facts.upstream, kind, method, status, facts.cache, facts.sent_bytes)
        fields: dict[str, object] = {
            "method": method[:16],
            "kind": kind,
            "upstream": facts.upstream,
            "repository": address.repository.name if address.repository else "",
            "reference": str(address.reference or ""),
            "status": status,
            "bytes": facts.sent_bytes,
            "seconds": round(time.monotonic() - facts.started_at, 4),
            "cache": facts.cache.value,
            "client": request.remote or "",
        }
        if facts.cut_short:
            fields["cut_short"] = True
        if facts.error is not None:
            fields["error"] = facts.error
        self._log.info("request", **fields)


async def _answer(request: web.BaseRequest, facts: Facts, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except MirrorError as error:
        if isinstance(error, RememberedAbsence):
            facts.cache = Cache.NEGATIVE
        facts.error = error.message
        return error_reply(error, facts.address)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        _log.exception("request failed", path=request.path[:1000])
        facts.error = "internal error"
        return error_reply(MirrorError(_FAILED), facts.address)


async def _send_in_slices(
    request: web.BaseRequest, response: web.StreamResponse, body: bytes, facts: Facts
) -> web.StreamResponse:
    """What does not go out at once is copied by the transport: never more than a slice of it."""
    sliced = web.StreamResponse(status=response.status, headers=response.headers)
    sliced.content_length = len(body)
    await sliced.prepare(request)
    view = memoryview(body)
    for start in range(0, len(body), SLICE_BYTES):
        piece = view[start : start + SLICE_BYTES]
        await sliced.write(piece)
        facts.sent_bytes += len(piece)
    return sliced
