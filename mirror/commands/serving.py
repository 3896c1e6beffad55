"""`mirror serve`: the process, from its first signal handler to its exit code."""

import asyncio
import resource
import signal

import structlog
import typer

from mirror import __version__
from mirror.app import running
from mirror.commands.hindrances import HINDRANCES, advice
from mirror.commands.settings import EXIT_FAILED
from mirror.config import Settings
from mirror.logs import logging_to_stderr

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Each client takes one, and so does each blob being read; most shells allow only 1,024.
WANTED_DESCRIPTORS = 65_536


def serve_until_stopped(settings: Settings) -> None:
    """Raises typer.Exit, once it was told why it cannot."""
    _allow_descriptors()
    with logging_to_stderr(settings.log.format, settings.log.level):
        try:
            asyncio.run(_serve(settings))
        except HINDRANCES as error:
            structlog.get_logger().error("mirror cannot serve", reason=advice(error, settings))
            raise typer.Exit(EXIT_FAILED) from None


def _allow_descriptors() -> None:
    """As many as wanted, or as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, _stop, stop)
    log = structlog.get_logger()
    async with running(settings) as port:
        log.info("serving", host=settings.listen[0] or "*", port=port, version=__version__)
        await stop.wait()
        log.info("stopping", grace_seconds=float(settings.shutdown_grace))
    log.info("stopped")


def _stop(stop: asyncio.Event) -> None:
    """The first signal asks for a clean end; the next one ends the process, whatever it does."""
    stop.set()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
