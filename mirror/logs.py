"""Log lines: structured, one event a line, written to stderr by a thread of its own.

Lines are rendered where they arise and gathered for a moment: a thread that is woken for every line
takes the interpreter away from the event loop each time. A reader of the log that stalls holds up
no answer; what it does not take in time is dropped and counted.
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import orjson
import structlog

from mirror.names import printable

# Lines beyond this are dropped and counted: a stalled reader of the log must not use up memory.
MAX_WAITING_LINES = 20_000
GATHER_SECONDS = 0.1
# How long, at the end, a reader of the log may take for what is still waiting.
LAST_LINES_SECONDS = 1
_STDERR = 2

Format = Literal["json", "text"]


class LineWriter:
    """Takes lines from any thread without waiting; writes them in order, past Python's buffers: a
    thread that is stuck in those would let the process end with an error.
    """

    def __init__(self, render_dropped: structlog.typing.Processor, turns: int | None) -> None:
        """`turns` is a descriptor of a file that all processes share which write to this stderr:
        whoever holds a lock on it may write, so that no line is torn.
        """
        self._render_dropped = render_dropped
        self._turns = turns
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        if len(self._lines) < MAX_WAITING_LINES:
            self._lines.append(line)
        else:
            self._dropped += 1

    # structlog calls the method that has the level's name.
    debug = info = warning = error = critical = msg

    def close(self) -> None:
        """Writes what is waiting, as far as somebody reads it."""
        self._ending.set()
        self._thread.join(LAST_LINES_SECONDS)

    def _write_all(self) -> None:
        while not self._ending.wait(GATHER_SECONDS):
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if dropped := self._dropped:
            self._dropped -= dropped
            event = {"event": f"{dropped} log lines were dropped", "level": "warning"}
            lines.append(str(self._render_dropped(None, "warning", event)))
        data = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
        if self._turns is not None and data:
            fcntl.lockf(self._turns, fcntl.LOCK_EX)
        try:
            _write_all(data)
        finally:
            if self._turns is not None and data:
                fcntl.lockf(self._turns, fcntl.LOCK_UN)


class _AtOnce:
    def msg(self, line: str) -> None:
        _write_all(f"{line}\n".encode(errors="backslashreplace"))

    debug = info = warning = error = critical = msg


def _write_all(data: bytes) -> None:
    with suppress(OSError):  # where nobody can read it any more
        while data:
            data = data[os.write(_STDERR, data) :]


class _Clock:
    """ISO 8601 in UTC. structlog's own writes the whole of it for each line; most lines come within
    the second of the one before.
    """

    def __init__(self) -> None:
        self._last = (-1, "")  # replaced as a whole, since lines come from several threads

    def __call__(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        microseconds = time.time_ns() // 1000
        second, fraction = divmod(microseconds, 1_000_000)
        last_second, told = self._last
        if second != last_second:
            told = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._last = (second, told)
        event["timestamp"] = f"{told}.{fraction:06d}Z"
        return event


class _StandardLibrary(logging.Handler):
    """What libraries log, in the same lines."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.msg(self.format(record))
        except Exception:  # a line lost is better than a request
            self.handleError(record)


@contextmanager
def logging_to_stderr(log_format: Format, level: str, turns: int | None = None) -> Iterator[None]:
    """Configures structlog and the standard library's logging while the block runs. For `turns`
    see LineWriter.
    """
    level_number = logging.getLevelNamesMapping()[level.upper()]
    shared, renderers = _shared(), _renderers(log_format)
    writer = LineWriter(renderers[-1], turns)
    _configure([*shared, *renderers], level_number, writer)
    try:
        with _standard_library_into(writer, level_number, shared, renderers):
            yield
    finally:
        structlog.reset_defaults()
        writer.close()


@contextmanager
def logging_at_once(log_format: Format, level: str) -> Iterator[None]:
    """For a process that has few lines, waits for nobody, and may have no threads."""
    level_number = logging.getLevelNamesMapping()[level.upper()]
    _configure([*_shared(), *_renderers(log_format)], level_number, _AtOnce())
    try:
        yield
    finally:
        structlog.reset_defaults()


def _shared() -> list[structlog.typing.Processor]:
    return [
        structlog.processors.add_log_level,
        _Clock(),
        structlog.processors.format_exc_info,
    ]


def _configure(
    processors: list[structlog.typing.Processor], level_number: int, writer: object
) -> None:
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level_number),
        logger_factory=lambda *_: writer,
    )


@contextmanager
def _standard_library_into(
    writer: LineWriter,
    level_number: int,
    shared: list[structlog.typing.Processor],
    renderers: list[structlog.typing.Processor],
) -> Iterator[None]:
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = _StandardLibrary(writer)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[remove_meta, *renderers]
        )
    )
    root = logging.getLogger()
    level_before = root.level
    root.setLevel(level_number)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level_before)


def _renderers(log_format: Format) -> list[structlog.typing.Processor]:
    if log_format == "json":
        return [structlog.processors.JSONRenderer(_to_json)]
    first = ["timestamp", "level", "event"]
    render = structlog.processors.LogfmtRenderer(key_order=first, bool_as_flag=False)
    return [_escape_unprintable, render]


def _to_json(event: dict[str, Any], **_options: object) -> str:
    """The faster encoder leaves what is not ASCII as it is, line separators and terminal controls
    included, and gives up on half a character; the slower one escapes all of that.
    """
    with suppress(TypeError):
        line = orjson.dumps(event, default=repr).decode()
        if line.isascii():
            return line
    return json.dumps(event, default=repr)


def _escape_unprintable(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """So that a line stays a line, and a terminal is sent no commands."""
    return {key: printable(each) if isinstance(each, str) else each for key, each in event.items()}
