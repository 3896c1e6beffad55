"""The commands. Thin: parse, call, print; exit codes that scripts can use.

0: done · 1: it failed while running · 2: wrong usage or configuration
"""

import asyncio
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import structlog
import typer

from mirror import __version__
from mirror.app import running
from mirror.config import ConfigurationError, Settings, load
from mirror.errors import MirrorError
from mirror.logs import logging_at_once, logging_to_stderr
from mirror.store.folder import FolderInUse
from mirror.store.schema import IndexTooNew
from mirror.web.listeners import CannotListen
from mirror.workers.front import fronting
from mirror.workers.supervisor import Serving, Supervisor

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Each client takes one, and so does each blob being read; most shells allow only 1,024.
WANTED_DESCRIPTORS = 65_536

app = typer.Typer(
    help="A pull-through caching proxy for container images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Hindrance = FolderInUse | IndexTooNew | CannotListen | MirrorError | OSError

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="MIRROR_CONFIG",
        help="The YAML file. Without it, the built-in defaults apply.",
    ),
]


@app.command()
def serve(config: ConfigFile = None) -> None:
    """Serve on the configured address until SIGTERM or Ctrl-C; then let transfers finish."""
    settings = _settings(config)
    _allow_descriptors()
    if settings.workers == 1:
        with logging_to_stderr(settings.log.format, settings.log.level):
            code = _serving(settings, lambda: running(settings))
    else:
        code = _supervising(settings)
    if code:
        raise typer.Exit(code)


@app.command()
def check_config(config: ConfigFile = None) -> None:
    """Check the configuration as `serve` would read it, and report every mistake in it."""
    settings = _settings(config)
    typer.echo(f"The configuration is valid; upstreams: {', '.join(sorted(settings.upstreams))}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Before any command."""


def _allow_descriptors() -> None:
    """As many as wanted, or as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _supervising(settings: Settings) -> int:
    """With several processes; each has its own log, and all of them one stderr."""
    log = settings.log
    with tempfile.TemporaryFile() as turns, logging_at_once(log.format, log.level):

        def serve(serving: Callable[[], Serving], lifeline: int, tell: Callable[[], None]) -> int:
            with logging_to_stderr(log.format, log.level, turns.fileno()):
                return _serving(settings, serving, lifeline, tell)

        supervisor = Supervisor(
            settings,
            serve,
            owner=lambda fronts: running(settings, fronts),
            front=lambda sockets, path: fronting(
                sockets, path, settings.storage.path, settings.shutdown_grace
            ),
        )
        try:
            return supervisor.run()
        except (CannotListen, OSError) as error:
            _tell_hindrance(error, settings)
            return EXIT_FAILED


def _serving(
    settings: Settings,
    serving: Callable[[], Serving],
    lifeline: int | None = None,
    tell: Callable[[], None] | None = None,
) -> int:
    """The exit code."""
    try:
        asyncio.run(_serve(settings, serving, lifeline, tell))
    except (FolderInUse, IndexTooNew, CannotListen, MirrorError, OSError) as error:
        _tell_hindrance(error, settings)
        return EXIT_FAILED
    return 0


def _tell_hindrance(error: Hindrance, settings: Settings) -> None:
    structlog.get_logger().error("mirror cannot serve", reason=_advice(error, settings))


async def _serve(
    settings: Settings,
    serving: Callable[[], Serving],
    lifeline: int | None,
    tell: Callable[[], None] | None,
) -> None:
    """One of several processes tells its supervisor that it is ready, and ends with it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS if lifeline is None else (signal.SIGTERM,):
        loop.add_signal_handler(number, _stop, stop)
    if lifeline is not None:
        loop.add_reader(lifeline, stop.set)
    log = structlog.get_logger()
    async with serving() as port:
        if tell is not None:
            tell()
        else:
            log.info("serving", host=settings.listen[0] or "*", port=port, version=__version__)
        await stop.wait()
        if lifeline is not None:
            loop.remove_reader(lifeline)
        else:
            log.info("stopping", grace_seconds=float(settings.shutdown_grace))
    if lifeline is None:
        log.info("stopped")


def _stop(stop: asyncio.Event) -> None:
    """The first signal asks for a clean end; the next one ends the process, whatever it does."""
    stop.set()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)


def _settings(config: Path | None) -> Settings:
    try:
        return load(config)
    except ConfigurationError as error:
        for mistake in error.mistakes:
            typer.echo(str(mistake), err=True)
        plural = "s" if len(error.mistakes) != 1 else ""
        typer.echo(f"{len(error.mistakes)} mistake{plural} in the configuration", err=True)
        raise typer.Exit(EXIT_CONFIGURATION) from None


def _advice(error: Hindrance, settings: Settings) -> str:
    """An operator's mistake gets a sentence that says what to do."""
    folder = settings.storage.path
    if isinstance(error, FolderInUse):
        return f"another mirror uses {folder}; stop it, or set a different storage.path"
    if isinstance(error, IndexTooNew):
        return (
            f"{folder}: {error}; install the newer version again, or set a different storage.path"
        )
    if isinstance(error, CannotListen):
        host, port = settings.listen
        where = f"{host or '*'}:{port}"
        return f"cannot listen on {where}: {error}; set a different address under `listen`"
    if isinstance(error, MirrorError):
        return error.message
    return (
        f"{error.filename or folder}: {error.strerror}; the mirror must be able to write to "
        "storage.path"
    )
