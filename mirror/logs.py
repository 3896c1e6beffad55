"""Log lines: structured, rendered and written by a thread of their own, so that a slow reader of
the log never holds up an answer.
"""

import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import structlog

# Lines beyond this are dropped and counted: memory is for blobs.
MAX_WAITING_LINES = 10_000


class _BoundedQueueHandler(logging.handlers.QueueHandler):
    """Drops what a stalled log cannot take."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """As it is: the listener is in this process and renders it."""
        return record


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
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.processors.LogfmtRenderer(bool_as_flag=False)
    )
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING_LINES)
    handler = _BoundedQueueHandler(lines)
    listener = logging.handlers.QueueListener(lines, writer)
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.addHandler(handler)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        listener.stop()
        structlog.reset_defaults()
