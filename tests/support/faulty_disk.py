"""A disk that fails at the nth operation of the store: once, or from then on."""

import errno
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

import pytest

Fault = Literal["EIO", "ENOSPC", "short write"]

_OPERATIONS = ("open", "mkdir", "pwrite", "write", "fdatasync", "fsync", "ftruncate", "replace")
_WRITES = ("pwrite", "write")
_FRAMES_LOOKED_AT = 5


class FaultyDisk:
    """Counts what mirror.store does to the disk, and fails what was ordered."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.operations = 0
        self._fault: Fault | None = None
        self._nth = 0
        self._lasting = False
        self._lock = threading.Lock()
        for name in _OPERATIONS:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))
        patch.setattr(io, "open", self._watched("open", io.open))

    def fail(self, fault: Fault, nth: int, *, lasting: bool) -> None:
        """The nth operation from now, counted from 0."""
        self.operations, self._fault, self._nth, self._lasting = 0, fault, nth, lasting

    def heal(self) -> None:
        self._fault = None

    @property
    def failed(self) -> bool:
        """Whether so many operations occurred at all."""
        return self.operations > self._nth

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not _is_called_by_the_store() or not self._is_hit():
                return real(*arguments, **options)
            if self._fault != "short write":
                raise OSError(getattr(errno, self._fault or ""), f"made up for {name}")
            if name in _WRITES and len(arguments[1]) > 1:
                descriptor, data, *rest = arguments
                return real(descriptor, data[: len(data) // 2], *rest)
            return real(*arguments, **options)

        return call

    def _is_hit(self) -> bool:
        with self._lock:
            if self._fault is None:
                return False
            number, self.operations = self.operations, self.operations + 1
            return number == self._nth or (self._lasting and number > self._nth)


def _is_called_by_the_store() -> bool:
    """Directly, or through pathlib."""
    frame = sys._getframe(2)
    for _ in range(_FRAMES_LOOKED_AT):
        if frame.f_globals.get("__name__", "").startswith("mirror.store"):
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False
