"""The run as a table of markdown and as JSON."""

import json
from dataclasses import asdict
from statistics import median

from bench.measures import Sample
from bench.rows import DIRECT, MIRROR, PEER, Row, Target, all_rows
from bench.run import FOREIGN_LOAD, Run

BUSY_CORES = 0.1  # when others took more than this, the report says so


def markdown(run: Run) -> str:
    parts = [_heading(run), _table(run)]
    if MIRROR in run.servers:
        parts.append(_targets(run))
    return "\n\n".join(parts)


def as_json(run: Run) -> str:
    """Every sample of every round, and the medians of the table."""
    rows = all_rows(run.scale)
    document = {
        "machine": run.machine,
        "scale": asdict(run.scale),
        "commands": run.commands,
        "medians": {row.key: {s: _median(run, row, s) for s in run.servers} for row in rows},
        "targets": {row.title: _verdict(run, row, row.target) for row in rows if row.target},
        "samples": {
            rows_of_measure: {server: [asdict(s) for s in taken] for server, taken in by.items()}
            for rows_of_measure, by in run.samples.items()
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _heading(run: Run) -> str:
    facts = "; ".join(f"{name}: {value}" for name, value in run.machine.items())
    foreign = _foreign_cores(run)
    lines = [
        f"{facts}.",
        f"Medians of {run.scale.rounds} interleaved rounds (lowest - highest); ratios are medians "
        f"of each round's ratio. In the cold rows {DIRECT} is the upstream itself, with no cache "
        f"between: what clients get that go there directly. Large bodies are "
        f"{'read' if run.scale.copy_bodies else 'thrown away unread'} by the clients.",
    ]
    if busy := [cores for cores in foreign if cores > BUSY_CORES]:
        lines.append(
            f"**Disturbed**: during {len(busy)} of {len(foreign)} samples other programs used more "
            f"than {BUSY_CORES} cores (at most {max(busy):.2f})."
        )
    return "\n\n".join(lines)


def _foreign_cores(run: Run) -> list[float]:
    return [
        float(sample.details[FOREIGN_LOAD])
        for by_server in run.samples.values()
        for samples in by_server.values()
        for sample in samples
    ]


# -------------------------------------------------------------------------------------- the table


def _table(run: Run) -> str:
    ratios = [name for name in (PEER, DIRECT) if {MIRROR, name} <= set(run.servers)]
    heads = ["", "better", *run.servers, *(f"{MIRROR} ÷ {name}" for name in ratios)]
    lines = [_line(heads), _line(["---", "---", *("---:" for _ in heads[2:])])]
    for row in all_rows(run.scale):
        cells = [f"{row.title}, {row.unit}", "more" if row.more_is_better else "less"]
        cells += [_cell(run, row, server) for server in run.servers]
        cells += [_ratio_text(_ratio(run, row, name)) for name in ratios]
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(run: Run, row: Row, server: str) -> str:
    samples = run.samples_of(row.key, server)
    values = [sample.values[row.key] for sample in samples if row.key in sample.values]
    failures = [sample.failure for sample in samples if sample.failure]
    if not values:
        return f"**fails**: {failures[0]}" if failures else "-"
    text = f"{_number(median(values))} ({_number(min(values))} - {_number(max(values))})"
    if failures:
        text += f", **failed** {len(failures)} of {len(samples)}: {failures[0]}"
    absolute = row.target is not None and row.target.ratio_to is None
    if absolute and row.target is not None and not row.target.met_by(median(values)):
        text += ", direct" if server == DIRECT else ", **fails**"
    return text


def _ratio_text(ratio: float | None) -> str:
    return "-" if ratio is None else f"{_number(ratio)}x"


def _number(value: float) -> str:
    """Three digits that mean something; thousands with a comma."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# -------------------------------------------------------------------------------- medians, targets


def _values(samples: list[Sample], key: str) -> list[float | None]:
    return [sample.values.get(key) for sample in samples]


def _median(run: Run, row: Row, server: str) -> float | None:
    values = [v for v in _values(run.samples_of(row.key, server), row.key) if v is not None]
    return median(values) if values else None


def _ratio(run: Run, row: Row, server: str) -> float | None:
    """Mirror's value by the server's, round by round, so that a busy minute hits both.

    None when one of them is not in the run or never got a value.
    """
    ours = _values(run.samples_of(row.key, MIRROR), row.key)
    theirs = _values(run.samples_of(row.key, server), row.key)
    ratios = [a / b for a, b in zip(ours, theirs, strict=False) if a is not None and b]
    return median(ratios) if ratios else None


def _targets(run: Run) -> str:
    lines = ["Targets:" if run.scale.rounds > 1 else "Targets (a smoke run proves none of them):"]
    lines += [f"- {_verdict(run, row, row.target)}" for row in all_rows(run.scale) if row.target]
    return "\n".join([lines[0], "", *lines[1:]])


def _verdict(run: Run, row: Row, target: Target) -> str:
    sign = "≥" if target.at_least else "≤"
    if target.ratio_to is None:
        value, unit, of = _median(run, row, MIRROR), row.unit, ""
    else:
        value, unit, of = _ratio(run, row, target.ratio_to), "x", f" {target.ratio_to}'s"
    wanted = f"{row.title}: {sign} {target.bound:g} {unit}{of}"
    failed = any(sample.failure for sample in run.samples_of(row.key, MIRROR))
    if value is None:
        return f"{'**FAIL**' if failed else 'not measured'}: {wanted}"
    passed = target.met_by(value) and not failed
    return f"{'pass' if passed else '**FAIL**'}: {wanted}; it is {_number(value)} {unit}"
