"""Commands for a cache: over the control socket, as the CLI asks them, and by the CLI itself."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from mirror.cli import app
from mirror.control.client import ask
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.images import Image, Index
from tests.real.mirror import IMPORTABLE
from tests.support.house import House
from tests.support.layers import until_idle

A_DAY = 86_400.0


@dataclass
class Told:
    items: list[dict[str, Any]] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)


async def told(storage: Path, command: str, **arguments: Any) -> Told:
    """By the mirror that serves from there. Raises Refused, NobodyThere."""
    answer = Told()
    async with aclosing(ask(storage / "control.sock", command, arguments)) as lines:
        async for line in lines:
            answer.items += [line["item"]] if "item" in line else []
            answer.progress += [line["progress"]] if "progress" in line else []
            answer.result |= line.get("result", {})
    return answer


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


async def run_here(config: Path, *arguments: str) -> Ran:
    """The same in a thread of this process, which starts at once."""
    run = CliRunner().invoke
    result = await asyncio.to_thread(run, app, arguments, env={"MIRROR_CONFIG": str(config)})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return Ran(result.exit_code, result.stdout, result.stderr)


async def run_mirror(config: Path, *arguments: str) -> Ran:
    """The real program, which reads the settings that a mirror was started with."""
    environment = {**os.environ, **IMPORTABLE, "MIRROR_CONFIG": str(config)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mirror", *arguments, env=environment, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(DEADLINE_SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def pull(
    house: House, image: Image | Index, repository: str = "library/app", tag: str | None = None
) -> None:
    """All of an image, or an index alone; by tag where there is one."""
    name = f"/v2/{repository}"
    assert (await house.get(f"{name}/manifests/{tag or image.digest}")).status == 200
    if isinstance(image, Image):
        for digest in (image.config, *image.layers):
            assert (await house.get(f"{name}/blobs/{digest}")).status == 200
    await until_idle(house)
