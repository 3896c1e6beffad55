"""What the kernel says about processes: their memory, their CPU time, who else uses the machine."""

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.02
SETTLE_WINDOW_SECONDS = 0.15
SETTLE_LIMIT_SECONDS = 60
SETTLED_SHARE = 0.1  # of one core: a single tick of the window is no work
PEAK_RESET = "5"  # what proc(5) wants in clear_refs to set VmHWM back to VmRSS


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    members = [pid]
    for member in members:  # grows while it is walked
        members.extend(child for child, parent in parents.items() if parent == member)
    return members


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on; empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(") ")[2].split()


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes."""
    return sum(
        TICK_SECONDS * (int(fields[11]) + int(fields[12]))
        for fields in map(_stat_fields, pids)
        if fields
    )


def memory_bytes(pids: list[int], field: str) -> int:
    """The sum of one line of /proc/PID/status: VmHWM, VmRSS, RssAnon."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(field))
    return total * 1024


def reset_peak(pids: list[int]) -> None:
    """From now on VmHWM is the peak since now (root, or the owner of the processes)."""
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            Path(f"/proc/{pid}/clear_refs").write_text(PEAK_RESET)


class AnonymousMemory:
    """Samples RssAnon of processes while the block runs: what is theirs, not the page cache's."""

    def __init__(self, pids: list[int]) -> None:
        self.peak_bytes = 0
        self._pids = pids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="anonymous-memory")

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, memory_bytes(self._pids, "RssAnon"))

    def __enter__(self) -> "AnonymousMemory":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()


@dataclass(frozen=True)
class Clock:
    """CPU time at one moment: of the whole machine, and of the benchmark with all it started."""

    at: float
    machine: float
    ours: float

    @classmethod
    def now(cls) -> "Clock":
        fields = Path("/proc/stat").read_text().split(maxsplit=8)
        busy = sum(
            int(ticks) for ticks in fields[1:4]
        )  # user, nice, system; interrupts are no one's
        ended = os.times()
        ours = cpu_seconds(family(os.getpid())) + ended.children_user + ended.children_system
        return cls(time.monotonic(), busy * TICK_SECONDS, ours)

    def since(self, before: "Clock") -> tuple[float, float]:
        """(our CPU seconds per second, everyone else's), in cores."""
        elapsed = self.at - before.at
        ours = (self.ours - before.ours) / elapsed
        return ours, max(0.0, (self.machine - before.machine) / elapsed - ours)


def settle() -> None:
    """Wait until our servers have nothing left to do: copies in the background, dirty pages."""
    _wait_until_idle()
    os.sync()
    _wait_until_idle()


def _wait_until_idle() -> None:
    deadline = time.monotonic() + SETTLE_LIMIT_SECONDS
    before = Clock.now()
    while time.monotonic() < deadline:
        time.sleep(SETTLE_WINDOW_SECONDS)
        now = Clock.now()
        if now.since(before)[0] < SETTLED_SHARE:
            return
        before = now
