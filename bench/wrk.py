"""Many small answers: wrk, which parses them in C."""

import re
import subprocess
from dataclasses import dataclass

from bench.load import ACCEPT, Address, LoadError
from bench.server import find


@dataclass(frozen=True)
class Rate:
    per_second: float
    p50: str
    p99: str


def command(address: Address, path: str, connections: int, seconds: float) -> list[str]:
    return [
        find("wrk"),
        "--threads=1",
        f"--connections={connections}",
        f"--duration={max(1, round(seconds))}s",
        "--timeout=10s",
        "--latency",
        f"--header=Accept: {ACCEPT}",
        f"http://{address[0]}:{address[1]}{path}",
    ]


def request_rate(address: Address, path: str, connections: int, seconds: float) -> Rate:
    """Requests per second that wrk gets answered; any answer but 2xx fails the measure."""
    done = subprocess.run(
        command(address, path, connections, seconds), capture_output=True, text=True, check=False
    )
    found = dict(re.findall(r"^\s*([\w/%. -]+?):?\s+([\d.]+\w*)\s*$", done.stdout, re.MULTILINE))
    if done.returncode or "Requests/sec" not in found:
        raise LoadError(f"wrk failed: {done.stderr or done.stdout}")
    if "Non-2xx or 3xx responses" in found:
        raise LoadError(f"{found['Non-2xx or 3xx responses']} answers were not 2xx")
    if errors := re.search(r"Socket errors:.*", done.stdout):
        raise LoadError(errors.group())
    return Rate(float(found["Requests/sec"]), found["50%"], found["99%"])
