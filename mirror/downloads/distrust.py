"""Endpoints that sent wrong bytes of a blob: they are asked last for it, for a while."""

from cachetools import TTLCache

from mirror.names import Digest

DISTRUST_SECONDS = 600
# Of so many blobs at a time; for others the first endpoint is the first to be asked again.
MAX_DISTRUSTED = 1000


class Distrust:
    """By upstream and digest: what one upstream sends says nothing of another one's endpoints."""

    def __init__(self) -> None:
        self._first_attempts: TTLCache[tuple[str, Digest], int] = TTLCache(
            MAX_DISTRUSTED, DISTRUST_SECONDS
        )

    def first_attempt(self, upstream: str, digest: Digest) -> int:
        """With which endpoint to begin, counted on without end."""
        return self._first_attempts.get((upstream, digest), 0)

    def note(self, upstream: str, digest: Digest, first_attempt: int) -> None:
        """What began there proved wrong."""
        self._first_attempts[upstream, digest] = first_attempt + 1
