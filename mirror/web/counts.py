"""What the server tells whoever counts: this process, or, from behind it, the one that it serves
for.
"""

from collections.abc import Callable
from typing import Protocol

from mirror.metrics import Cache


class Counts(Protocol):
    """Labels are bounded by whoever calls (see metrics.py)."""

    def before_reading(self, settle: Callable[[], None]) -> None:
        """Lets somebody who counts apart add to the counts before they are read."""

    def answered(
        self,
        upstream: str,
        kind: str,
        method: str,
        status: int,
        cache: Cache,
        sent_bytes: int,
        times: int = 1,
    ) -> None:
        """`sent_bytes` each time."""

    def first_byte_sent(self, upstream: str, kind: str, seconds: float, times: int = 1) -> None:
        """`seconds` each time."""

    def pull_saved(self, upstream: str, repository: str, times: int = 1) -> None:
        """A manifest was given without a pull."""

    def connection_refused(self) -> None:
        """There was no room for it."""
