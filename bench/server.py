"""A server that is measured: configured, started, awaited and stopped again.

All log each request to a file, all listen on loopback, all keep their files below one folder.
"""

import http.client
import os
import re
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar

from bench import procfs

START_LIMIT_SECONDS = 30
STOP_LIMIT_SECONDS = 15
ANSWER_LIMIT_SECONDS = 5  # for the question whether it is ready
PROJECT = Path(__file__).resolve().parent.parent
TOOLS = Path(os.environ.get("TEST_TOOLS") or PROJECT / ".tools" / "bin")
"""Where install.sh puts what no package of the system has."""

_SEARCHED = os.pathsep.join((str(TOOLS), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


class ServerError(Exception):
    """A server that cannot be had or does not start, with the end of its log."""


class Server(ABC):
    """`program` is what it is started with, `version_flag` what makes that tell its version."""

    name: str
    program: ClassVar[str]
    version_flag: ClassVar[str] = "--version"
    ready_path: ClassVar[str] = "/v2/"
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.port = free_port()
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def config(self) -> str:
        """The text of its configuration file."""

    @abstractmethod
    def arguments(self) -> list[str]:
        """What its program is started with, in the foreground."""

    def command(self) -> list[str]:
        """Raises ServerError when the program is not there."""
        return [find(self.program), *self.arguments()]

    @classmethod
    def version(cls) -> str:
        return version_of(cls.program, cls.version_flag)

    @property
    def config_path(self) -> Path:
        return self.folder / "config.json"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """All its processes."""
        return procfs.family(self._process.pid) if self._process is not None else []

    def start(self) -> None:
        """Returns when it answers; raises ServerError when it does not."""
        self.config_path.write_text(self.config())
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MIRROR_")}
        command = self.command()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=PROJECT, env={**inherited, **self.environment}
            )
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while not is_answered(self.port, self.ready_path):
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{self.name} did not start: {self._end_of_log()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """May be called always."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])


def find(program: str) -> str:
    """Its path; raises ServerError when this machine lacks it."""
    path = shutil.which(program, path=_SEARCHED)
    if path is None:
        raise ServerError(f"{program} is not installed: see bench/install.sh")
    return path


def version_of(program: str, flag: str) -> str:
    """As the program tells it; "missing" when it is not there."""
    try:
        said = said_by(find(program), flag)
    except ServerError:
        return "missing"
    found = re.search(r"\d+(\.\d+)+", said)
    return found.group() if found else "unknown"


def said_by(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    return done.stdout + done.stderr


def is_answered(port: int, path: str) -> bool:
    """Whether a server on this machine says 200 there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_LIMIT_SECONDS)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
