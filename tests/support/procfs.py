"""What the kernel says about a process."""

import os
from pathlib import Path


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """VmRSS is what it holds now, VmHWM the most it ever held."""
    return 1024 * int(_status(pid, field).split()[0])


def threads(pid: int) -> int:
    return int(_status(pid, "Threads"))


def descriptors(pid: int) -> list[str]:
    """What each open descriptor leads to: a path, or like `socket:[4711]`."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def passing_descriptors(pid: int, storage: Path) -> int:
    """Of a mirror; all but those that stay open on purpose: of stored blobs, and of the index."""
    kept = (str(storage / "blobs"), str(storage / "index.db"))
    return sum(not each.startswith(kept) for each in descriptors(pid))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise KeyError(field)
