"""Starts the owner and the fronts, starts again what ends by itself, and ends them all in order.

The processes are forks of this one, which does nothing else: it has no threads, opens no store and
listens without ever accepting. So what waits at a socket outlives the process that serves it.
"""

import os
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socket import AF_UNIX, socket

import structlog

from mirror import __version__
from mirror.config import Settings
from mirror.store.paths import Paths
from mirror.store.served import mark_served
from mirror.web.listeners import BACKLOG, listening

# A process that ends sooner than this is started again after a pause, twice as long each time.
SOON_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 30.0
# What a process may take for its end beyond `shutdown_grace`.
LAST_SECONDS = 10.0
# One SIGCHLD may stand for several processes, and come before anybody waits for it.
LOOK_SECONDS = 0.5
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
# Terminals and service managers signal all processes at once; what follows is decided in one, so
# that the fronts end first, and nobody ends while the others serve.
STOP_CHILD = signal.SIGUSR1
_SIGNALS = STOP_SIGNALS | {signal.SIGCHLD}
_READY = b"1"

_log = structlog.get_logger()

Serving = AbstractAsyncContextManager[object]


class NowhereToMeet(Exception):
    """No folder below TMPDIR can be made, or no socket in it."""


@dataclass(frozen=True)
class Place:
    """What a process gets from its supervisor: a descriptor that comes to an end with it, and one
    to tell it by that it is ready, where the supervisor waits for that.
    """

    lifeline: int
    told: int | None

    def tell_ready(self) -> None:
        if self.told is not None:
            os.write(self.told, _READY)
            os.close(self.told)


# Serves until it is told to stop, or its supervisor is gone; the value is the exit code.
Serve = Callable[[Callable[[], Serving], Place], int]


@dataclass
class _Child:
    """One place for a process, and the process in it."""

    name: str
    serving: Callable[[], Serving]
    pid: int = 0
    started_at: float = 0.0
    pause_seconds: float = FIRST_PAUSE_SECONDS
    due_at: float = field(default=0.0)

    @property
    def is_running(self) -> bool:
        return self.pid != 0


class Supervisor:
    """`owner` gets a listening Unix socket; `front` gets listening sockets and that one's path."""

    def __init__(
        self,
        settings: Settings,
        serve: Serve,
        owner: Callable[[socket], Serving],
        front: Callable[[Sequence[socket], str], Serving],
    ) -> None:
        self._settings = settings
        self._serve = serve
        self._owner = owner
        self._front = front
        self._children: list[_Child] = []
        self._lifeline = (-1, -1)
        self._folder: Path | None = None
        self._pid = os.getpid()

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the value is the exit code.

        Raises CannotListen, NowhereToMeet, OSError.
        """
        host, port = self._settings.listen
        listeners = [listening(host, port, shared=True)]
        port = listeners[0][0].getsockname()[1]
        listeners += [listening(host, port, shared=True) for _ in range(self._settings.workers - 1)]
        folder = self._folder = _private_folder()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._lifeline = os.pipe()
        try:
            return self._run(listeners, folder / "owner", port)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, listeners: list[list[socket]], path: Path, port: int) -> int:
        for_fronts = _listening_at(path)
        owner = _Child("owner", lambda: self._owner(for_fronts))
        self._children = [owner]
        failed = self._start_first(owner)
        if failed is not None:
            return failed
        mark_served(Paths(self._settings.storage.path))
        for number, sockets in enumerate(listeners, 1):
            front = _Child(f"front {number}", partial(self._front, sockets, str(path)))
            self._children.append(front)
            self._start(front)
        _log.info(
            "serving",
            host=self._settings.listen[0] or "*",
            port=port,
            version=__version__,
            owner_pid=owner.pid,
            front_pids=[front.pid for front in self._children[1:]],
        )
        self._watch()
        _log.info("stopping", grace_seconds=float(self._settings.shutdown_grace))
        for sockets in listeners:
            for each in sockets:
                each.close()
        self._stop(self._children[1:])
        self._stop([owner])
        _log.info("stopped")
        return 0

    def _start_first(self, owner: _Child) -> int | None:
        """Until the owner is ready; else the exit code, where it cannot be, or shall not."""
        ready, told = os.pipe()
        self._start(owner, told)
        os.close(told)
        while True:
            if select.select([ready], [], [], 0.05)[0]:
                if os.read(ready, 1) == _READY:
                    os.close(ready)
                    return None
                return self._exit_code_of(owner)
            if signal.sigtimedwait(STOP_SIGNALS, 0) is not None:
                self._stop([owner])
                return 0

    def _start(self, child: _Child, told: int | None = None) -> None:
        child.started_at = time.monotonic()
        pid = os.fork()
        if pid:
            child.pid = pid
            return
        code = 1
        try:
            os.close(self._lifeline[1])
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            code = self._serve(child.serving, Place(self._lifeline[0], told))
            if child is self._children[0]:
                self._tidy_up_for_the_dead()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _tidy_up_for_the_dead(self) -> None:
        """The owner, which is the last to end, does what its supervisor no longer can."""
        if self._folder is not None and os.getppid() != self._pid:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self) -> None:
        """Starts again what ends, until a signal says stop."""
        while True:
            due = [each.due_at for each in self._children if not each.is_running]
            wait_seconds = min([LOOK_SECONDS, *(each - time.monotonic() for each in due)])
            got = signal.sigtimedwait(_SIGNALS, max(0.0, wait_seconds))
            if got is not None and got.si_signo in STOP_SIGNALS:
                return
            self._note_ended()
            for child in self._children:
                if not child.is_running and child.due_at <= time.monotonic():
                    self._start(child)
                    _log.info("process started again", process=child.name, pid=child.pid)

    def _note_ended(self) -> None:
        for child in self._children:
            if not child.is_running:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            lived_seconds = time.monotonic() - child.started_at
            if lived_seconds >= SOON_SECONDS:
                child.pause_seconds = FIRST_PAUSE_SECONDS
            child.pid = 0
            child.due_at = time.monotonic() + child.pause_seconds
            _log.error(
                "process ended",
                process=child.name,
                pid=pid,
                exit_code=os.waitstatus_to_exitcode(status),
                again_in_seconds=child.pause_seconds,
            )
            child.pause_seconds = min(MAX_PAUSE_SECONDS, 2 * child.pause_seconds)

    def _stop(self, children: Sequence[_Child]) -> None:
        """Lets them end within the grace, and ends those that do not: no others, so that the owner
        has its own time however long fronts took. A second signal ends all, whatever they do.
        """
        for child in children:
            _send(child, STOP_CHILD)
        deadline = time.monotonic() + self._settings.shutdown_grace + LAST_SECONDS
        while not all(map(_has_ended, children)):
            got = signal.sigtimedwait(_SIGNALS, LOOK_SECONDS)
            is_asked_again = got is not None and got.si_signo in STOP_SIGNALS
            if is_asked_again or time.monotonic() > deadline:
                for child in self._children if is_asked_again else children:
                    _send(child, signal.SIGKILL)

    def _exit_code_of(self, child: _Child) -> int:
        _, status = os.waitpid(child.pid, 0)
        child.pid = 0
        return os.waitstatus_to_exitcode(status)


def _private_folder() -> Path:
    """Raises NowhereToMeet."""
    try:
        return Path(tempfile.mkdtemp(prefix="mirror-"))
    except OSError as error:
        raise NowhereToMeet(error.strerror or str(error)) from error


def _listening_at(path: Path) -> socket:
    """Raises NowhereToMeet."""
    listener = socket(AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:  # a path that is too long has no errno
        listener.close()
        raise NowhereToMeet(f"{path}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def _has_ended(child: _Child) -> bool:
    if child.is_running and os.waitpid(child.pid, os.WNOHANG)[0]:
        child.pid = 0
    return not child.is_running


def _send(child: _Child, number: signal.Signals) -> None:
    if child.is_running:
        os.kill(child.pid, number)
