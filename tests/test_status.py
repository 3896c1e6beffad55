"""/healthz, /readyz and /metrics as probes and Prometheus meet them."""

from pathlib import Path

import pytest

from tests.fakes.client import raw_get
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.layers import UPSTREAM


async def test_a_serving_mirror_is_alive_and_ready(tmp_path: Path, registry: FakeRegistry) -> None:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        alive, ready = await house.get("/healthz"), await house.get("/readyz?verbose")
        assert (alive.status, alive.body) == (200, b"alive\n")
        assert (ready.status, ready.body) == (200, b"ready\n")
        assert (await house.head("/healthz")).status == 200
    assert registry.connections_accepted == 0


async def test_it_is_not_ready_while_its_disk_is_away(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        away = tmp_path / "away"
        house.storage.rename(away)
        answer = await house.get("/readyz")
        assert answer.status == 503
        assert answer.body == (
            b"this mirror's disk fails: No such file or directory; its operator should look\n"
        )
        assert (await house.get("/healthz")).status == 200
        away.rename(house.storage)
        assert (await house.get("/readyz")).status == 200


async def test_an_upstream_that_is_down_makes_nobody_unready(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    await registry.stop()
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert (await house.get(f"/v2/{UPSTREAM}/a/manifests/b")).status == 504
        assert (await house.get("/readyz")).status == 200


async def test_the_metrics_page_is_what_prometheus_reads(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        page = await house.get("/metrics")
        assert page.status == 200
        assert page.headers["Content-Type"].startswith("text/plain; version=")
        assert b"\n# TYPE mirror_requests_total counter\n" in page.body


async def requests_counted(house: House) -> float:
    return await house.metric("mirror_requests_total")


async def test_probes_are_not_counted_as_requests(tmp_path: Path, registry: FakeRegistry) -> None:
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        for path in ("/healthz", "/readyz", "/metrics"):
            await house.get(path)
        assert await requests_counted(house) == 0
        await house.get("/v2/")
        assert await requests_counted(house) == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/healthz/", "/readyz/x"])
async def test_what_is_not_a_probe_is_refused(
    path: str, tmp_path: Path, registry: FakeRegistry
) -> None:
    method = "GET" if path.count("/") > 1 else "POST"
    async with mirroring(tmp_path, {UPSTREAM: registry}) as house:
        assert (await raw_get(house.url + path, method=method)).status == 404
