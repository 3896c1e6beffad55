"""Clients that ask for one small thing at a steady pace, and say how long each answer took.

python -m bench.probe HOST PORT PATH SIZE INTERVAL_SECONDS

They go on until its standard input ends; then it prints the latencies in seconds as JSON. It is a
process of its own, since the reader of the large answers must not be in its way.
"""

import json
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from types import TracebackType

from bench.load import ACCEPT, STALL_LIMIT_SECONDS, Address, LoadError
from bench.reader import Want

CLIENTS = 8
LEAD_SECONDS = 0.5  # until they are under way
STOP_LIMIT_SECONDS = 60


def latencies(address: Address, want: Want, interval: float) -> list[float]:
    """Of all clients, each on a connection of its own; raises LoadError, OSError, HTTPException."""
    ended = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(_client, address, want, interval, ended) for _ in range(CLIENTS)]
        sys.stdin.read()
        ended.set()
        return [seconds for client in clients for seconds in client.result()]


def _client(address: Address, want: Want, interval: float, ended: threading.Event) -> list[float]:
    taken: list[float] = []
    with closing(HTTPConnection(*address, timeout=STALL_LIMIT_SECONDS)) as connection:
        connection.connect()
        while not ended.wait(interval):
            asked = time.monotonic()
            connection.request("GET", want.path, headers={"Accept": ACCEPT})
            response = connection.getresponse()
            if len(response.read()) != want.size or response.status != 200:
                raise LoadError(f"{want.path}: {response.status}, or not {want.size} bytes")
            taken.append(time.monotonic() - asked)
    return taken


class Probe:
    """Asks while the block runs; `seconds` are the latencies afterwards."""

    def __init__(self, address: Address, want: Want, interval: float) -> None:
        self.seconds: list[float] = []
        asked = [address[0], str(address[1]), want.path, str(want.size), str(interval)]
        self._command = [sys.executable, "-m", "bench.probe", *asked]

    def __enter__(self) -> "Probe":
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        time.sleep(LEAD_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raises LoadError when an answer was wrong or did not come."""
        try:
            said, errors = self._process.communicate(timeout=STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, errors = self._process.communicate()
        if error is not None:
            return
        if self._process.returncode:
            raise LoadError(f"a small answer failed: {errors.strip().rpartition(chr(10))[2]}")
        self.seconds = json.loads(said)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; `values` must not be empty."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


if __name__ == "__main__":
    host, port, asked_path, asked_size, pause = sys.argv[1:]
    asked_for = Want(asked_path, int(asked_size))
    print(json.dumps(latencies((host, int(port)), asked_for, float(pause))))
