"""The HTTP server: one wrapper around every request, which turns errors into answers, writes its
one log line and counts it.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from mirror.errors import MirrorError, ShuttingDown
from mirror.metrics import Cache, Metrics
from mirror.proxy.absences import RememberedAbsence
from mirror.web.connection import FAILED, Connection
from mirror.web.journal import Journal
from mirror.web.places import Places, connections_allowed, end_stalled_connections
from mirror.web.registry import Registry
from mirror.web.repeats import Repeats
from mirror.web.replies import WRITE_BYTES, error_reply
from mirror.web.request import FACTS, Facts
from mirror.web.status import Status

# For answers that are only being written, after the grace for the others is over.
CLOSING_SECONDS = 1

_log = structlog.get_logger()

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class CannotListen(Exception):
    """The address is in use, or none of this machine's."""


class Server:
    """Listens once opened. `aclose` lets running answers end."""

    def __init__(self, registry: Registry, status: Status, metrics: Metrics) -> None:
        self._metrics = metrics
        self._status = status
        self._registry = registry
        self._journal = Journal(metrics)
        # Without an Application: its router costs every answer a tenth of its time, and all paths
        # but three are the registry's.
        self._connections = web.Server(self._handle, handler_cancellation=True)
        self._listener: asyncio.Server | None = None
        self._places = Places(connections_allowed(), metrics)
        self._repeats = Repeats()
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
        self._repeats.clear()
        running = set(self._running)
        if running:
            _, late = await asyncio.wait(running, timeout=grace_seconds)
            for task in late:
                task.cancel()
        if self._listener is not None:
            self._listener.close()
        self._connections.pre_shutdown()
        await self._connections.shutdown(CLOSING_SECONDS)

    def repeat(self, head: bytes, client: str) -> bytes | None:
        """The answer to a request that came before, recorded like any other."""
        if (repeat := self._repeats.find(head)) is None:
            return None
        facts = repeat.facts()
        facts.first_byte(self._metrics)
        self._journal.record(facts, repeat.method, client)
        return repeat.written()

    def forget_repeats(self) -> None:
        """What was answered may no longer be here."""
        self._repeats.clear()

    def refuse(self, request: web.BaseRequest, error: MirrorError) -> web.Response:
        """The answer to what is no request; the connection ends with it."""
        facts = request[FACTS] = Facts()
        facts.error = error.message
        response = error_reply(error, facts.address)
        response.force_close()
        facts.status = response.status
        self._record(request, facts)
        return response

    def _connection(self) -> Connection:
        return Connection(self._connections, self, self._places)

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
            if isinstance(response, web.Response):
                self._remember(request, response)
            body = response.body if isinstance(response, web.Response) else None
            if not isinstance(body, bytes) or request.method == "HEAD":
                return response
            if len(body) > WRITE_BYTES:
                return await _send_in_slices(request, response, body, facts)
            facts.sent_bytes += len(body)
            return response
        finally:
            self._record(request, facts)

    def _remember(self, request: web.BaseRequest, response: web.Response) -> None:
        connection = request.protocol
        head = connection.head if isinstance(connection, Connection) else None
        if head is not None and not self._status.is_draining:
            self._repeats.keep(head, request, response)

    def _record(self, request: web.BaseRequest, facts: Facts) -> None:
        self._journal.record(facts, request.method, request.remote or "")


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
        return error_reply(MirrorError(FAILED), facts.address)


async def _send_in_slices(
    request: web.BaseRequest, response: web.StreamResponse, body: bytes, facts: Facts
) -> web.StreamResponse:
    """What does not go out at once is copied by the transport: never more than a slice of it."""
    sliced = web.StreamResponse(status=response.status, headers=response.headers)
    sliced.content_length = len(body)
    await sliced.prepare(request)
    view = memoryview(body)
    for start in range(0, len(body), WRITE_BYTES):
        piece = view[start : start + WRITE_BYTES]
        await sliced.write(piece)
        facts.sent_bytes += len(piece)
    return sliced
