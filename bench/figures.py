"""What the samples of a run come to: medians, ratios within a round, targets met and missed."""

from dataclasses import dataclass
from enum import Enum
from statistics import median

from bench.rows import BEST, DIRECT, MIRROR, TWO_MIRRORS, Row, Target
from bench.run import FOREIGN_LOAD, STOLEN, Run

Values = list[float | None]
"""One for each round; None where the server failed."""


def values(run: Run, row: Row, server: str) -> Values:
    if server == BEST:
        return _best(run, row)
    return [sample.values.get(row.key) for sample in run.samples_of(row.key, server)]


def failures(run: Run, row: Row, server: str) -> list[str]:
    return [each.failure for each in run.samples_of(row.key, server) if each.failure]


def middle(numbers: Values) -> float | None:
    there = [number for number in numbers if number is not None]
    return median(there) if there else None


def ratio(run: Run, row: Row, subject: str, other: str) -> float | None:
    """The subject's value by the other's, round by round, so that a busy minute hits both.

    None when one of them is not in the run or never got a value.
    """
    pairs = zip(values(run, row, subject), values(run, row, other), strict=False)
    return middle([a / b for a, b in pairs if a is not None and b])


def _best(run: Run, row: Row) -> Values:
    """The best value of each round that a cache had which is not mirror."""
    peers = [name for name in run.servers if name not in (MIRROR, TWO_MIRRORS, DIRECT)]
    best = max if row.more_is_better else min
    rounds = zip(*(values(run, row, peer) for peer in peers), strict=False)
    return [best((v for v in each if v is not None), default=None) for each in rounds]


def foreign_cores(run: Run) -> list[float]:
    """What programs that are not part of the benchmark used, of each sample."""
    return _of_each_sample(run, FOREIGN_LOAD)


def stolen_cores(run: Run) -> list[float]:
    """What a virtual machine wanted and did not get, of each sample."""
    return _of_each_sample(run, STOLEN)


def _of_each_sample(run: Run, detail: str) -> list[float]:
    return [
        float(sample.details[detail])
        for by_server in run.samples.values()
        for samples in by_server.values()
        for sample in samples
    ]


class Outcome(Enum):
    MET = "pass"
    MISSED = "**FAIL**"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """`value`: the one that was compared with the target's bound."""

    row: Row
    target: Target
    outcome: Outcome
    value: float | None


def verdicts(run: Run, rows: list[Row]) -> list[Verdict]:
    return [_verdict(run, row, target) for row in rows for target in row.targets]


def _verdict(run: Run, row: Row, target: Target) -> Verdict:
    subject = target.subject
    if target.ratio_to is None:
        value = middle(values(run, row, subject))
    else:
        value = ratio(run, row, subject, target.ratio_to)
    if failures(run, row, subject):
        outcome = Outcome.MISSED
    elif value is None:
        outcome = Outcome.NOT_MEASURED
    else:
        outcome = Outcome.MET if target.met_by(value) else Outcome.MISSED
    return Verdict(row, target, outcome, value)
