"""A warm answer asks neither the index nor a thread for anything, and hashes nothing: also where it
is not one that is simply given again.
"""

import asyncio
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.store import staging
from mirror.store.database import Database
from tests.fakes.client import RawResponse
from tests.fakes.images import Image
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import some_bytes, until_idle

APP = "library/app"
SMALL, LARGE = some_bytes(10_000), some_bytes(1_500_000, seed=1)
TIMES = 30


class Detours:
    """What was asked of the index, of threads and of hashes while `is_counting`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_counting = False
        self.taken: list[str] = []
        self._watch(patch, asyncio.BaseEventLoop, "run_in_executor")
        self._watch(patch, Database, "read")
        self._watch(patch, staging.StagedBlob, "hash")
        self._watch(patch, hashlib, "sha256")
        self._watch(patch, hashlib, "new")

    def kinds(self) -> set[str]:
        return {detour.partition("(")[0] for detour in self.taken}

    def _watch(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(real)
        def watched(*arguments: Any, **options: Any) -> Any:
            if self.is_counting:
                self.taken.append(f"{name}{arguments[1:]}")
            return real(*arguments, **options)

        patch.setattr(owner, name, watched)


@pytest.fixture
def detours(monkeypatch: pytest.MonkeyPatch) -> Detours:
    return Detours(monkeypatch)


def paths(image: Image) -> list[str]:
    layers = [f"/v2/app/blobs/{layer}" for layer in image.layers]
    return ["/v2/app/manifests/latest", f"/v2/app/manifests/{image.digest}", *layers]


async def ask_for_all(house: House, image: Image, number: int) -> list[RawResponse]:
    """In words that nobody used before."""
    mark = {"X-Request": f"{time.monotonic_ns()}-{number}"}
    return [await house.get(path, mark) for path in paths(image)]


async def test_a_warm_answer_takes_no_detour(
    registry: FakeRegistry, tmp_path: Path, detours: Detours
) -> None:
    image = registry.add_image(APP, layers=[SMALL, LARGE])
    async with mirroring(tmp_path, {"docker.io": registry}) as house:
        detours.is_counting = True
        await ask_for_all(house, image, 0)
        await until_idle(house)
        detours.is_counting = False
        assert {"run_in_executor", "read", "hash"} <= detours.kinds(), "while it was cold"
        await ask_for_all(house, image, 1)
        upstream = len(registry.requests)
        detours.taken.clear()
        detours.is_counting = True
        for number in range(TIMES):
            answers = await ask_for_all(house, image, 2 + number)
            assert [answer.status for answer in answers] == [200] * 4
            assert [answer.body for answer in answers[-2:]] == [SMALL, LARGE]
        detours.is_counting = False
    assert (detours.taken, len(registry.requests)) == ([], upstream)
