"""What is told to people: sizes, times, and tables of text from anywhere."""

import time
from collections.abc import Sequence

import typer

from mirror.names import printable

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_AGES = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))


def size(size_bytes: int) -> str:
    """`512 B`, `67.2 MiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    amount = float(size_bytes)
    for unit in _UNITS:
        amount /= 1024
        if amount < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{amount:.1f} {unit}"


def age(at: float | None) -> str:
    """Of a time on the wall clock, in its largest unit."""
    if at is None:
        return ""
    seconds = max(0.0, time.time() - at)
    for unit_seconds, unit in _AGES:
        if seconds >= unit_seconds:
            return f"{counted(int(seconds / unit_seconds), unit)} ago"
    return "now"


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns in `right` stand at their right side."""
    safe = [list(head), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[n]) for row in safe) for n in range(len(head))]
    for row in safe:
        cells = [
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())
