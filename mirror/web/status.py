"""Is it alive, can it serve, what has it done."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from mirror.errors import MirrorError
from mirror.metrics import Metrics

CheckReady = Callable[[], Awaitable[None]]


class Status:
    """`check_ready` raises MirrorError. Draining, the mirror is alive, but not ready."""

    def __init__(self, metrics: Metrics, check_ready: CheckReady) -> None:
        self._metrics = metrics
        self._check_ready = check_ready
        self.is_draining = False

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/healthz", self._healthz)
        router.add_get("/readyz", self._readyz)
        router.add_get("/metrics", self._metrics_page)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        if self.is_draining:
            return web.Response(status=503, text="draining\n")
        try:
            await self._check_ready()
        except MirrorError as error:
            return web.Response(status=503, text=f"{error.message}\n")
        return web.Response(text="ready\n")

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )
