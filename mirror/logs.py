"""Log lines: structured, one event a line, written to stderr by a thread of its own.

Lines are rendered where they arise and gathered for a moment: a thread that is woken for every line
would take the interpreter away from the event loop each time, and a reader of the log that stalls
must not hold up answers.
"""

import logging
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

import structlog

# Lines beyond this are dropped and counted: memory is for blobs.
MAX_WAITING_LINES = 20_000
GATHER_SECONDS = 0.1
# At the end, for a reader of the log that stalls.
LAST_WRITE_SECONDS = 2.0

Format = Literal["json", "text"]


class LineWriter:
    """Takes lines from any thread without waiting; writes them in order."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        if len(self._lines) < MAX_WAITING_LINES:
            self._lines.append(line)
        else:
            self._dropped += 1

    # structlog calls the method that is named after the event's level.
    debug = info = warning = error = critical = msg

    def close(self) -> None:
        self._ending.set()
        self._thread.join(LAST_WRITE_SECONDS)

    def _run(self) -> None:
        while not self._ending.wait(GATHER_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(f"{dropped} log lines were dropped: stderr does not take them fast enough")
        if not lines:
            return
        try:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
        except OSError:
            return  # nowhere is left to tell it


class _StandardLibrary(logging.Handler):
    """What libraries log, in the same lines."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.msg(self.format(record))


@contextmanager
def logging_to_stderr(log_format: Format, level: str) -> Iterator[None]:
    """Configures structlog and the standard library's logging while the block runs."""
    level_number = logging.getLevelNamesMapping()[level.upper()]
    writer = LineWriter(sys.stderr)
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = _renderer(log_format)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level_number),
        logger_factory=lambda *_: writer,
    )
    handler = _StandardLibrary(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=renderer)
    )
    root = logging.getLogger()
    root.setLevel(level_number)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        structlog.reset_defaults()
        writer.close()


def _renderer(log_format: Format) -> Any:
    if log_format == "json":
        return structlog.processors.JSONRenderer()
    return structlog.processors.LogfmtRenderer(bool_as_flag=False)
