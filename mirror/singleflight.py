"""One task for many askers of the same thing."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mirror.errors import TooBusy

# An asker that hangs up ends nothing: whoever asks and leaves must not pile up work without end.
MAX_FLIGHTS = 10_000
MAX_FLIGHTS_OF_A_GROUP = 2_000
_RETRY_SECONDS = 5

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Flight(Generic[V]):
    task: asyncio.Task[V]
    started_at: float

    async def wait(self, within_seconds: float | None = None) -> V:
        """The result. The time counts from the start, so that late joiners do not wait anew.

        Raises what the work raises, and TimeoutError. Neither an asker's cancellation nor the end
        of its patience ends the work.
        """
        left_seconds = None
        if within_seconds is not None:
            left_seconds = max(self.started_at + within_seconds - time.monotonic(), 0)
        async with asyncio.timeout(left_seconds):
            return await asyncio.shield(self.task)


class Flights(Generic[K, V]):
    """Flights by key. They belong to this object, not to a request: an asker that goes away ends
    nothing, and `aclose` awaits them all.
    """

    def __init__(self, group_of: Callable[[K], Hashable] = lambda _: None) -> None:
        """No group of questions takes the room of all."""
        self._flights: dict[K, Flight[V]] = {}
        self._group_of = group_of
        self._under_way: Counter[Hashable] = Counter()

    def start(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> tuple[Flight[V], bool]:
        """The flight under `key`, and whether it was under way already. Raises TooBusy."""
        flight = self._flights.get(key)
        if flight is not None:
            return flight, True
        self._check_room(key)
        task = asyncio.get_running_loop().create_task(work(), name=f"flight {key}")
        flight = self._flights[key] = Flight(task, time.monotonic())
        self._under_way[self._group_of(key)] += 1
        task.add_done_callback(lambda done: self._landed(key, done))
        return flight, False

    def _check_room(self, key: K) -> None:
        group = self._group_of(key)
        limit = MAX_FLIGHTS if group is None else MAX_FLIGHTS_OF_A_GROUP
        if len(self._flights) >= MAX_FLIGHTS or self._under_way[group] >= limit:
            raise TooBusy(
                f"this mirror has {self._under_way[group]} such questions under way; it takes on "
                "no more for now",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )

    def _landed(self, key: K, task: asyncio.Task[V]) -> None:
        del self._flights[key]
        self._under_way[self._group_of(key)] -= 1
        if not task.cancelled():
            task.exception()  # seen, also when no asker is left to see it

    async def aclose(self) -> None:
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
