"""A command that is carried out here, since nobody serves from the cache."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from mirror.app import keeping
from mirror.commands.hindrances import HINDRANCES, advice
from mirror.config import Settings
from mirror.store.folder import FolderInUse
from mirror.store.paths import Paths
from mirror.store.served import is_marked_served
from mirror.upkeep.lines import Lines, Refused


async def run_alone(settings: Settings, command: str, arguments: Mapping[str, Any]) -> Lines:
    """Raises FolderInUse, Refused."""
    paths = Paths(settings.storage.path)
    if await asyncio.to_thread(is_marked_served, paths):
        raise FolderInUse(str(paths.root))
    try:
        async with (
            keeping(settings) as keeper,
            aclosing(keeper.run(command, arguments)) as lines,
        ):
            async for line in lines:
                yield line
    except FolderInUse:
        raise
    except PermissionError as error:
        raise Refused(
            f"{error.filename}: {error.strerror}; run the command as the user that runs the mirror"
        ) from None
    except HINDRANCES as error:
        raise Refused(advice(error, settings)) from None
