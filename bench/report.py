"""The run as tables of markdown and as JSON."""

import json
from dataclasses import asdict
from statistics import median

from bench.figures import (
    Verdict,
    failures,
    foreign_cores,
    middle,
    ratio,
    stolen_cores,
    values,
    verdicts,
)
from bench.rows import DIRECT, MIRROR, Row, all_rows
from bench.run import Run

BUSY_CORES = 0.1  # when others took more than this, the report says so
FAILS = "**fails**"
REASON_LIMIT_CHARACTERS = 300


def markdown(run: Run) -> str:
    rows = all_rows(run.scale)
    parts = [_heading(run), _values_table(run, rows)]
    if MIRROR in run.servers:
        parts += [_ratios_table(run, rows), _targets(run, rows)]
    if failed := _failures(run, rows):
        parts.append(failed)
    return "\n\n".join(parts)


def as_json(run: Run) -> str:
    """Every sample of every round, and the medians of the table."""
    rows = all_rows(run.scale)
    document = {
        "machine": run.machine,
        "versions": run.versions,
        "scale": asdict(run.scale),
        "commands": run.commands,
        "medians": {
            row.key: {name: middle(values(run, row, name)) for name in run.servers} for row in rows
        },
        "targets": [_verdict_text(verdict) for verdict in verdicts(run, rows)],
        "samples": {
            rows_of_measure: {server: [asdict(s) for s in taken] for server, taken in by.items()}
            for rows_of_measure, by in run.samples.items()
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def number(value: float) -> str:
    """Three digits that mean something; thousands with a comma."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _heading(run: Run) -> str:
    facts = "; ".join(f"{name}: {value}" for name, value in run.machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    rounds = "1 round" if run.scale.rounds == 1 else f"{run.scale.rounds} interleaved rounds"
    lines = [
        f"{facts}.",
        f"{versions}.",
        f"Medians of {rounds} (lowest - highest). In the cold and far rows {DIRECT} is the "
        f"upstream itself, with no cache between. Large bodies are "
        f"{'read' if run.scale.copy_bodies else 'thrown away unread'} by the clients.",
    ]
    foreign = foreign_cores(run)
    if busy := [cores for cores in foreign if cores > BUSY_CORES]:
        lines.append(
            f"**Disturbed**: during {len(busy)} of {len(foreign)} samples other programs used more "
            f"than {BUSY_CORES} cores (at most {max(busy):.2f})."
        )
    if (most := max(stolen := stolen_cores(run), default=0.0)) > BUSY_CORES:
        lines.append(
            f"The host of this virtual machine gave {number(median(stolen))} of its cores to "
            f"others in the median sample, and at most {number(most)}."
        )
    return "\n\n".join(lines)


# ------------------------------------------------------------------------------------- the tables


def _values_table(run: Run, rows: list[Row]) -> str:
    lines = _head(["", "better", *run.servers])
    for row in rows:
        cells = [f"{row.title}, {row.unit}", "more" if row.more_is_better else "less"]
        lines.append(_line(cells + [_cell(run, row, server) for server in run.servers]))
    return "\n".join(lines)


def _ratios_table(run: Run, rows: list[Row]) -> str:
    others = [name for name in run.servers if name != MIRROR]
    lines = _head([f"{MIRROR} ÷", "better", *others])
    for row in rows:
        ratios = [ratio(run, row, MIRROR, name) for name in others]
        texts = ["-" if each is None else f"{number(each)}x" for each in ratios]
        lines.append(_line([row.title, "more" if row.more_is_better else "less", *texts]))
    return "Medians of each round's ratio:\n\n" + "\n".join(lines)


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), _line(["---", "---", *("---:" for _ in cells[2:])])]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(run: Run, row: Row, server: str) -> str:
    taken = [value for value in values(run, row, server) if value is not None]
    middle_value, failed = middle([*taken]), failures(run, row, server)
    if middle_value is None:
        return FAILS if failed else "-"
    text = number(middle_value)
    if len(taken) > 1:
        text += f" ({number(min(taken))} - {number(max(taken))})"
    return f"{text}, {FAILS} {len(failed)} of {run.scale.rounds}" if failed else text


# ---------------------------------------------------------------------------- failures, targets


def _failures(run: Run, rows: list[Row]) -> str:
    """Why, once for each server and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for server in run.servers:
            for reason in dict.fromkeys(failures(run, row, server)):
                found.setdefault((server, " ".join(reason.split())), []).append(row.title)
    lines = []
    for (server, reason), titles in found.items():
        where = "; ".join(titles) if len(titles) < len(rows) else "everything"
        lines.append(f"- {server}, {where}: {reason[:REASON_LIMIT_CHARACTERS]}")
    return "\n".join(["Failures:", "", *lines]) if lines else ""


def _targets(run: Run, rows: list[Row]) -> str:
    heading = "Targets:" if run.scale.rounds > 1 else "Targets (one round proves none of them):"
    lines = [f"- {_verdict_text(verdict)}" for verdict in verdicts(run, rows)]
    return "\n".join([heading, "", *lines])


def _verdict_text(verdict: Verdict) -> str:
    row, target = verdict.row, verdict.target
    sign = "≥" if target.at_least else "≤"
    unit, of = (row.unit, "") if target.ratio_to is None else ("x", f" {target.ratio_to}'s")
    wanted = f"{row.title}: {sign} {target.bound:g} {unit}{of}"
    text = f"{verdict.outcome.value}: {target.subject}, {wanted}"
    return text if verdict.value is None else f"{text}; it is {number(verdict.value)} {unit}"
