"""A command for a cache: told to the mirror that serves from it, or carried out here where none
does.
"""

import asyncio
import os
import pwd
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
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
    with logging_to_stderr("text", "warning"):
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
        await asyncio.to_thread(_check_is_ours, paths)
        with suppress(FolderInUse):
            from mirror.commands.alone import run_alone  # takes a second to load

            async with aclosing(run_alone(settings, command, arguments)) as lines:
                async for line in lines:
                    yield line
            return
        if time.monotonic() > ends_at:
            raise Refused(
                f"{paths.root} is in use, and nobody answers there: another command may be at "
                "work, a mirror may be starting, or have no control socket, as its log says then"
            )
        await asyncio.sleep(RETRY_SECONDS)


def _check_is_cache(paths: Paths) -> None:
    """Nothing is made here. Raises Refused."""
    if not paths.index.exists() and not paths.blobs.is_dir():
        raise Refused(f"there is no cache in {paths.root}; is storage.path right?")


def _check_is_ours(paths: Paths) -> None:
    """Root may write there always, but what it writes, the mirror's own user may not. Raises
    Refused.
    """
    owner = _owner_of(paths.lock) if os.geteuid() == 0 else 0
    if owner:
        raise Refused(
            f"{paths.root} is the cache of the user {_name_of(owner)}; while no mirror serves, "
            "run the command as that user, who could not use what root writes there"
        )


def _owner_of(path: Path) -> int:
    """0 where there is no such file."""
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return 0


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
