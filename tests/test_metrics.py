"""What /metrics counts: names and labels as documented, and that each moves as it should."""

import os
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from mirror.addressing import Kind
from mirror.metrics import Cache, Metrics, State
from tests.fakes.auth import BearerAuth
from tests.fakes.client import raw_open
from tests.fakes.faults import Gate, Status, WrongByte
from tests.fakes.images import digest_of
from tests.fakes.ratelimit import RateLimit
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import (
    APP,
    UPSTREAM,
    add_layer,
    eventually,
    path_of,
    some_bytes,
    until_idle,
    until_stored,
)

DATA = some_bytes(200_000)
MANIFEST = f"/v2/{UPSTREAM}/{APP}/manifests/latest"


@pytest.fixture
async def house(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[House]:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        yield house


async def samples(house: House) -> list[Sample]:
    page = await house.get("/metrics")
    families = text_string_to_metric_families(page.body.decode())
    return [sample for family in families for sample in family.samples]


async def counted(house: House) -> dict[tuple[str, ...], int]:
    """mirror_requests_total by kind, method, status and cache, of the one upstream."""
    return {
        tuple(labels[name] for name in ("kind", "method", "status", "cache")): int(sample.value)
        for sample in await samples(house)
        if sample.name == "mirror_requests_total"
        and (labels := sample.labels)["upstream"] == UPSTREAM
    }


REQUEST = {"upstream", "kind", "method", "status", "cache"}
NAMES_AND_LABELS = {
    "mirror_requests_total": REQUEST,
    "mirror_client_bytes_total": {"upstream", "kind"},
    "mirror_upstream_requests_total": REQUEST - {"cache"},
    "mirror_upstream_bytes_total": {"upstream", "kind"},
    "mirror_client_first_byte_seconds_bucket": {"upstream", "kind", "le"},
    "mirror_client_first_byte_seconds_count": {"upstream", "kind"},
    "mirror_upstream_first_byte_seconds_bucket": {"upstream", "kind", "le"},
    "mirror_upstream_first_byte_seconds_count": {"upstream", "kind"},
    "mirror_connections_refused_total": set(),
    "mirror_downloads_active": set(),
    "mirror_download_followers": set(),
    "mirror_digest_mismatches_total": {"upstream"},
    "mirror_cache_bytes": {"state"},
    "mirror_cache_blobs": {"state"},
    "mirror_ratelimit_limit": {"upstream", "account"},
    "mirror_ratelimit_remaining": {"upstream", "account"},
}


async def test_each_metric_has_its_name_and_its_labels(
    house: House, registry: FakeRegistry
) -> None:
    registry.add_image(APP)
    registry.ratelimit = RateLimit(limit=100, remaining=77)
    registry.fail(WrongByte(1000), kind="blob", method="GET")
    await house.get(MANIFEST)
    await house.get(add_layer(registry, DATA))
    await until_idle(house)
    labels: dict[str, set[str]] = {}
    for sample in await samples(house):
        labels.setdefault(sample.name, set()).update(sample.labels)
    assert {name: labels.get(name) for name in NAMES_AND_LABELS} == NAMES_AND_LABELS


async def test_a_blob_is_counted_as_missed_joined_and_hit(
    house: House, registry: FakeRegistry
) -> None:
    gate = Gate(100_000)
    registry.fail(gate, kind="blob", method="GET")
    path = add_layer(registry, DATA)
    async with raw_open(house.url + path) as first, raw_open(house.url + path) as second:
        assert await first.read(1000)
        assert await second.read(1000)
        assert await house.metric("mirror_downloads_active") == 1
        assert await house.metric("mirror_download_followers") == 2
        gate.open()
        for stream in (first, second):
            while await stream.read():
                pass
    await until_idle(house)
    await house.get(path)
    await house.head(path)
    assert await counted(house) == {
        ("blob", "GET", "200", "miss"): 1,
        ("blob", "GET", "200", "joined"): 1,
        ("blob", "GET", "200", "hit"): 1,
        ("blob", "HEAD", "200", "hit"): 1,
    }
    blobs = {"upstream": UPSTREAM, "kind": "blob"}
    assert await house.metric("mirror_client_bytes_total", **blobs) == 3 * len(DATA)
    assert await house.metric("mirror_upstream_bytes_total", **blobs) == len(DATA)
    answered = {**blobs, "method": "GET", "status": "200"}
    assert await house.metric("mirror_upstream_requests_total", **answered) == 1
    assert await house.metric("mirror_client_first_byte_seconds_count", **blobs) == 3
    assert await house.metric("mirror_upstream_first_byte_seconds_count", **blobs) == 1


async def test_a_blob_known_under_another_name_is_counted_as_revalidated(
    house: House, registry: FakeRegistry
) -> None:
    digest = registry.add_blob(APP, DATA)
    registry.add_blob("other/app", DATA)
    await house.get(path_of(digest))
    await until_stored(house, DATA)
    await until_idle(house)
    await house.get(path_of(digest, "other/app"))
    assert await counted(house) == {
        ("blob", "GET", "200", "miss"): 1,
        ("blob", "GET", "200", "revalidated"): 1,
    }


async def test_manifests_are_counted_by_how_they_were_answered(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP)
    rules = {"endpoints": [registry.url], "tag_ttl": "0s", "not_found_ttl": "1h"}
    async with mirroring(tmp_path, {UPSTREAM: rules}) as house:
        by_digest = MANIFEST.replace("latest", image.digest)
        for path in (MANIFEST, MANIFEST, by_digest, f"{MANIFEST}-not", f"{MANIFEST}-not"):
            await house.get(path)
        registry.fail(Status(503))
        await house.get(MANIFEST)
        assert await counted(house) == {
            ("manifest", "GET", "200", "miss"): 1,
            ("manifest", "GET", "200", "revalidated"): 1,
            ("manifest", "GET", "200", "hit"): 1,
            ("manifest", "GET", "404", "none"): 1,
            ("manifest", "GET", "404", "negative"): 1,
            ("manifest", "GET", "200", "stale"): 1,
        }
        size = len(image.manifest)
        manifests = {"upstream": UPSTREAM, "kind": "manifest"}
        sent = await house.metric("mirror_client_bytes_total", **manifests)
        assert 4 * size < sent < 4 * size + 2000
        assert await house.metric("mirror_upstream_bytes_total", **manifests) == size
        failed = await house.metric("mirror_upstream_requests_total", status="503", **manifests)
        assert failed == registry.count(kind="manifest", status=503) > 0


async def test_an_upstream_that_does_not_answer_is_counted_with_status_0(
    house: House, registry: FakeRegistry
) -> None:
    await registry.stop()
    await house.get(MANIFEST)
    assert await house.metric("mirror_upstream_requests_total", status="0") == 1
    assert await house.metric("mirror_upstream_first_byte_seconds_count") == 0


async def test_a_wrong_byte_is_counted(house: House, registry: FakeRegistry) -> None:
    registry.fail(WrongByte(1000), kind="blob", method="GET", times=1)
    path = add_layer(registry, DATA)
    assert await house.metric("mirror_digest_mismatches_total", upstream=UPSTREAM) == 0
    await house.get(path)
    await until_idle(house)
    assert await house.metric("mirror_digest_mismatches_total", upstream=UPSTREAM) == 1
    assert await house.metric("mirror_cache_blobs") == 0


async def test_the_ratelimit_is_shown_by_account(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.add_image(APP)
    registry.auth = BearerAuth(users={"alice": "pw"})
    registry.ratelimit = RateLimit(limit=100, remaining=77)
    login = {"username": "alice", "password": "pw"}
    rules = {"endpoints": [registry.url], "credentials": [login]}
    async with mirroring(tmp_path, {UPSTREAM: rules}) as house:
        await house.get(MANIFEST)
        alice = {"upstream": UPSTREAM, "account": "alice"}
        assert await house.metric("mirror_ratelimit_limit", **alice) == 100
        assert await house.metric("mirror_ratelimit_remaining", **alice) == 76


def stock_of(house: House) -> tuple[int, int]:
    files = list((house.storage / "blobs").glob("*/*/*"))
    return len(files), sum(path.stat().st_size for path in files)


async def agrees_with_the_disk(house: House) -> bool:
    told = await house.metric("mirror_cache_blobs"), await house.metric("mirror_cache_bytes")
    return told == stock_of(house)


async def test_the_stock_is_what_lies_on_the_disk_also_after_a_restart(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    image = registry.add_image(APP, layers=[DATA])
    registry.add_image("other/app", layers=[DATA])
    digests = (*image.layers, image.config)
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert stock_of(house) == (0, 0)
        assert await agrees_with_the_disk(house)
        for repository in (APP, "other/app"):
            await house.get(MANIFEST.replace(APP, repository))
            for digest in digests:
                await house.get(path_of(digest, repository))
        await eventually(lambda: agrees_with_the_disk(house))
        assert stock_of(house)[0] == 3
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert stock_of(house)[0] == 3
        assert await agrees_with_the_disk(house)


async def held(house: House) -> dict[str, tuple[float, float]]:
    """(blobs, bytes) of each state."""
    return {
        state.value: (
            await house.metric("mirror_cache_blobs", state=state.value),
            await house.metric("mirror_cache_bytes", state=state.value),
        )
        for state in State
    }


async def test_what_the_folder_holds_is_told_by_state(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    """Also after a restart."""
    path, other = add_layer(registry, DATA), some_bytes(500_000, 3)
    gate = Gate(300_000)
    nothing = {state.value: (0, 0) for state in State}
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert await held(house) == nothing
        assert (await house.get(path)).body == DATA
        await until_idle(house)
        whole = nothing | {"stored": (1, len(DATA))}
        assert await held(house) == whole
        registry.fail(gate, kind="blob", method="GET", reference=digest_of(other))
        async with raw_open(house.url + add_layer(registry, other)) as stream:
            assert await stream.read(1000)

            async def is_staged() -> bool:
                return (await held(house))["staged"] == (1, 300_000)

            await eventually(is_staged)
    registry.heal()
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        blobs, staged_bytes = (await held(house))["staged"]
        assert blobs == 1
        assert 300_000 <= staged_bytes < 320_000, "in whole blocks"
        (stored,) = (house.storage / "blobs").glob("*/*/*")
        os.truncate(stored, 1000)
        assert (await house.get(path)).body == DATA
        await until_idle(house)
        told = await held(house)
        assert told == whole | {"staged": told["staged"], "damaged": (1, 1000)}
    with closing(sqlite3.connect(tmp_path / "data" / "index.db")) as index, index:
        index.execute("UPDATE blobs SET pinned = 1")
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        told = await held(house)
        assert told["pinned"] == (1, len(DATA))
        assert told["stored"] == (0, 0)
        assert told["damaged"] == (1, 1000)


def hostile_requests(number: int) -> list[tuple[str, str]]:
    dice = random.Random(1)
    methods = ["GET", "HEAD", "POST", "PUT", "PROPFIND", "MKCOL", "PURGE", "LOCK", "TRACE", "FOO"]
    starts = ["/", "/v2/", f"/v2/{UPSTREAM}/", "/v2/evil{n}.test/", "/evil{n}.test/v2/"]
    ends = ["", "x{n}", "a/manifests/t{n}", "a{n}/tags/list", "a/blobs/sha256:{n:064x}", "?ns=y{n}"]
    return [
        (dice.choice(methods), (dice.choice(starts) + dice.choice(ends)).format(n=n))
        for n in range(number)
    ]


async def test_the_number_of_series_is_bounded_whatever_clients_ask(house: House) -> None:
    async with aiohttp.ClientSession() as session:
        for method, path in hostile_requests(1000):
            async with session.request(method, house.url + path) as answer:
                assert answer.status < 500
    seen = await samples(house)
    requests = [sample.labels for sample in seen if sample.name == "mirror_requests_total"]
    assert sum(s.value for s in seen if s.name == "mirror_requests_total") == 1000
    assert {labels["upstream"] for labels in requests} == {UPSTREAM, "-"}
    assert {labels["kind"] for labels in requests} <= set(Kind)
    assert {labels["cache"] for labels in requests} <= set(Cache)
    assert {labels["method"] for labels in requests} == {"GET", "HEAD", "POST", "PUT", "OTHER"}
    assert len(requests) < 100
    assert len(seen) < 500


def test_two_mirrors_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.holds(State.STORED, 1, 10)
    assert b'mirror_cache_blobs{state="stored"} 1.0' in one.render()
    assert b'mirror_cache_blobs{state="stored"} 0.0' in other.render()
