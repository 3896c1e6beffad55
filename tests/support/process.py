"""The mirror as a process of its own, in front of fakes, for what only a process shows: signals,
exit codes, and what stands on stderr.
"""

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.client import RawResponse, raw_get
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.registry import FakeRegistry
from tests.real.mirror import IMPORTABLE, SERVE
from tests.support.layers import eventually


@dataclass
class Process:
    """A mirror that serves; `told` is what it said as it began to."""

    url: str
    storage: Path
    process: asyncio.subprocess.Process
    stderr: asyncio.StreamReader
    told: Mapping[str, Any]

    async def get(self, path: str) -> RawResponse:
        return await raw_get(self.url + path)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def until_draining(self) -> None:
        """Until it says that it is about to end."""

        async def is_draining() -> bool:
            return (await self.get("/readyz")).status == 503

        await eventually(is_draining)

    async def exit_code(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Once it has ended by itself; whether anybody has read its stderr plays no part."""
        async with asyncio.timeout(seconds):
            while self.process.returncode is None:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0.01)
        return self.process.returncode

    async def last_lines(self) -> list[dict[str, Any]]:
        """What it logged since it served; every line must be JSON."""
        lines = (await self.stderr.read()).decode().splitlines()
        return [json.loads(line) for line in lines]


def write_settings(
    folder: Path, upstreams: Mapping[str, FakeRegistry | str | dict[str, Any]], **settings: Any
) -> Path:
    """The file for a mirror on a port that the system chooses, with its cache in `folder`/data; an
    upstream is a fake, an endpoint, or its settings.
    """
    document = {
        "listen": "127.0.0.1:0",
        "storage": {"path": str(folder / "data")},
        "upstreams": {name: _described(each) for name, each in upstreams.items()},
        **settings,
    }
    file = folder / "mirror.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def _described(upstream: FakeRegistry | str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(upstream, dict):
        return upstream
    return {"endpoints": [upstream if isinstance(upstream, str) else upstream.url]}


@asynccontextmanager
async def serving(
    folder: Path,
    upstreams: Mapping[str, FakeRegistry | str | dict[str, Any]],
    program: Sequence[str] = SERVE,
    **settings: Any,
) -> AsyncIterator[Process]:
    """`mirror serve`, with settings as `write_settings` takes them."""
    file = write_settings(folder, upstreams, **settings)
    environment = {**os.environ, **IMPORTABLE}
    process = await asyncio.create_subprocess_exec(
        *program, "--config", str(file), env=environment, stderr=PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            line = json.loads(await process.stderr.readline())
        assert line["event"] == "serving", line
        url = f"http://127.0.0.1:{line['port']}"
        yield Process(url, folder / "data", process, process.stderr, line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
