"""What one front has learned holds for the others: limits, who may read what, and room."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mirror.store.readers import HANDOVER_SECONDS
from tests.fakes.auth import BearerAuth
from tests.fakes.faults import Status
from tests.fakes.images import digest_of
from tests.fakes.ratelimit import RateLimitByAccount
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM, add_layer, path_of, some_bytes, until_idle

MIB = 1024 * 1024


async def test_an_account_that_was_refused_through_one_rests_for_all(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.auth = auth = BearerAuth(users={"alice": "alice"})
    registry.ratelimit = RateLimitByAccount(auth=auth)
    for name in ("org/one", "org/two", "org/three"):
        registry.add_image(name)
    one, two, three = (f"/v2/{UPSTREAM}/org/{n}/manifests/latest" for n in ("one", "two", "three"))
    registry.fail(Status(429, {"Retry-After": "120"}), kind="manifest", method="GET")
    upstream: dict[str, Any] = {
        "endpoints": [registry.url],
        "credentials": [{"username": "alice", "password": "alice"}],
    }
    async with mirroring(tmp_path, {UPSTREAM: upstream}, fronts=2) as house:
        first, second = house.by_front(0), house.by_front(1)
        answer = await first.get(one)
        assert answer.status == 429
        assert 110 < int(answer.headers["Retry-After"]) <= 120
        asked = len([seen for seen in registry.requests if seen.status == 429])
        for path in (two, three):
            answer = await second.get(path)
            assert answer.status == 429
            assert 110 < int(answer.headers["Retry-After"]) <= 120
        assert len([seen for seen in registry.requests if seen.status == 429]) == asked
        for each in (first, second):
            resets = await each.metric("mirror_ratelimit_reset_seconds", account="alice")
            assert 110 < resets <= 120


async def test_what_was_proven_through_one_is_proven_for_all_and_for_no_other_name(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    data = some_bytes(100_000)
    path = add_layer(registry, data)
    registry.add_image("org/other")
    elsewhere = path_of(digest_of(data), "org/other")
    async with mirroring(tmp_path, {UPSTREAM: registry}, fronts=2) as house:
        first, second = house.by_front(0), house.by_front(1)
        assert (await first.get(path)).body == data
        await until_idle(house)
        registry.forget()
        for _ in range(3):
            assert (await second.get(path)).body == data
        assert registry.count() == 0
        for each in (second, first):
            assert (await each.get(elsewhere)).status == 404
            assert (await each.head(elsewhere)).status == 404
            assert (await each.get(elsewhere, {"Range": "bytes=0-9"})).status == 404
        assert registry.count("HEAD", "blob") == 1
        assert registry.count("GET", "blob") == 0


async def test_room_is_kept_while_all_are_used(registry: FakeRegistry, tmp_path: Path) -> None:
    layers = [some_bytes(600_000, seed) for seed in range(20)]
    paths = [add_layer(registry, data) for data in layers]
    storage = {"path": str(tmp_path / "data"), "max_size": "6MiB"}
    async with mirroring(tmp_path, {UPSTREAM: registry}, fronts=2, storage=storage) as house:

        async def pull(each: House, wanted: Sequence[int]) -> None:
            for number in wanted:
                assert (await each.get(paths[number])).body == layers[number]
                assert stored_bytes(house) <= 6 * MIB

        first, second = house.by_front(0), house.by_front(1)
        turns = range(20)
        await asyncio.gather(pull(first, turns), pull(second, turns))
        await asyncio.sleep(1.5 * HANDOVER_SECONDS)  # nothing is read any more
        await asyncio.gather(pull(first, turns[::-1]), pull(second, turns[::-1]))
        await until_idle(house)
        assert await house.metric("mirror_evicted_blobs_total") > 0
        assert await house.metric("mirror_cache_bytes") == stored_bytes(house) > MIB


def stored_bytes(house: House) -> int:
    return sum(path.stat().st_size for path in (house.storage / "blobs").glob("*/*/*"))
