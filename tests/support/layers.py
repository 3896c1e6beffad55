"""Blobs for tests of the way that blobs take, and clients that read much without keeping it."""

import asyncio
import hashlib
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.client import Ended, RawResponse, raw_open
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import Gate
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House

UPSTREAM = "registry.test"
APP = "org/app"


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def path_of(digest: str, repository: str = APP) -> str:
    return f"/v2/{UPSTREAM}/{repository}/blobs/{digest}"


def add_layer(registry: FakeRegistry, data: bytes, repository: str = APP) -> str:
    """The path, at a mirror, of a blob that the upstream now has."""
    return path_of(registry.add_blob(repository, data), repository)


@dataclass
class Read:
    """An answer that was hashed and not kept."""

    status: int
    length: int
    digest: str
    ended: Ended


async def read_through(url: str, headers: Mapping[str, str] | None = None) -> Read:
    async with asyncio.timeout(DEADLINE_SECONDS), raw_open(url, headers) as stream:
        length, digest = 0, hashlib.sha256()
        while data := await stream.read():
            length += len(data)
            digest.update(data)
        return Read(stream.status, length, f"sha256:{digest.hexdigest()}", stream.ended)


async def read_some(url: str, count: int, headers: Mapping[str, str] | None = None) -> bytes:
    """The first `count` bytes of an answer; the client then hangs up."""
    async with asyncio.timeout(DEADLINE_SECONDS), raw_open(url, headers) as stream:
        body = b""
        while len(body) < count and (data := await stream.read(count - len(body))):
            body += data
        return body


async def get_behind_gate(
    url: str, gate: Gate, headers: Mapping[str, str] | None = None
) -> RawResponse:
    """An answer whose body the upstream sends only when the client has the headers.

    A download that fails sooner is begun anew before the client hears of it.
    """
    async with asyncio.timeout(DEADLINE_SECONDS), raw_open(url, headers) as stream:
        gate.open()
        body = b""
        while data := await stream.read():
            body += data
        return RawResponse(stream.status, stream.headers, body, stream.ended)


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what no counter of a fake tells; for what lies on the disk, or in the metrics."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await check():  # noqa: ASYNC110 - nobody could set an event
            await asyncio.sleep(0.01)


async def until_stored(house: House, data: bytes) -> None:
    digest = digest_of(data)

    async def check() -> bool:
        return digest in house.stored_blobs()

    await eventually(check)


async def until_idle(house: House) -> None:
    """Until nothing is on its way in and nobody follows it."""
    idle = {b"mirror_downloads_active 0.0", b"mirror_download_followers 0.0"}

    async def check() -> bool:
        return idle <= set((await house.get("/metrics")).body.splitlines())

    await eventually(check)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def on_disk_bytes(storage: Path) -> int:
    """Blobs, and what is on its way in: what is less: sizes or blocks. Blocking."""
    total = 0
    for part in ("blobs", "staging"):
        for folder, _, names in os.walk(storage / part):
            for name in names:
                with suppress(FileNotFoundError):
                    found = (Path(folder) / name).stat()
                    total += min(found.st_size, found.st_blocks * 512)
    return total
