"""A client that asks for one small thing at a steady pace, and says how long each answer took.

python -m bench.probe HOST PORT PATH SIZE INTERVAL_SECONDS

It goes on until its standard input ends, then prints the latencies in seconds as JSON. Each counts
from when the request was due, so that a server that stops for a while is not asked less meanwhile.
A process of its own: the reader of the large answers must not be in its way.
"""

import http.client
import json
import select
import subprocess
import sys
import time
from types import TracebackType

from bench.load import ACCEPT, STALL_LIMIT_SECONDS, Address, LoadError

STOP_LIMIT_SECONDS = 60


def latencies(address: Address, path: str, size: int, interval: float) -> list[float]:
    connection = http.client.HTTPConnection(*address, timeout=STALL_LIMIT_SECONDS)
    connection.connect()
    print("ready", flush=True)
    taken, due = [], time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        connection.request("GET", path, headers={"Accept": ACCEPT})
        response = connection.getresponse()
        if len(response.read()) != size or response.status != 200:
            raise LoadError(f"{path}: {response.status}, or not {size} bytes")
        taken.append(time.monotonic() - due)
        due += interval
    return taken


class Probe:
    """Asks while the block runs; `seconds` are the latencies afterwards."""

    def __init__(self, address: Address, path: str, size: int, interval: float) -> None:
        self.seconds: list[float] = []
        asked = [address[0], str(address[1]), path, str(size), str(interval)]
        self._command = [sys.executable, "-m", "bench.probe", *asked]

    def __enter__(self) -> "Probe":
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        if self._process.stdout:
            self._process.stdout.readline()
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
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    host, port, asked_path, asked_size, pause = sys.argv[1:]
    print(json.dumps(latencies((host, int(port)), asked_path, int(asked_size), float(pause))))
