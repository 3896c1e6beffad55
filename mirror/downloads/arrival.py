"""One blob on its way in, as its readers see it.

*Everyone is a follower*: whoever fetches only writes into the staged file and tells the arrival;
every client reads that file, and so does the hash. Readers ask "is [a, b) there?", never "how far
is the writer?", so that bytes may come in any order.
"""

from collections.abc import Callable
from typing import BinaryIO

from mirror.downloads.pulse import Pulse
from mirror.errors import MirrorError
from mirror.intervals import Intervals
from mirror.names import Digest, Repository
from mirror.store.staging import StagedBlob

# Nobody gets a blob's end before the whole has been hashed, so that nobody gets a whole wrong blob.
HELD_BACK_BYTES = 1024


class Arrival:
    """State: nothing known → announced (the upstream has answered; the size may still be unknown) →
    verified, or failed at any point.
    """

    def __init__(
        self,
        digest: Digest,
        source: Repository,
        staged: StagedBlob,
        expected_bytes: int | None = None,
    ) -> None:
        """`expected_bytes` is the size by a manifest of the source, where one was seen."""
        self.digest = digest
        self.source = source
        self.staged = staged
        self.expected_bytes = expected_bytes
        self.size_bytes: int | None = None
        self.size_told = False
        # Which of the upstream's endpoints is asked first: not one that sent wrong bytes of it.
        self.first_attempt = 0
        # Followers, and who waits for the upstream's answer.
        self.interested = 0
        # Room that was asked for where nobody tells the size.
        self.reserved_bytes = 0
        self.is_stored = False
        self.present = Intervals()
        self.verified = False
        self.pulse = Pulse()
        self.announced = False
        # By a client; not yet where it was begun ahead of them.
        self.is_asked = True
        self.began_ahead = False
        # Room was made for it, or there was some.
        self.is_admitted = False
        # To make room for others: it is about to end, and may be begun anew then.
        self.is_given_up = False
        self.has_ended = False
        self.error: MirrorError | None = None
        # Told what a reader waits for, so that it can be fetched out of turn; end None: the rest.
        self.wanted: Callable[[int, int | None], None] = lambda start, end: None

    def announce(self, size_bytes: int | None, *, is_doubtful: bool = False) -> None:
        """The upstream has answered, and may have told the size, else it is the expected one. What
        is doubtful nobody hears of before it is verified.
        """
        self.announced = not is_doubtful
        size_bytes = self.expected_bytes if size_bytes is None else size_bytes
        if size_bytes is not None:
            self.size_bytes, self.size_told = size_bytes, True
        self.pulse.beat()

    def end_at(self, size_bytes: int) -> None:
        """The upstream told no size and has come to an end."""
        self.size_bytes = size_bytes
        self.pulse.beat()

    def wrote(self, start: int, end: int) -> None:
        self.present.add(start, end)
        if self.present.reach(0) == self.size_bytes:
            self.pulse.beat()
        else:
            self.pulse.beat_soon()

    def missing_bytes(self) -> int:
        """What is still to come, as far as the size is known, or room was asked for."""
        return max(0, max(self.expected_bytes or 0, self.reserved_bytes) - self.present.count())

    def verify(self) -> None:
        self.verified = self.announced = True
        self.pulse.beat()

    def fail(self, error: MirrorError) -> None:
        """Readers that already have what they came for are not disturbed."""
        self.error = error
        self.pulse.beat()

    def end(self) -> None:
        """Nothing more will come; another arrival of this digest may begin."""
        self.has_ended = True
        self.pulse.beat()

    async def wait_ended(self) -> None:
        while not self.has_ended:
            await self.pulse.wait()

    async def wait_announced(self) -> None:
        """Raises MirrorError when the arrival failed before anything was known."""
        while not self.announced:
            self._raise_error()
            await self.pulse.wait()

    async def wait_size(self) -> int:
        """The size; where the upstream told none it is known once all is verified, since before
        that any end might be too early. Raises MirrorError.
        """
        while self.size_bytes is None or not (self.size_told or self.verified):
            self._raise_error()
            await self.pulse.wait()
        return self.size_bytes

    async def readable(self, start: int, end: int | None, *, completes: bool) -> int:
        """Waits for the byte at `start`; returns up to where, at most `end`, may be read now.

        `completes`: whoever gets these bytes may have a whole blob with them, so that its end waits
        for its digest. `end` None: to the end of the blob, and `start` is returned once there is no
        more. Raises MirrorError.
        """
        while True:
            reach = self.present.reach(start)
            if completes and not self.verified:
                reach = min(reach, self._held_limit())
            if end is not None:
                reach = min(reach, end)
            if reach > start or (self.verified and start == self.size_bytes):
                return reach
            self._raise_error()
            self.wanted(start, end)
            await self.pulse.wait()

    def open_reader(self) -> BinaryIO | None:
        """A file for one reader; None when the arrival has just failed.

        Blocking. Raises OSError.
        """
        try:
            return self.staged.open_reader()
        except FileNotFoundError:
            return None

    def _held_limit(self) -> int:
        if self.size_bytes is not None:
            return self.size_bytes - HELD_BACK_BYTES
        return self.present.reach(0) - HELD_BACK_BYTES

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
