"""The upstreams: file servers over files in memory, whose access logs say what was fetched.

The near one is nginx, so that it costs as little as possible. The far one is far_server.py: each
request waits, each connection has a rate. In the cold rows they stand for nginx-static: what
clients get with no cache between.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import procfs
from bench.content import Blob
from bench.nginx import NginxStatic

FAR_LATENCY_SECONDS = 0.08
FAR_BYTES_PER_SECOND = 20e6
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Fetched:
    """What was asked of the upstream for some blobs."""

    gets: int
    heads: int
    sent_bytes: int


class Upstream(NginxStatic):
    name = "upstream"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._read_from = 0

    def forget(self) -> None:
        """Count from here."""
        self._read_from = self.access_log.stat().st_size

    def requests(self) -> int:
        """All that ended since `forget`."""
        return len(self._lines())

    def fetched(self, *blobs: Blob) -> Fetched:
        """What was asked for these since `forget`; a request is logged when it has ended."""
        paths = {blob.path for blob in blobs}
        gets = heads = sent_bytes = 0
        for method, path, _status, size in self._lines():
            if path in paths:
                gets += method == "GET"
                heads += method == "HEAD"
                sent_bytes += int(size)
        return Fetched(gets, heads, sent_bytes)

    def settle(self) -> None:
        """Wait until our servers have nothing left to do: copies in the background, dirty pages."""
        procfs.settle()

    def _lines(self) -> list[list[str]]:
        """Method, path, status and bytes sent."""
        with self.access_log.open() as log:
            log.seek(self._read_from)
            return [line.split() for line in log.read().splitlines()]


class FarUpstream(Upstream):
    name = "far upstream"
    program = sys.executable

    def config(self) -> str:
        return ""

    def arguments(self) -> list[str]:
        numbers = [str(FAR_LATENCY_SECONDS), str(FAR_BYTES_PER_SECOND)]
        files = [str(self.tree.root), str(self.access_log), str(self._busy)]
        return ["-m", "bench.far_server", str(self.port), *files, *numbers]

    def settle(self) -> None:
        """A copy from far away takes hardly any CPU time, so it is the upstream that tells."""
        deadline = time.monotonic() + procfs.SETTLE_LIMIT_SECONDS
        procfs.settle()
        while self._busy.exists() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        procfs.settle()

    @property
    def _busy(self) -> Path:
        """There while it answers anybody."""
        return self.folder / "busy"
