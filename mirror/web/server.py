"""The HTTP server: one wrapper around every request, which turns errors into answers, writes its
one log line and counts it.
"""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from typing import Protocol

from aiohttp import web

from mirror.errors import MirrorError, ShuttingDown
from mirror.web.answering import Answers, Handler, answer
from mirror.web.connection import Connection
from mirror.web.counts import Counts
from mirror.web.journal import Journal
from mirror.web.listeners import BACKLOG
from mirror.web.places import Places, connections_allowed
from mirror.web.repeats import Repeats
from mirror.web.replay import Replay
from mirror.web.replies import WRITE_BYTES, error_reply
from mirror.web.request import FACTS, Facts
from mirror.web.status import Page

# For answers that are only being written, after the grace for the others is over.
CLOSING_SECONDS = 1


class Pages(Protocol):
    """What is told of the mirror itself, by path."""

    is_draining: bool

    @property
    def pages(self) -> Mapping[str, Page]: ...


class Server:
    """Listens once opened. `aclose` lets running answers end."""

    def __init__(
        self, registry: Answers, status: Pages, counts: Counts, repeats_bytes: int
    ) -> None:
        """`repeats_bytes` is what answers that are given again may take of memory."""
        self._status = status
        self._registry = registry
        self._journal = Journal(counts)
        # Without an Application: its router costs every answer a tenth of its time, and all paths
        # but three are the registry's.
        self._connections = web.Server(self._handle, handler_cancellation=True)
        self._listeners: list[asyncio.Server] = []
        self._places = Places(connections_allowed(), counts)
        self._running: set[asyncio.Task[object]] = set()
        repeats = Repeats(repeats_bytes, self._journal.log_for_repeats)
        self._replay = Replay(
            repeats,
            self._journal,
            registry.find_open,
            registry.note_given,
            self._running,
        )

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """They are the server's from now on."""
        loop = asyncio.get_running_loop()
        for each in sockets:
            listener = await loop.create_server(self._connection, sock=each, backlog=BACKLOG)
            self._listeners.append(listener)

    async def aclose(self, grace_seconds: float) -> None:
        """Lets running answers end within the grace, and tells whoever else asks that it ends."""
        self._status.is_draining = True
        self._replay.repeats.clear()
        running = set(self._running)
        if running:
            _, late = await asyncio.wait(running, timeout=grace_seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CLOSING_SECONDS)
        for listener in self._listeners:
            listener.close()
        self._connections.pre_shutdown()
        await self._connections.shutdown(CLOSING_SECONDS)

    def repeat(
        self, head: bytes, transport: asyncio.Transport, client: str
    ) -> asyncio.Task[None] | bool:
        """See `Replay.answer`."""
        return self._replay.answer(head, transport, client)

    async def forget_repeats(self) -> None:
        """What was answered may no longer be here."""
        self._replay.repeats.clear()

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
            generation = self._replay.repeats.generation
            response = await answer(request, facts, handler)
            facts.status = response.status
            if generation == self._replay.repeats.generation:
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

    def _remember(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        connection = request.protocol
        head = connection.head if isinstance(connection, Connection) else None
        if head is not None and not self._status.is_draining:
            self._replay.repeats.keep(head, request, response)

    def _record(self, request: web.BaseRequest, facts: Facts) -> None:
        self._journal.record(facts, request.method, request.remote or "")


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
