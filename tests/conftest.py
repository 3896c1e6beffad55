"""What every test runs under."""

from collections.abc import AsyncIterator, Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests.fakes.registry import FakeRegistry


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A blocking call made by the mirror on the event loop fails the test."""
    with blockbuster_ctx("mirror") as blockbuster:
        yield blockbuster


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry
