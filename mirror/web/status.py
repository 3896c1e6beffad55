"""Is it alive, can it serve, what has it done."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from mirror.errors import MirrorError
from mirror.metrics import Metrics
from mirror.web.replies import SOFTWARE

CheckReady = Callable[[], Awaitable[None]]
Page = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


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

    async def _healthz(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(text="alive\n", headers=SOFTWARE)

    async def _readyz(self, _request: web.BaseRequest) -> web.Response:
        if self.is_draining:
            return web.Response(status=503, text="draining\n", headers=SOFTWARE)
        try:
            await self._check_ready()
        except MirrorError as error:
            return web.Response(status=503, text=f"{error.message}\n", headers=SOFTWARE)
        return web.Response(text="ready\n", headers=SOFTWARE)

    async def _metrics_page(self, _request: web.BaseRequest) -> web.Response:
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST, **SOFTWARE}
        )
