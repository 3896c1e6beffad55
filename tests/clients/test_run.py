"""`mirror serve` as it is started the first time: with no configuration at all."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

import pytest

from tests.real.mirror import IMPORTABLE, SERVE
from tests.real.programs import answers, lacking, running

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120)]

PORT = 5000


def test_serves_from_an_empty_folder_and_ends_cleanly(folder: Path) -> None:
    need_port(PORT)
    empty = folder / "empty"
    empty.mkdir()
    with running(
        SERVE,
        log=folder / "mirror.log",
        ready=lambda: answers(PORT, "/readyz"),
        env=IMPORTABLE,
        cwd=empty,
    ) as mirror:
        assert base_answer() == (200, "registry/2.0")
        assert [path.name for path in empty.iterdir()] == ["mirror-data"]
        assert mirror.stop() == 0, mirror.last_words


def base_answer() -> tuple[int, str | None]:
    """Status and version header of `GET /v2/`."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    try:
        connection.request("GET", "/v2/")
        answer = connection.getresponse()
        return answer.status, answer.getheader("Docker-Distribution-API-Version")
    finally:
        connection.close()


def need_port(port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            lacking(f"the port {port} of 127.0.0.1, which is in use,")
