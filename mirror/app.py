"""Puts the house together, opens it from the ground up and closes it from the roof down."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from socket import socket

from yarl import URL

from mirror.addressing import Directory
from mirror.config import Settings
from mirror.config.model import Tls, UpstreamSettings
from mirror.control.server import ControlServer
from mirror.egress import Egress
from mirror.metrics import Metrics
from mirror.proxy.ledger import Ledger
from mirror.proxy.proxy import Proxy
from mirror.store.backup import IndexBackup
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.inspection import Inspection
from mirror.store.inventory import Inventory
from mirror.store.pins import Pins
from mirror.store.quarantine import Quarantine
from mirror.store.recovery import close_index, open_index
from mirror.store.room import Limits
from mirror.store.scrub import Pace, Scrub
from mirror.store.usage import Usage
from mirror.upkeep.cache import Cache
from mirror.upkeep.keeper import Keeper
from mirror.upstream.body import Blocks
from mirror.upstream.client import UpstreamClient
from mirror.upstream.definition import Account, Upstream
from mirror.web.behind import BehindServer
from mirror.web.listeners import listening
from mirror.web.registry import Registry
from mirror.web.server import Server
from mirror.web.status import Status
from mirror.web.tally import Uncounted, add


@asynccontextmanager
async def running(settings: Settings, fronts: socket | None = None) -> AsyncIterator[int]:
    """A serving mirror; the value is its port. No upstream is touched before a client asks.

    `fronts` is a listening Unix socket, for front processes that serve clients in place of this
    one; the value is 0 then. On leaving, running answers and downloads may end, both within one
    `shutdown_grace`. Raises FolderInUse, IndexTooNew, StorageFailed, CannotListen, OSError.
    """
    grace = _Grace(settings.shutdown_grace)
    metrics = Metrics()
    async with AsyncExitStack() as house:
        cache = await _opened(settings, house, metrics, grace, serves=True)
        server = _server(settings, cache, metrics, is_behind=fronts is not None)
        cache.forgotten = server.forget_repeats
        house.push_async_callback(lambda: server.aclose(grace.seconds_left()))
        house.callback(cache.proxy.end_ahead)
        control = ControlServer(Keeper(cache), cache.store.paths.control)
        house.push_async_callback(control.aclose)
        sockets = [fronts] if fronts else await asyncio.to_thread(listening, *settings.listen)
        await server.open(sockets)
        await control.open()
        yield 0 if fronts else sockets[0].getsockname()[1]


@asynccontextmanager
async def keeping(settings: Settings) -> AsyncIterator[Keeper]:
    """A cache that nobody serves from, for one command. Nothing happens but what that asks for.

    Raises FolderInUse, IndexTooNew, StorageFailed, OSError.
    """
    grace = _Grace(settings.shutdown_grace)
    async with AsyncExitStack() as house:
        yield Keeper(await _opened(settings, house, Metrics(), grace, serves=False))


async def _opened(
    settings: Settings, house: AsyncExitStack, metrics: Metrics, grace: "_Grace", *, serves: bool
) -> Cache:
    """All but what clients reach; `serves`: with all that goes on in the background."""
    store = BlobStore(settings.storage.path, metrics.storage_writable)
    await store.open(tidies=serves)
    house.push_async_callback(store.aclose)
    index = await open_index(store, metrics.index_failed)
    backup = IndexBackup(store)
    if index.memory is None and serves:
        house.push_async_callback(backup.make)
        backup.open()
    house.push_async_callback(close_index, index, store)
    house.push_async_callback(backup.aclose)
    usage = Usage(metrics)
    eviction = Eviction(store, index, usage, metrics, _limits(settings))
    house.push_async_callback(eviction.aclose)
    await eviction.take_stock()
    pins = Pins(store, index)
    await pins.open()
    quarantine = Quarantine(store, index, usage, metrics)
    house.push_async_callback(quarantine.aclose)
    await quarantine.open()
    if serves:
        eviction.open()
    clients: dict[str, UpstreamClient] = {}
    blocks = Blocks()
    for upstream in upstreams_of(settings):
        client = UpstreamClient(upstream, metrics, blocks, offline=settings.offline)
        clients[upstream.name] = client
        house.push_async_callback(client.aclose)
    ledger = Ledger(clients, index)
    house.push_async_callback(ledger.aclose)
    await ledger.open()
    inspection = Inspection(store, index, quarantine, metrics)
    scrub = Scrub(index, inspection, Pace(settings.storage.scrub_rate))
    house.push_async_callback(scrub.aclose)
    half_bytes = settings.cache_memory // 2  # the other half is for answers given again
    proxy = Proxy(
        store, index, quarantine, scrub, usage, eviction, pins, clients, metrics, half_bytes
    )
    house.push_async_callback(lambda: proxy.aclose(grace.seconds_left()))
    if serves:
        scrub.open()
    inventory = Inventory(index)
    directory = _directory(settings)
    return Cache(store, index, inventory, usage, eviction, inspection, pins, proxy, directory)


def _server(
    settings: Settings, cache: Cache, metrics: Metrics, *, is_behind: bool
) -> Server | BehindServer:
    """`is_behind` front processes, which count for themselves, and tell."""
    status = Status(metrics, cache.proxy.check_ready)
    if not is_behind:
        registry = Registry(cache.directory, cache.proxy, metrics)
        return Server(registry, status, metrics, settings.cache_memory // 2)
    registry = Registry(cache.directory, cache.proxy, Uncounted())
    add_told = partial(add, counts=metrics, note_given=registry.note_given)
    return BehindServer(registry, status, add_told, cache.store.readers)


class _Grace:
    """The time for what is running to end, counted from the first who asks."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends_at: float | None = None

    def seconds_left(self) -> float:
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._seconds
        return max(0.0, self._ends_at - time.monotonic())


def upstreams_of(settings: Settings) -> list[Upstream]:
    proxies = settings.proxies
    egress = Egress(proxies.http, proxies.https, proxies.none_for)
    return [_upstream(name, each, egress) for name, each in settings.upstreams.items()]


def _directory(settings: Settings) -> Directory:
    pairs = [(name, each.alias) for name, each in settings.upstreams.items()]
    return Directory.of(pairs, settings.default)


def _upstream(name: str, settings: UpstreamSettings, egress: Egress) -> Upstream:
    return Upstream(
        name=name,
        endpoints=tuple(URL(endpoint.rstrip("/")) for endpoint in settings.endpoints),
        accounts=tuple(Account(each.username, each.read_password) for each in settings.credentials),
        path_prefix=settings.path_prefix,
        token_realms=settings.token_realms,
        tls=_tls_context(settings.tls),
        tag_ttl_seconds=settings.tag_ttl,
        stale_for_seconds=settings.stale_for,
        not_found_ttl_seconds=settings.not_found_ttl,
        connect_timeout_seconds=settings.connect_timeout,
        idle_timeout_seconds=settings.idle_timeout,
        keeps_vanished=settings.when_gone == "serve",
        prefetch=settings.prefetch,
        max_connections=settings.max_connections,
        max_bytes_per_second=settings.max_rate,
        egress=egress,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(settings.storage.max_size, settings.storage.min_free)


def _tls_context(settings: Tls) -> ssl.SSLContext | None:
    """None: the system's certificates and the library's defaults."""
    if settings.ca_file is None and not settings.skip_verify:
        return None
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
