"""Clients that ask for one small thing at a steady pace, and say how long each answer took.

python -m bench.probe HOST PORT PATH SIZE INTERVAL_SECONDS

It prints a line once they are connected and begin; they go on until its standard input ends. Then
it prints the latencies in seconds as JSON. It is a process of its own, since the reader of the
large answers must not be in its way.
"""

import json
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from types import TracebackType

from bench.load import ACCEPT, STALL_LIMIT_SECONDS, Address, LoadError
from bench.reader import Want
from bench.server import PROJECT

CLIENTS = 8
STOP_LIMIT_SECONDS = 60


def latencies(address: Address, want: Want, interval: float) -> list[float]:
    """Of all clients, each on a connection of its own; raises LoadError, OSError, HTTPException."""
    ended = threading.Event()
    with ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as threads:
        connections = [stack.enter_context(_connected(address)) for _ in range(CLIENTS)]
        print(flush=True)
        clients = [threads.submit(_client, each, want, interval, ended) for each in connections]
        sys.stdin.read()
        ended.set()
        return [seconds for client in clients for seconds in client.result()]


def _connected(address: Address) -> "closing[HTTPConnection]":
    connection = HTTPConnection(*address, timeout=STALL_LIMIT_SECONDS)
    connection.connect()
    return closing(connection)


def _client(
    connection: HTTPConnection, want: Want, interval: float, ended: threading.Event
) -> list[float]:
    taken: list[float] = []
    while not ended.wait(interval):
        asked = time.monotonic()
        connection.request("GET", want.path, headers={"Accept": ACCEPT})
        response = connection.getresponse()
        if len(response.read()) != want.size or response.status != 200:
            raise LoadError(f"{want.path}: {response.status}, or not {want.size} bytes")
        taken.append(time.monotonic() - asked)
    return taken


class Probe:
    """Asks while the block runs, not before: quiet answers would hide the slow ones of a server
    that is soon done. `seconds` are the latencies afterwards.
    """

    def __init__(self, address: Address, want: Want, interval: float) -> None:
        self.seconds: list[float] = []
        asked = [address[0], str(address[1]), want.path, str(want.size), str(interval)]
        self._command = [sys.executable, "-m", "bench.probe", *asked]

    def __enter__(self) -> "Probe":
        """Returns when its clients have begun; raises LoadError when they cannot."""
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=PROJECT
        )
        told = self._process.stdout.readline() if self._process.stdout else ""
        if not told:
            self._told()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raises LoadError when an answer was wrong or did not come, or none was asked for."""
        try:
            self.seconds = self._told()
        except LoadError:
            if error is None:
                raise

    def _told(self) -> list[float]:
        """What it says in the end. Raises LoadError."""
        try:
            said, errors = self._process.communicate(timeout=STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, errors = self._process.communicate()
        if self._process.returncode:
            raise LoadError(f"a small answer failed: {errors.strip().rpartition(chr(10))[2]}")
        seconds: list[float] = json.loads(said)
        if not seconds:
            raise LoadError("it was over before a small answer was asked for")
        return seconds


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; `values` must not be empty."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


if __name__ == "__main__":
    host, port, asked_path, asked_size, pause = sys.argv[1:]
    asked_for = Want(asked_path, int(asked_size))
    print(json.dumps(latencies((host, int(port)), asked_for, float(pause))))
