"""How often an upstream is asked again for the rest of a blob, and after which pauses."""

import asyncio
import random

# Tries in a row that brought not one byte, after the upstream had answered once: with the pauses
# between them this outlasts the restart of a registry.
MAX_IDLE_TRIES = 7
FIRST_PAUSE_SECONDS = 0.1


class Tries:
    """`idle` of them, one after the other, brought nothing."""

    def __init__(self) -> None:
        self.idle = 0

    def note(self, *, progress: bool) -> bool:
        """After a try that broke off; whether another one is worth it."""
        self.idle = 0 if progress else self.idle + 1
        return self.idle < MAX_IDLE_TRIES

    async def pause(self) -> None:
        """Twice as long for each idle try; jittered, so that many do not come again together."""
        seconds = FIRST_PAUSE_SECONDS * 2**self.idle
        await asyncio.sleep(seconds * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
