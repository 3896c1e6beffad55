"""The HTTP server: one wrapper around every request, which turns errors into answers, writes its
one log line and counts it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from mirror.errors import MirrorError
from mirror.metrics import Cache, Metrics
from mirror.proxy.absences import RememberedAbsence
from mirror.web.registry import Registry
from mirror.web.replies import error_reply
from mirror.web.request import FACTS, Facts
from mirror.web.status import Status

MAX_REQUEST_LINE_BYTES = 16 * 1024
# containers/image writes up to 1,024 ranges into one header.
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024
KEEPALIVE_SECONDS = 75
CLIENT_CLOSED_REQUEST = 499

_log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Listens once opened. `aclose` takes no new connections and lets running answers end."""

    def __init__(self, registry: Registry, status: Status, metrics: Metrics) -> None:
        self._metrics = metrics
        self._status = status
        self._registry = registry
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        status.add_routes(application.router)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._application = application
        self._runner: web.AppRunner | None = None

    async def open(self, host: str, port: int, grace_seconds: float) -> int:
        """Returns the port, which the system chooses where 0 is asked for. Raises OSError."""
        self._runner = web.AppRunner(
            self._application,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=grace_seconds,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_REQUEST_LINE_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, host or None, port, backlog=1024)
        await site.start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def aclose(self) -> None:
        self._status.is_draining = True
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        facts = request[FACTS] = Facts()
        try:
            response = await self._answer(request, facts)
            facts.status = response.status
            body = response.body if isinstance(response, web.Response) else None
            if isinstance(body, bytes) and request.method != "HEAD":
                facts.sent_bytes += len(body)
            return response
        finally:
            self._observe(request, facts)

    async def _answer(self, request: web.Request, facts: Facts) -> web.StreamResponse:
        try:
            return await self._registry.handle(request)
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
            return error_reply(MirrorError("the mirror failed; its log says more"), facts.address)

    def _observe(self, request: web.Request, facts: Facts) -> None:
        address = facts.address
        kind = address.kind.value
        method = request.method
        status = facts.status or CLIENT_CLOSED_REQUEST
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
        _log.info("request", **fields)
