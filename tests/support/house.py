"""A real mirror in the test's own event loop, over real sockets, in front of fake registries."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from mirror.app import running
from mirror.config import Settings, load
from mirror.web.listeners import listening
from mirror.workers.front import fronting
from tests.fakes.client import RawResponse, raw_get
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.registry import FakeRegistry

# For every upstream.
PATIENT = {"prefetch": False, "connect_timeout": "1m", "idle_timeout": "1m"}


@dataclass
class House:
    """A running mirror. `storage` is its cache folder; `urls` are those of all its fronts, where it
    has any.
    """

    url: str
    storage: Path
    urls: Sequence[str] = ()

    def by_front(self, number: int) -> "House":
        """The same mirror, as the clients of one front see it."""
        return replace(self, url=self.urls[number])

    async def get(self, path: str, headers: dict[str, str] | None = None) -> RawResponse:
        return await raw_get(self.url + path, headers)

    async def head(self, path: str, headers: dict[str, str] | None = None) -> RawResponse:
        return await raw_get(self.url + path, headers, method="HEAD")

    async def get_until(self, path: str, check: Callable[[RawResponse], bool]) -> RawResponse:
        """Asks again until the answer is right: an endpoint that failed is left alone for a
        second or so.
        """
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not check(answer := await self.get(path)):  # noqa: ASYNC110 - nobody says when
                await asyncio.sleep(0.02)
        return answer

    async def metric(self, sample_name: str, **labels: str) -> float:
        """The sum of the samples of this name that carry these labels."""
        page = await self.get("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(page.body.decode())
            for sample in family.samples
            if sample.name == sample_name and labels.items() <= sample.labels.items()
        )

    def stored_blobs(self) -> set[str]:
        """The digests that have a final name."""
        return {
            f"{path.parent.parent.name}:{path.name}"
            for path in (self.storage / "blobs").glob("*/*/*")
        }

    def staged(self) -> list[Path]:
        return [path for path in (self.storage / "staging").rglob("*") if path.is_file()]


@asynccontextmanager
async def mirroring(
    folder: Path,
    upstreams: dict[str, FakeRegistry | dict[str, Any]],
    *,
    fronts: int = 0,
    **settings: Any,
) -> AsyncIterator[House]:
    """A mirror whose upstreams are fakes (or their settings, written out); the cache is kept in
    `folder`, so that a second mirror can be opened on it. Other settings go into the file as given.

    Nothing is fetched that is not asked for, so that requests can be counted, and fakes may take
    their time, unless an upstream's settings say otherwise. `fronts`: behind so many front
    processes' servers, though in this process, and each on a port of its own.
    """
    described = {
        name: PATIENT | ({"endpoints": [each.url]} if isinstance(each, FakeRegistry) else each)
        for name, each in upstreams.items()
    }
    document = {
        "listen": "127.0.0.1:0",
        "shutdown_grace": "2s",
        "storage": {"path": str(folder / "data")},
        "upstreams": described,
        **settings,
    }
    file = folder / "mirror.yaml"
    file.write_text(yaml.safe_dump(document))
    settings_read = await asyncio.to_thread(load, file, {})
    async with _running(settings_read, fronts) as ports:
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        yield House(urls[0], folder / "data", urls)


@asynccontextmanager
async def _running(settings: Settings, fronts: int) -> AsyncIterator[list[int]]:
    if not fronts:
        async with running(settings) as port:
            yield [port]
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as owner:
        owner.bind(f"{folder}/owner")
        owner.listen()
        owner.setblocking(False)
        async with running(settings, owner), AsyncExitStack() as all_fronts:
            ports = []
            for _ in range(fronts):
                listeners = await asyncio.to_thread(listening, *settings.listen)
                await all_fronts.enter_async_context(
                    fronting(settings, listeners, f"{folder}/owner")
                )
                ports.append(listeners[0].getsockname()[1])
            yield ports
