"""Mirrors as processes that start in a tenth of a second, for tests that kill many of them.

One process imports the program and then forks for each mirror. What runs in a child is `mirror
serve`, as its users run it; only the import was done before.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.client import RawResponse, raw_get
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.real.mirror import IMPORTABLE
from tests.support.layers import eventually
from tests.support.procfs import is_alive


class Nursery:
    """Asks the forking process (`tend`, below): one line there, one number back."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def start(self, file: Path, log: Path) -> int:
        """The process id of a new mirror, which appends its log to `log`."""
        return await self._ask(f"start\t{file}\t{log}")

    async def exit_code(self, pid: int) -> int:
        """Once it has ended; minus the signal that ended it."""
        return await self._ask(f"wait\t{pid}")

    async def _ask(self, line: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        async with asyncio.timeout(DEADLINE_SECONDS):
            return int(await self._process.stdout.readline())


@asynccontextmanager
async def nursery(prelude: str = "") -> AsyncIterator[Nursery]:
    """`prelude` is Python that runs before the program is imported, to let the system misbehave."""
    program = f"{prelude}\nfrom tests.support.nursery import tend\ntend()"
    environment = {**os.environ, **IMPORTABLE}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    )
    try:
        yield Nursery(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Succession:
    """One mirror after another, in one folder."""

    def __init__(self, nursery: Nursery, file: Path) -> None:
        self.storage = file.parent / "data"
        self.log = file.parent / "mirror.log"
        self.pid = 0
        self.url = ""
        self._nursery = nursery
        self._file = file

    async def start(self) -> None:
        """Until it serves."""
        read_from = self.log.stat().st_size if self.log.exists() else 0
        self.pid = await self._nursery.start(self._file, self.log)

        async def says_a_line() -> bool:
            return is_alive(self.pid) and b"\n" in self._said(read_from)

        await eventually(says_a_line)
        line = json.loads(self._said(read_from).splitlines()[0])
        assert line["event"] == "serving", line
        self.url = f"http://127.0.0.1:{line['port']}"

    async def get(self, path: str) -> RawResponse:
        return await raw_get(self.url + path)

    async def end(self, number: signal.Signals) -> int:
        """Its exit code, once it has ended of this signal."""
        assert self.pid > 0, "0 would be all of this process's group"
        os.kill(self.pid, number)
        pid, self.pid = self.pid, 0
        return await self._nursery.exit_code(pid)

    async def until_idle(self) -> None:
        """Until nothing is on its way in and nobody follows it."""
        idle = {b"mirror_downloads_active 0.0", b"mirror_download_followers 0.0"}

        async def is_idle() -> bool:
            return idle <= set((await self.get("/metrics")).body.splitlines())

        await eventually(is_idle)

    def stored(self) -> list[Path]:
        return list((self.storage / "blobs").glob("*/*/*"))

    def staged(self) -> list[Path]:
        """Also while it works there, and folders come and go."""
        walk = os.walk(self.storage / "staging")
        return [Path(folder, name) for folder, _, names in walk for name in names]

    def _said(self, read_from: int) -> bytes:
        if not self.log.exists():
            return b""
        with self.log.open("rb") as log:
            log.seek(read_from)
            return log.read()


@asynccontextmanager
async def succession(file: Path, prelude: str = "") -> AsyncIterator[Succession]:
    """The first of them serves; the last one is killed at the end."""
    async with nursery(prelude) as cradle:
        mirror = Succession(cradle, file)
        try:
            await mirror.start()
            yield mirror
        finally:
            if mirror.pid:
                await mirror.end(signal.SIGKILL)


def tend() -> None:
    """The forking process: starts mirrors and waits for them, as its standard input says."""
    import mirror.cli
    import mirror.commands.serving

    for line in sys.stdin:
        command, *arguments = line.rstrip("\n").split("\t")
        if command == "start":
            number = os.fork() or _serve(mirror.cli.app, *arguments)
        else:
            number = os.waitstatus_to_exitcode(os.waitpid(int(arguments[0]), 0)[1])
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


def _serve(main: Any, file: str, log: str) -> int:
    """In the child. Never returns."""
    for path, flags, descriptor in (
        (os.devnull, os.O_RDWR, 0),
        (os.devnull, os.O_RDWR, 1),
        (log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 2),
    ):
        os.dup2(os.open(path, flags, 0o644), descriptor)
    sys.argv = ["mirror", "serve", "--config", file]
    code = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.stderr.flush()
        os._exit(code)
