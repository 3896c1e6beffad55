"""How many read a blob just now, by whatever file they have it open, and in whichever process."""

import asyncio
from collections.abc import Iterator
from weakref import WeakValueDictionary

from mirror.names import Digest

# A front process that was told where a blob lies says within this time that it reads it.
HANDOVER_SECONDS = 0.5


class ReadCount:
    """Of one blob. Each `begin` has its `end`; handles, of which a warm answer takes one, add to
    `number` themselves.
    """

    __slots__ = ("__weakref__", "number")

    def __init__(self) -> None:
        self.number = 0

    @property
    def is_read(self) -> bool:
        return self.number > 0

    def begin(self) -> None:
        self.number += 1

    def end(self) -> None:
        self.number -= 1

    def hand_over(self) -> None:
        """One more for a moment: another process goes on with it, and is about to say so."""
        self.begin()
        asyncio.get_running_loop().call_later(HANDOVER_SECONDS, self.end)


class Readers:
    """A count lives for as long as somebody holds it, who looks it up once, not for each reader:
    that would cost more than the rest of a warm answer's way to its file.
    """

    def __init__(self) -> None:
        self._counts: WeakValueDictionary[Digest, ReadCount] = WeakValueDictionary()

    def of(self, digest: Digest) -> ReadCount:
        count = self._counts.get(digest)
        if count is None:
            count = self._counts[digest] = ReadCount()
        return count

    def is_read(self, digest: Digest) -> bool:
        count = self._counts.get(digest)
        return count is not None and count.is_read

    def read_now(self) -> Iterator[Digest]:
        return (digest for digest, count in self._counts.items() if count.is_read)
