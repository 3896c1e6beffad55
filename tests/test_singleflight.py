"""One task for many askers."""

import asyncio

import pytest

from mirror import singleflight
from mirror.errors import TooBusy
from mirror.singleflight import Flights


class Work:
    """Work that ends when it is told to, and counts how often it began."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = 0
        self.cancelled = False
        self.may_end = asyncio.Event()
        self._error = error

    async def __call__(self) -> int:
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._error is not None:
            raise self._error
        return self.begun


async def test_askers_of_one_key_share_the_work() -> None:
    flights: Flights[str, int] = Flights()
    work, other = Work(), Work()
    started = [flights.start("key", work) for _ in range(5)]
    flight, joined = flights.start("other", other)
    assert [joined for _, joined in started] == [False, True, True, True, True]
    assert not joined
    work.may_end.set()
    assert await asyncio.gather(*(flight.wait() for flight, _ in started)) == [1] * 5
    assert not flight.task.done()
    other.may_end.set()
    await flight.wait()


async def test_what_has_landed_is_begun_anew() -> None:
    flights: Flights[str, int] = Flights()
    work = Work()
    work.may_end.set()
    for begun in (1, 2):
        flight, joined = flights.start("key", work)
        assert not joined
        assert await flight.wait() == begun
        await asyncio.sleep(0)


async def test_every_asker_hears_of_a_failure() -> None:
    flights: Flights[str, int] = Flights()
    work = Work(ValueError("no"))
    flight, _ = flights.start("key", work)
    work.may_end.set()
    answers = await asyncio.gather(flight.wait(), flight.wait(5), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError]


async def test_a_failure_that_nobody_waits_for_is_no_noise() -> None:
    """An exception never retrieved would be logged, and fail this test."""
    noise: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    flights: Flights[str, int] = Flights()
    work = Work(ValueError("no"))
    flight, _ = flights.start("key", work)
    work.may_end.set()
    await asyncio.wait([flight.task])
    await asyncio.sleep(0)
    del flight
    assert noise == []


async def test_an_asker_that_leaves_ends_nothing() -> None:
    flights: Flights[str, int] = Flights()
    work = Work()
    flight, _ = flights.start("key", work)
    waiting = asyncio.ensure_future(flight.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(TimeoutError):
        await flight.wait(0.01)
    again, joined = flights.start("key", work)
    assert (again, joined) == (flight, True)
    work.may_end.set()
    assert await again.wait() == 1


async def test_patience_counts_from_the_start() -> None:
    flights: Flights[str, int] = Flights()
    work = Work()
    flight, _ = flights.start("key", work)
    with pytest.raises(TimeoutError):
        await flight.wait(0.05)
    async with asyncio.timeout(5):
        for _ in range(100):  # late ones do not wait anew
            with pytest.raises(TimeoutError):
                await flight.wait(0.05)
    work.may_end.set()
    await asyncio.wait([flight.task])
    assert await flight.wait(0.05) == 1, "what is there is given, however late"


async def test_closing_ends_all_work() -> None:
    flights: Flights[str, int] = Flights()
    works = [Work(), Work()]
    for number, work in enumerate(works):
        flights.start(str(number), work)
    await asyncio.sleep(0)
    await flights.aclose()
    assert all(work.cancelled for work in works)
    await flights.aclose()


async def test_there_are_not_flights_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singleflight, "MAX_FLIGHTS", 2)
    flights: Flights[int, None] = Flights()
    landing = asyncio.Event()

    async def work() -> None:
        await landing.wait()

    held = [flights.start(key, work)[0] for key in range(2)]
    with pytest.raises(TooBusy):
        flights.start(2, work)
    assert flights.start(0, work) == (held[0], True)
    landing.set()
    await asyncio.gather(*(flight.wait() for flight in held))
    flights.start(2, work)
    await flights.aclose()


async def test_no_group_takes_the_room_of_all() -> None:
    flights: Flights[tuple[str, int], None] = Flights(lambda key: key[0])
    for n in range(singleflight.MAX_FLIGHTS_OF_A_GROUP):
        flights.start(("slow", n), lambda: asyncio.sleep(3600))
    with pytest.raises(TooBusy):
        flights.start(("slow", -1), lambda: asyncio.sleep(0))
    flight, _ = flights.start(("other", 0), lambda: asyncio.sleep(0))
    await flight.wait()
    await flights.aclose()
    flight, _ = flights.start(("slow", 0), lambda: asyncio.sleep(0))
    await flight.wait()
