"""Real programs: found, started, awaited and stopped again.

A program that the machine lacks skips the test which needs it; in CI it fails the test instead.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

BUILT = Path(os.environ.get("TEST_TOOLS") or Path(__file__).parents[2] / ".tools" / "bin")
"""Where install.sh puts the programs that it builds with Go."""

_SEARCHED = (*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin")


def lacking(what: str) -> NoReturn:
    """Ends a test that this machine cannot run."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"lacking here, though CI must have it: {what}", pytrace=False)
    pytest.skip(f"lacking here: {what}")


def find(name: str, *folders: Path) -> Iterator[Path]:
    """Every program of that name: in `folders`, then on the PATH."""
    for folder in (*folders, *map(Path, _SEARCHED)):
        if os.access(path := folder / name, os.X_OK) and path.is_file():
            yield path


def need(name: str, *folders: Path) -> str:
    """The path of a program, or the end of the test."""
    for path in find(name, *folders):
        return str(path)
    lacking(f"the program {name}")


def need_containers() -> None:
    """Ends a test where no container can be started: it takes root and namespaces."""
    if os.geteuid() != 0:
        lacking("root, who alone may start containers")
    probe = [need("unshare"), "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        lacking("Linux namespaces")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def answers(port: int, path: str) -> bool:
    """Whether 200 is what GET gets there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def listens(path: Path) -> bool:
    """Whether somebody accepts connections on that socket file."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would turn a program away from 127.0.0.1."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MIRROR_") and not name.lower().endswith("_proxy")
    }
    return kept | dict(extra or {})


def run(*argv: str, env: Mapping[str, str] | None = None, patience: float = 120) -> str:
    """What a program wrote to its standard output. Its failure is the test's, with all it said."""
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=patience, check=False, env=environment(env)
    )
    said = f"{' '.join(argv)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, said
    return done.stdout


class Program:
    """A process in a session of its own, its output in a file."""

    def __init__(
        self, argv: list[str], log: Path, env: Mapping[str, str] | None, cwd: Path | None
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(env),
                cwd=cwd,
                start_new_session=True,
            )

    def wait_for(self, ready: Callable[[], bool], patience: float) -> None:
        """Returns when `ready` says so; fails with the program's last words when it never does."""
        deadline = time.monotonic() + patience
        while not ready():
            code = self._process.poll()
            assert code is None, f"ended with {code} before it was ready:\n{self.last_words}"
            assert time.monotonic() < deadline, f"never became ready:\n{self.last_words}"
            time.sleep(0.05)

    @property
    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self, patience: float = 15) -> int:
        """Its exit code after SIGTERM, or after SIGKILL when it has not ended within `patience`."""
        self._process.terminate()
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()


@contextmanager
def running(
    argv: list[str],
    *,
    log: Path,
    ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience: float = 30,
) -> Iterator[Program]:
    """The program, from when it is ready until the block ends."""
    program = Program(argv, log, env, cwd)
    try:
        program.wait_for(ready, patience)
        yield program
    finally:
        program.stop()
