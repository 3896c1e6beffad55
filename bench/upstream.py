"""The upstream: nginx over files in memory, whose access log says what was fetched from it."""

from dataclasses import dataclass
from pathlib import Path

from bench.content import Blob
from bench.servers import Nginx


@dataclass(frozen=True)
class Fetched:
    """What was asked of the upstream for one blob."""

    gets: int
    heads: int
    sent_bytes: int


class Upstream(Nginx):
    """Also stands in the cold rows as nginx: what clients get with no cache between."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._read_from = 0

    def forget(self) -> None:
        """Count from here."""
        self._read_from = self.access_log.stat().st_size

    def requests(self) -> int:
        """All requests since `forget`."""
        return len(self._lines())

    def fetched(self, blob: Blob) -> Fetched:
        """What was asked for this blob since `forget`; nginx logs a request when it has ended."""
        gets = heads = sent_bytes = 0
        for line in self._lines():
            method, path, _status, size = line.split()
            if path == blob.path:
                gets += method == "GET"
                heads += method == "HEAD"
                sent_bytes += int(size)
        return Fetched(gets, heads, sent_bytes)

    def _lines(self) -> list[str]:
        with self.access_log.open() as log:
            log.seek(self._read_from)
            return log.read().splitlines()
