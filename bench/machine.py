"""The description of the machine and of the programs, without which the numbers mean nothing."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from bench.servers import PROJECT


def description(cache_folder: Path, upstream_folder: Path) -> dict[str, str]:
    return {
        "cpu": _first(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "load average at the start": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
        "cache files on": _file_system(cache_folder),
        "upstream files on": _file_system(upstream_folder),
        "python": platform.python_version(),
        "mirror": _mirror_version(),
        "docker-registry": _first(
            r"(\d[\w.+]*)", _said_by("/usr/bin/docker-registry", "--version")
        ),
        "nginx": _first(r"nginx/(\S+)", _said_by("/usr/sbin/nginx", "-v")),
        "wrk": _first(r"wrk (.*?) \[", _said_by("/usr/bin/wrk", "-v")),
    }


def _memory() -> str:
    kib = int(_first(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()))
    return f"{kib / (1 << 20):.1f} GiB"


def _file_system(folder: Path) -> str:
    return _said_by("/usr/bin/df", "--output=fstype", str(folder)).split()[-1]


def _mirror_version() -> str:
    script = "import mirror; print(getattr(mirror, '__version__', 'unknown'))"
    version = _said_by(sys.executable, "-c", script).strip() or "not importable"
    commit = _said_by("/usr/bin/git", "rev-parse", "--short", "HEAD").strip()
    changed = _said_by("/usr/bin/git", "status", "--porcelain", "--", "mirror").strip()
    return f"{version} ({commit or 'no commit'}{', with changes' if changed else ''})"


def _said_by(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    return done.stdout + (done.stderr if command[-1] == "-v" else "")


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else "unknown"
