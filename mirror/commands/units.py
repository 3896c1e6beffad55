"""Options with a unit, written as in the configuration."""

from collections.abc import Callable
from typing import TypeVar

import typer

from mirror.config.units import parse_duration_seconds, parse_size_bytes

T = TypeVar("T")


def seconds_of(option: str, text: str) -> float:
    """Of `1d`. Raises typer.BadParameter."""
    return _read(option, text, parse_duration_seconds)


def rate_of(option: str, text: str | None) -> int | None:
    """Bytes per second, of `100MiB`. Raises typer.BadParameter."""
    if text is None:
        return None
    rate = _read(option, text, parse_size_bytes)
    if not rate:
        raise typer.BadParameter("at a rate of 0 it would never end", param_hint=option)
    return rate


def _read(option: str, text: str, read: Callable[[object], T]) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
