"""The arrivals that are under way: how many, of whom, and who makes way for whom."""

import asyncio
from collections.abc import Iterable, Mapping

from mirror.downloads.arrival import Arrival
from mirror.downloads.shares import Shares
from mirror.errors import TooBusy
from mirror.names import Digest

# Each one has connections, buffers and a place in the threads: beyond this, clients come again.
MAX_ARRIVALS = 1000
MAX_ARRIVALS_OF_ONE = 500
_RETRY_SECONDS = 5


class Crowd:
    """By digest. What was given up is cancelled, and what had come of it is kept in staging."""

    def __init__(self, connections: Mapping[str, int]) -> None:
        """`connections`: how many each upstream may have for blobs."""
        self.shares: Mapping[str, Shares] = {
            name: Shares(pool) for name, pool in connections.items()
        }
        self.tasks: dict[Arrival, asyncio.Task[None]] = {}
        self._arrivals: dict[Digest, Arrival] = {}

    def find(self, digest: Digest) -> Arrival | None:
        return self._arrivals.get(digest)

    def add(self, arrival: Arrival, task: asyncio.Task[None]) -> None:
        shares = self.shares[arrival.source.upstream]
        if arrival.is_asked:
            shares.asked += 1
        else:
            shares.ahead += 1
        self._arrivals[arrival.digest] = arrival
        self.tasks[arrival] = task

    def remove(self, arrival: Arrival) -> None:
        """Its digest is free for another one; the last that its task does, so that nobody gives up
        what has ended.
        """
        del self._arrivals[arrival.digest], self.tasks[arrival]
        if not arrival.is_given_up:
            kind = "asked" if arrival.is_asked else "ahead"
            self.shares[arrival.source.upstream].give_back(kind)

    def arriving_bytes(self) -> int:
        """What is on its way in will fill, as far as is known, and is no blob yet."""
        arriving = self._arrivals.values()
        under_way = [each for each in arriving if not each.is_stored and not each.is_given_up]
        return sum(each.present.count() + _to_come(each) for each in under_way)

    def staged(self) -> tuple[int, int]:
        """(blobs, bytes) that have come so far and are no blobs yet."""
        staged = [each for each in self._arrivals.values() if not each.is_stored]
        return len(staged), sum(each.present.count() for each in staged)

    def coming_bytes(self) -> int:
        """What is still to be written, as far as is known."""
        arriving = (each for each in self._arrivals.values() if not each.is_given_up)
        return sum(_to_come(arrival) for arrival in arriving)

    def check_place(self, upstream: str) -> None:
        """For one more that a client asks for. Raises TooBusy."""
        asked = [arrival for arrival in self._arrivals.values() if arrival.is_asked]
        of_one = [each for each in asked if each.source.upstream == upstream]
        is_full = len(asked) >= MAX_ARRIVALS or len(of_one) >= MAX_ARRIVALS_OF_ONE
        if is_full and not self._abandon_one(of_one):
            raise TooBusy(
                f"{len(of_one)} blobs of {upstream} are on their way to this mirror; it takes on "
                "no more for now",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )

    def note_asked(self, arrival: Arrival) -> None:
        """By a client, whoever began it."""
        if arrival.is_asked:
            return
        arrival.is_asked = True
        shares = self.shares[arrival.source.upstream]
        shares.asked += 1
        shares.give_back("ahead")
        self.make_place(arrival.source.upstream)

    def make_place(self, upstream: str) -> None:
        """For what was asked for: the youngest that nobody asked for give their places up."""
        for arrival in reversed(list(self.tasks)):
            if not self.shares[upstream].is_too_much_ahead:
                return
            if arrival.source.upstream == upstream:
                self.give_up(arrival)

    def end_ahead(self) -> bool:
        """All that no client has asked for; whether there was something."""
        given_up = [arrival for arrival in list(self.tasks) if self.give_up(arrival)]
        return bool(given_up)

    def give_up(self, arrival: Arrival) -> bool:
        """Unless somebody asked for it, or it is whole. Whether it was."""
        if arrival.is_asked or arrival.is_given_up or arrival.verified:
            return False
        arrival.is_given_up = True
        self.shares[arrival.source.upstream].give_back("ahead")
        # Soon, since a task that has not begun yet could not tidy up.
        asyncio.get_running_loop().call_soon(self.tasks[arrival].cancel)
        return True

    def _abandon_one(self, arrivals: Iterable[Arrival]) -> bool:
        """The longest under way of which nobody is left; what came of it is kept. Whether there was
        one.
        """
        for arrival in arrivals:
            if not arrival.interested and not arrival.verified and not arrival.is_given_up:
                arrival.is_given_up = True
                self.shares[arrival.source.upstream].give_back("asked")
                asyncio.get_running_loop().call_soon(self.tasks[arrival].cancel)
                return True
        return False


def _to_come(arrival: Arrival) -> int:
    """What a manifest claims of a blob counts only once its upstream has answered."""
    return arrival.missing_bytes() if arrival.is_admitted else 0
