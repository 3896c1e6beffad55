"""A command for a cache: told to the mirror that serves from it, or carried out here where none
does.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import typer

from mirror.commands.settings import EXIT_FAILED
from mirror.config import Settings
from mirror.control.client import NobodyThere, ask
from mirror.logs import logging_to_stderr
from mirror.names import printable
from mirror.store.folder import FolderInUse
from mirror.store.paths import Paths
from mirror.upkeep.lines import Line, Lines, Refused

# A mirror that starts holds the folder before it can be reached.
WAIT_SECONDS = 3.0
RETRY_SECONDS = 0.1


def carry_out(
    settings: Settings, command: str, show: Callable[[Line], None], **arguments: Any
) -> None:
    """Shows each line. Raises typer.Exit, once it was told why it failed."""
    with logging_to_stderr("text", "error"):
        try:
            asyncio.run(_show_all(_lines(settings, command, arguments), show))
        except Refused as refused:
            message = refused.message
        else:
            return
    typer.echo(printable(message), err=True)
    raise typer.Exit(EXIT_FAILED)


async def _show_all(lines: Lines, show: Callable[[Line], None]) -> None:
    async with aclosing(lines):
        async for line in lines:
            show(line)


async def _lines(settings: Settings, command: str, arguments: Mapping[str, Any]) -> Lines:
    """Raises Refused."""
    paths = Paths(settings.storage.path)
    ends_at = time.monotonic() + WAIT_SECONDS
    while True:
        with suppress(NobodyThere):
            async with aclosing(ask(paths.control, command, arguments)) as lines:
                async for line in lines:
                    yield line
            return
        await asyncio.to_thread(_check_is_cache, paths)
        with suppress(FolderInUse):
            from mirror.commands.alone import run_alone  # takes a second to load

            async with aclosing(run_alone(settings, command, arguments)) as lines:
                async for line in lines:
                    yield line
            return
        if time.monotonic() > ends_at:
            raise Refused(
                f"{paths.root} is in use, and nobody answers there: another command may be at "
                "work, or a mirror without a control socket, as its log says then"
            )
        await asyncio.sleep(RETRY_SECONDS)


def _check_is_cache(paths: Paths) -> None:
    """Nothing is made here. Raises Refused."""
    if not paths.index.exists() and not paths.blobs.is_dir():
        raise Refused(f"there is no cache in {paths.root}; is storage.path right?")
