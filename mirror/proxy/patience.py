"""How long an answer waits for an upstream, and what being late means."""

from typing import TypeVar

from mirror.downloads.downloads import ANSWER_SECONDS
from mirror.errors import UpstreamUnreachable
from mirror.singleflight import Flight

# Where something remembered can stand in, a client waits no longer than this for the upstream.
STAND_IN_SECONDS = 1.5

V = TypeVar("V")


async def within_patience(flight: Flight[V], upstream: str, *, can_stand_in: bool = False) -> V:
    """The flight's result. Raises what it raises, and UpstreamUnreachable when it is late; the
    question then goes on, and the next asker may find it answered.
    """
    seconds = STAND_IN_SECONDS if can_stand_in else ANSWER_SECONDS
    try:
        return await flight.wait(seconds)
    except TimeoutError:
        raise UpstreamUnreachable(
            upstream, f"has not answered within {seconds:g} s; the question goes on"
        ) from None
