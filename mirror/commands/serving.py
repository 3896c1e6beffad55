"""A mirror that serves, until SIGTERM or Ctrl-C, as one process or as several.

The exit code is 0, or 1 where it could not serve; then a line of the log says what to do.
"""

import asyncio
import os
import resource
import signal
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import structlog

from mirror import __version__
from mirror.app import running
from mirror.commands.hindrances import HINDRANCES, Hindrance, advice
from mirror.commands.settings import EXIT_FAILED
from mirror.config import Settings
from mirror.logs import logging_at_once, logging_to_stderr
from mirror.workers.front import fronting
from mirror.workers.supervisor import STOP_CHILD, Place, Serving, Supervisor

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Each client takes one, and so does each blob being read; most shells allow only 1,024.
WANTED_DESCRIPTORS = 65_536


def serve_until_stopped(settings: Settings) -> int:
    """The exit code."""
    _allow_descriptors()
    if settings.workers > 1:
        return _serve_as_several(settings)
    with logging_to_stderr(settings.log.format, settings.log.level):
        return _until_stopped(settings, _alone(settings))


def _serve_as_several(settings: Settings) -> int:
    """Each process has its own log, and all of them one stderr."""
    log = settings.log
    turns_file = os.memfd_create("turns")  # in memory: a full disk must not silence the log
    with open(turns_file, "wb") as turns, logging_at_once(log.format, log.level):

        def serve_as_one(serving: Callable[[], Serving], place: Place) -> int:
            with logging_to_stderr(log.format, log.level, turns.fileno()):
                return _until_stopped(settings, _as_one_of_several(serving, place))

        supervisor = Supervisor(
            settings,
            serve_as_one,
            owner=lambda fronts: running(settings, fronts),
            front=lambda sockets, path: fronting(settings, sockets, path),
        )
        try:
            return supervisor.run()
        except HINDRANCES as error:
            return _failed(error, settings)


def _until_stopped(settings: Settings, serving: Coroutine[Any, Any, None]) -> int:
    try:
        asyncio.run(serving)
    except HINDRANCES as error:
        return _failed(error, settings)
    return 0


async def _alone(settings: Settings) -> None:
    log = structlog.get_logger()
    stop = _stop_at(STOP_SIGNALS)
    async with running(settings) as port:
        log.info("serving", host=settings.listen[0] or "*", port=port, version=__version__)
        await stop.wait()
        log.info("stopping", grace_seconds=float(settings.shutdown_grace))
    log.info("stopped")


async def _as_one_of_several(serving: Callable[[], Serving], place: Place) -> None:
    """What becomes of them all is for the supervisor to say, and to tell; without it, they end.

    It may say so more than once.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(STOP_CHILD, stop.set)
    loop.add_reader(place.lifeline, stop.set)
    async with serving():
        place.tell_ready()
        await stop.wait()
        loop.remove_reader(place.lifeline)


def _stop_at(signals: Collection[signal.Signals]) -> asyncio.Event:
    """Set by the first signal, which asks for a clean end; the next one ends the process, whatever
    it does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, ask)
    return stop


def _allow_descriptors() -> None:
    """As many as wanted, or as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _failed(error: Hindrance, settings: Settings) -> int:
    structlog.get_logger().error("mirror cannot serve", reason=advice(error, settings))
    return EXIT_FAILED
