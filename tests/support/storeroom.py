"""A store with its index, and an eviction that a test drives itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mirror.metrics import Metrics
from mirror.names import Digest
from mirror.store.blobs import BlobStore
from mirror.store.eviction import Eviction
from mirror.store.index import Index
from mirror.store.room import Limits
from mirror.store.usage import Usage


@dataclass
class Storeroom:
    store: BlobStore
    index: Index
    usage: Usage
    metrics: Metrics

    async def add(self, data: bytes, rank: float, used_at: float = 1.0) -> Digest:
        digest = Digest.of(data)
        await self.store.write(digest, data)
        await self.index.add_blob(digest, len(data), used_at, rank)
        self.usage.add(1, len(data))
        return digest

    def eviction(self, max_bytes: int | None, min_free_bytes: int | None = None) -> Eviction:
        limits = Limits(max_bytes, min_free_bytes)
        return Eviction(self.store, self.index, self.usage, self.metrics, limits)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that carry these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics.render().decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@asynccontextmanager
async def storeroom(folder: Path) -> AsyncIterator[Storeroom]:
    store, metrics = BlobStore(folder), Metrics()
    await store.open()
    index = await Index.open(store.paths.index)
    yield Storeroom(store, index, Usage(metrics), metrics)
    await index.aclose()
    await store.aclose()
