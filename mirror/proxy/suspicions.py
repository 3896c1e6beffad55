"""Blobs that a client had whole and asks for again: it may have found them wrong.

A client checks what it gets, and pulls again what is not right. Large blobs are served as the disk
gives them, so that its second try is the first that anybody hears of bytes which have changed.
"""

from collections.abc import Callable

from cachetools import TTLCache

from mirror.names import Digest

AGAIN_WITHIN_SECONDS = 900
# Where many clients share an address, one check is enough for this long.
CHECKED_FOR_SECONDS = 3600
MAX_REMEMBERED = 20_000


class Suspicions:
    """`check_soon` is told of each blob that deserves another look; it says if that gets one."""

    def __init__(self, check_soon: Callable[[Digest], bool]) -> None:
        self._check_soon = check_soon
        self._given: TTLCache[tuple[Digest, str], bool] = TTLCache(
            MAX_REMEMBERED, AGAIN_WITHIN_SECONDS
        )
        self._checked: TTLCache[Digest, bool] = TTLCache(MAX_REMEMBERED, CHECKED_FOR_SECONDS)

    def note_given(self, digest: Digest, client: str) -> None:
        """The whole blob has gone to this client."""
        if digest in self._checked:
            return
        if (digest, client) in self._given and self._check_soon(digest):
            self._checked[digest] = True
        self._given[digest, client] = True
