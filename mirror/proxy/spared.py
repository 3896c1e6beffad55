"""What cannot be written down, or looked up, is served all the same."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

from mirror.errors import StorageFailed

_log = structlog.get_logger()

T = TypeVar("T")


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


async def if_told(question: Awaitable[T | None]) -> T | None:
    """What the index says. One that fails is one that knows nothing: the upstream will be asked.
    It logs and counts its failures itself.
    """
    try:
        return await question
    except StorageFailed:
        return None
