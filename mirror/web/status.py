"""Is it alive, can it serve, what has it done."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from mirror.errors import MirrorError
from mirror.metrics import Metrics

CheckReady = Callable[[], Awaitable[None]]
Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Status:
    """`check_ready` raises MirrorError. Draining, the mirror is alive, but not ready.

    `pages` are the paths of its own, and who answers them.
    """

    def __init__(self, metrics: Metrics, check_ready: CheckReady) -> None:
        self._metrics = metrics
        self._check_ready = check_ready
        self.is_draining = False
        self.pages: Mapping[str, Page] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics_page,
        }

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
