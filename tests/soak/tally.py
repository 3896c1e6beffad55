"""What a soak has seen, and what that means."""

from collections import Counter
from dataclasses import dataclass, field

MOST_GROWTH_BYTES = 64 * 1024 * 1024
MOST_MORE_THREADS = 8
# Whatever the upstream does, none of these is an answer to a client that asks for what exists.
NEVER = frozenset({400, 401, 403, 404, 405, 416, 500})


@dataclass(frozen=True)
class Sample:
    """One process at rest."""

    memory_bytes: int
    descriptors: int  # but those of stored blobs and of the index, which stay open on purpose
    threads: int
    active: float  # downloads, as /metrics has them
    followers: float


@dataclass
class Tally:
    operations: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)  # faults of the upstream
    complete: int = 0
    complete_bytes: int = 0
    broken_off: int = 0
    unverified: int = 0  # closed ranges with bytes that the upstream had spoilt
    excused: int = 0  # 403, since tokens were revoked on their way (revocations.py)
    left_out: int = 0  # operations for which there was no time
    faults: list[str] = field(default_factory=list)
    rested: list[Sample] = field(default_factory=list)  # one process, before its work and after
    last_refusal: str = ""

    def answered(self, kind: str, status: int) -> None:
        """Status 0: no answer came."""
        self.statuses[kind, status] += 1

    def refused(self, path: str, status: int, ended: str, body: bytes) -> None:
        """Not the whole of what was asked for."""
        self.last_refusal = f"{path}: {status}, {ended}, {body[:500]!r}"

    def fault(self, what: str) -> None:
        self.faults.append(what)

    def judge(self) -> None:
        """Adds what has leaked between the first rest and the last one."""
        before, after = self.rested[0], self.rested[-1]
        if after.memory_bytes > before.memory_bytes + MOST_GROWTH_BYTES:
            self.fault(f"memory grew from {before.memory_bytes} to {after.memory_bytes} bytes")
        if after.descriptors > before.descriptors:
            self.fault(f"descriptors: {before.descriptors} before, {after.descriptors} after")
        if after.threads > before.threads + MOST_MORE_THREADS:
            self.fault(f"threads: {before.threads} before, {after.threads} after")
        if after.active or after.followers:
            self.fault(f"at rest, {after.active} downloads with {after.followers} followers")

    def lines(self) -> list[str]:
        lines = [f"operations  {self.operations.total()} ({self.left_out} left out): "]
        lines[0] += _listed(self.operations)
        for kind in sorted({kind for kind, _ in self.statuses}):
            counts = {
                f"{s or 'none'}": n for (k, s), n in sorted(self.statuses.items()) if k == kind
            }
            lines.append(f"{kind:<11} {_listed(counts)}")
        lines.append(
            f"answers     {self.complete} complete and right, {self.complete_bytes:,} bytes; "
            f"{self.broken_off} broken off; {self.unverified} closed ranges of spoilt bytes; "
            f"{self.excused} refused for tokens that were revoked on their way"
        )
        lines.append(f"events      {_listed(self.events)}")
        lines.append(f"upstream    {_listed(Counter(dict(sorted(self.met.items()))))}")
        for name, sample in zip(("before", "after"), self.rested, strict=False):
            lines.append(
                f"{name:<11} {sample.memory_bytes / 2**20:.0f} MiB, {sample.descriptors} "
                f"descriptors, {sample.threads} threads"
            )
        lines += [f"WRONG       {fault}" for fault in self.faults[:50]]
        verdict = f"{len(self.faults)} things went wrong" if self.faults else "all is right"
        return [*lines, f"verdict     {verdict}"]


def _listed(counts: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
