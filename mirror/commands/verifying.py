"""What `mirror verify` shows while it runs, and in the end."""

import sys
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mirror.commands.telling import counted, size
from mirror.names import printable
from mirror.upkeep.lines import Line


class Told:
    """A bar on the terminal, if stderr is one; what is wrong as lines on stdout."""

    def __init__(self) -> None:
        self._progress = Progress(
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            disable=not sys.stderr.isatty(),
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=None)
        self._result: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, line: Line) -> None:
        if "item" in line:
            typer.echo(printable(_sentence(line["item"])))
        self._result.update(line.get("result", {}))
        if facts := line.get("progress"):
            done, of_all = facts["checked_bytes"], facts["all_bytes"]
            self._progress.update(self._task, completed=done, total=max(done, of_all))

    def is_anything_wrong(self) -> bool:
        """Also where it was fetched again since."""
        return bool(self._result["wrong"] or self._result["unsettled"])

    def summary(self) -> str:
        facts = self._result
        read = f"{counted(facts['checked_blobs'], 'blob')}, {size(facts['checked_bytes'])}"
        wrong = [f"{facts['wrong']} wrong and set aside"] if facts["wrong"] else []
        wrong += [f"{facts['refetched']} of them fetched again"] if facts["refetched"] else []
        wrong += [f"{facts['unsettled']} uncertain, see the log"] if facts["unsettled"] else []
        return f"checked: {read}: {', '.join(wrong) or 'all right'}"


def _sentence(found: dict[str, Any]) -> str:
    words = [f"{found['finding']}: {found['digest']}"]
    if "size_bytes" in found:
        words.append(size(found["size_bytes"]))
    words += found.get("repositories", [])
    words += [found["reason"]] if "reason" in found else []
    return ", ".join(words)
