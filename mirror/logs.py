"""Log lines: structured, rendered and written by a thread of their own, so that a slow reader of
the log never holds up an answer.
"""

import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import structlog

# Lines beyond this are dropped and counted: memory is for blobs.
MAX_WAITING_LINES = 10_000
# How long, at the end, a reader of the log may take for what is still waiting.
LAST_LINES_SECONDS = 1
_STDERR = 2

_log = structlog.get_logger()


class _Writer(logging.Handler):
    """Writes lines to stderr from a thread, past Python's buffers: a thread that is stuck in those
    would let the process end with an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(MAX_WAITING_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Writes what is waiting, as far as somebody reads it."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=LAST_LINES_SECONDS)
        self._thread.join(LAST_LINES_SECONDS)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def _write_all(self) -> None:
        while (record := self._waiting.get()) is not None:
            try:
                self._write(f"{self.format(record)}\n".encode())
            except Exception:  # a line lost is better than a log that has ended
                self.handleError(record)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                _log.warning("log lines were dropped", lines=dropped)

    def _write(self, line: bytes) -> None:
        """Where nobody can read it any more, it is dropped."""
        with suppress(OSError):
            while line:
                line = line[os.write(_STDERR, line) :]


@contextmanager
def logging_to_stderr(log_format: Literal["json", "text"], level: str) -> Iterator[None]:
    """Configures structlog and the standard library's logging while the block runs."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    writer = _Writer()
    writer.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *_renderers(log_format),
            ],
        )
    )
    root = logging.getLogger()
    level_before = root.level
    root.setLevel(level.upper())
    root.addHandler(writer)
    logging.captureWarnings(True)
    writer.start()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(writer)
        root.setLevel(level_before)
        writer.stop()
        structlog.reset_defaults()


def _renderers(log_format: Literal["json", "text"]) -> list[structlog.typing.Processor]:
    if log_format == "json":
        return [structlog.processors.JSONRenderer()]
    first = ["timestamp", "level", "event"]
    render = structlog.processors.LogfmtRenderer(key_order=first, bool_as_flag=False)
    return [_escape_unprintable, render]


def _escape_unprintable(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """So that a line stays a line, and a terminal is sent no commands."""
    return {key: _escaped(each) if isinstance(each, str) else each for key, each in event.items()}


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
