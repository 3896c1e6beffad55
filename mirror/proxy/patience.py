"""How long an answer waits for an upstream where something remembered can stand in."""

from typing import TypeVar

from mirror.errors import UpstreamUnreachable
from mirror.names import Repository
from mirror.singleflight import Flight

STAND_IN_SECONDS = 1.5

V = TypeVar("V")


def by_upstream(question: tuple[Repository, *tuple[object, ...]]) -> str:
    """For `Flights`: one upstream that is slow must not use up the room for all."""
    return question[0].upstream


async def within_patience(flight: Flight[V], upstream: str, *, can_stand_in: bool = False) -> V:
    """The flight's result. Raises what it raises, and UpstreamUnreachable when it is late; the
    question then goes on, and the next asker may find it answered.
    """
    if not can_stand_in:
        return await flight.wait()
    try:
        return await flight.wait(STAND_IN_SECONDS)
    except TimeoutError:
        raise UpstreamUnreachable(
            upstream, f"has not answered within {STAND_IN_SECONDS:g} s; the question goes on"
        ) from None
