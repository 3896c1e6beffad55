"""The description of the machine, without which the numbers mean nothing."""

import hashlib
import os
import platform
import re
import time
from pathlib import Path

from bench.server import said_by, version_of

HASHED_BYTES = 32 << 20
HASH_REPEATS = 5


def description(cache_folder: Path, upstream_folder: Path) -> dict[str, str]:
    return {
        "cpu": _first(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()),
        "cores": str(os.cpu_count()),
        "sha256": _hash_speed(),
        "memory": _memory(),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "load average at the start": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
        "cache files on": _file_system(cache_folder),
        "upstream files on": _file_system(upstream_folder),
        "python": platform.python_version(),
        "wrk": version_of("wrk", "-v"),
    }


def _memory() -> str:
    kib = int(_first(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()))
    return f"{kib / (1 << 20):.1f} GiB"


def _hash_speed() -> str:
    """What one core hashes in a second: no verified cold blob can be faster than that."""
    piece = bytes(HASHED_BYTES)
    seconds = []
    for _ in range(HASH_REPEATS):
        start = time.perf_counter()
        hashlib.sha256(piece).digest()
        seconds.append(time.perf_counter() - start)
    flags = _first(r"flags\s*: (.*)", Path("/proc/cpuinfo").read_text()).split()
    instructions = "with" if "sha_ni" in flags else "without"
    return f"{HASHED_BYTES / min(seconds) / 1e9:.2f} GB/s {instructions} SHA-NI"


def _file_system(folder: Path) -> str:
    return said_by("/usr/bin/df", "--output=fstype", str(folder)).split()[-1]


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else "unknown"
