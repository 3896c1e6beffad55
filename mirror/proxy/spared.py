"""What cannot be written down is served all the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from mirror.errors import StorageFailed

_log = structlog.get_logger()


@contextmanager
def spared(what: str, **facts: object) -> Iterator[None]:
    """Around a write to the disk or the index: when it fails, on a full disk say, only what lies in
    memory is known, and the upstream is asked again after a restart.
    """
    try:
        yield
    except StorageFailed as failed:
        told = {name: str(fact) for name, fact in facts.items()}
        _log.warning("not remembered", what=what, **told, error=failed.message)
