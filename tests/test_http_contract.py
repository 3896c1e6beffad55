"""What clients count on in every answer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.client import raw_get
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.faults import WrongLength
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import mirroring
from tests.support.replies import error_of, message_of

APP = "library/app"
LATEST = "/v2/app/manifests/latest"
DIGEST = digest_of(b"x")


@pytest.mark.parametrize(
    "path", ["/v2/", "/v2", "/docker.io/v2/", "/docker.io/v2", "/v2/?ns=docker.io"]
)
async def test_the_ping(registry: FakeRegistry, tmp_path: Path, path: str) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for answer in (await mirror.get(path), await mirror.head(path)):
            assert answer.status == 200
            assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
            assert answer.headers["Content-Type"] == "application/json"
            assert answer.headers.get("OCI-Namespace") == (
                "docker.io" if "docker.io" in path else None
            )
    assert registry.connections_accepted == 0


NO_NAMES = [
    ("/v2/docker.io/App/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/a..b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/a//b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/../app/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/a/../b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/-a/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/a%2fb/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/a%252fb/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/a%00b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/a%ffb/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/%C3%A9/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/a%0d%0aX-Evil:%20b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/" + "a" * 256 + "/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/" + "a/" * 5000 + "b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/docker.io/manifests/latest", 400, "NAME_INVALID"),
    ("/docker.io/v2/tags/list", 400, "NAME_INVALID"),
    ("/v2/docker.io/app/manifests/.hidden", 404, "MANIFEST_UNKNOWN"),
    ("/v2/docker.io/app/manifests/" + "a" * 129, 404, "MANIFEST_UNKNOWN"),
    ("/v2/docker.io/app/manifests/a%20b", 404, "MANIFEST_UNKNOWN"),
    ("/v2/docker.io/app/manifests/%0a", 404, "MANIFEST_UNKNOWN"),
    ("/v2/docker.io/app/manifests/", 404, "MANIFEST_UNKNOWN"),
    ("/v2/docker.io/app/manifests/sha256:short", 400, "DIGEST_INVALID"),
    ("/v2/docker.io/app/manifests/" + DIGEST.upper(), 400, "DIGEST_INVALID"),
    ("/v2/docker.io/app/manifests/md5:" + "0" * 32, 400, "DIGEST_INVALID"),
    ("/v2/docker.io/app/blobs/latest", 400, "DIGEST_INVALID"),
    ("/v2/docker.io/app/blobs/" + DIGEST + "0", 400, "DIGEST_INVALID"),
    ("/v2/docker.io/app/blobs/..%2f..%2fetc%2fpasswd", 400, "DIGEST_INVALID"),
    ("/v2/docker.io/app/referrers/latest", 400, "DIGEST_INVALID"),
]


async def test_what_no_registry_could_hold(registry: FakeRegistry, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path, status, code in NO_NAMES:
            answer = await mirror.get(path)
            assert (path, *error_of(answer)) == (path, status, code)
            assert answer.headers["OCI-Namespace"] == "docker.io"
            assert "X-Evil" not in answer.headers
            assert message_of(answer).isascii()
            assert len(message_of(answer)) < 500
            assert (await mirror.head(path)).status == status
    assert registry.connections_accepted == 0


async def test_paths_outside_the_api(registry: FakeRegistry, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for path in ("/", "/v1/search", "/v2/app/unknown/x", "/v2/app", "/v2/_catalog/x", "/v20/"):
            assert error_of(await mirror.get(path)) == (404, "NAME_UNKNOWN")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "manifests/latest"),
        ("DELETE", "manifests/latest"),
        ("DELETE", f"manifests/{DIGEST}"),
        ("DELETE", f"blobs/{DIGEST}"),
        ("POST", "blobs/uploads/"),
        ("POST", "blobs/uploads"),
        ("POST", f"blobs/uploads/?mount={DIGEST}&from=library/other"),
        ("PATCH", "blobs/uploads/some-id"),
        ("PUT", f"blobs/uploads/some-id?digest={DIGEST}"),
        ("GET", "blobs/uploads/some-id"),
        ("DELETE", "blobs/uploads/some-id"),
        ("POST", "tags/list"),
        ("OPTIONS", "manifests/latest"),
    ],
)
async def test_writes_are_refused(
    registry: FakeRegistry, tmp_path: Path, method: str, path: str
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for prefix in ("/v2/app", "/v2/docker.io/app", "/docker.io/v2/app"):
            answer = await raw_get(f"{mirror.url}{prefix}/{path}", method=method)
            assert error_of(answer) == (405, "UNSUPPORTED")
            assert answer.headers["Allow"] == "GET, HEAD"
            assert answer.headers["OCI-Namespace"] == "docker.io"
            assert "mirrored" in message_of(answer)
    assert registry.connections_accepted == 0


async def test_a_write_with_a_body_is_refused(registry: FakeRegistry, tmp_path: Path) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        headers = {"Content-Length": str(1 << 30), "Content-Type": "application/octet-stream"}
        url = f"{mirror.url}/v2/app/manifests/latest"
        answer = await raw_get(url, headers, method="PUT")
        assert error_of(answer) == (405, "UNSUPPORTED")


@pytest.mark.parametrize(
    "path",
    [
        LATEST,
        "/v2/app/tags/list",
        "/v2/_catalog",
        "/v2/app/manifests/nothing",
        f"/v2/app/blobs/{DIGEST}",
        f"/v2/app/referrers/{DIGEST}",
        "/v2/evil.example/app/tags/list",
        "/v2/",
    ],
)
async def test_head_tells_what_get_would_send(
    registry: FakeRegistry, tmp_path: Path, path: str
) -> None:
    registry.add_image(APP)
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        get, head = await mirror.get(path), await mirror.head(path)
        assert int(get.headers["Content-Length"]) == len(get.body)
        assert head.body == b""
        assert head.status == get.status
        for name in ("Content-Type", "OCI-Namespace", "Docker-Distribution-API-Version"):
            assert head.headers.get(name) == get.headers.get(name)
        assert ";" not in get.headers["Content-Type"]


async def test_a_size_that_head_told_wrongly_is_put_right_by_the_download(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = f"/v2/app/blobs/{registry.add_blob(APP, b'some bytes')}"
    registry.fail(WrongLength(7), method="HEAD")
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        assert (await mirror.head(path)).headers["Content-Length"] == "17"
        assert (await mirror.get(path)).headers["Content-Length"] == "10"
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await mirror.head(path)).headers["Content-Length"] != "10":
                pass


async def test_an_error_in_the_mirror_is_told_as_json(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("secret detail")

    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        monkeypatch.setattr("mirror.proxy.manifests.Manifests.get", fail)
        with capture_logs() as logged:
            answer = await mirror.get(LATEST)
        assert error_of(answer) == (500, "UNKNOWN")
        assert "request failed" in [line["event"] for line in logged]
        assert b"secret detail" not in answer.body


async def test_labels_stay_bounded_whatever_clients_ask(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    async with mirroring(tmp_path, {"docker.io": registry}) as mirror:
        for number in range(5):
            await mirror.get(f"/v2/evil{number}.example/app{number}/manifests/tag{number}")
            await mirror.get(f"/v2/app/manifests/sha256:{number}")
            await raw_get(f"{mirror.url}/v2/", method=f"BREW{number}")
        page = (await mirror.get("/metrics")).body.decode()
        assert "evil" not in page
        assert "BREW" not in page
        assert "tag4" not in page
        bad = await mirror.metric("mirror_requests_total", upstream="docker.io", status="400")
        assert bad == 5, "a bad digest counts for the upstream that was named"
