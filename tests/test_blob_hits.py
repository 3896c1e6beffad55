"""Blobs that are here."""

from pathlib import Path

from tests.fakes.registry import FakeRegistry
from tests.house import mirroring


async def test_a_second_get_asks_nothing(tmp_path: Path, registry: FakeRegistry) -> None:
    data = bytes(range(256)) * 1000
    digest = registry.add_blob("library/app", data)
    async with mirroring(tmp_path, {"docker.io": registry}) as house:
        cold = await house.get(f"/v2/library/app/blobs/{digest}")
        warm = await house.get(f"/v2/library/app/blobs/{digest}")
    assert (cold.body, warm.body) == (data, data)
    assert registry.count(kind="blob") == 1
