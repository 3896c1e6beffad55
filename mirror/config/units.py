"""Durations, sizes and addresses as people write them."""

import re
from typing import Annotated

from pydantic import BeforeValidator

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?(?:ms|s|m|h|d))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(B|KiB|MiB|GiB|TiB)", re.ASCII)
MAX_PORT = 65_535
_LISTEN = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s]*)):(\d{1,5})", re.ASCII)


def parse_duration_seconds(value: object) -> float:
    """`5m`, `1h30m`, `1.5s`, `250ms`, `0s`. Raises ValueError."""
    if isinstance(value, str) and _DURATION.fullmatch(value.strip()):
        parts = _PART.findall(value)
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    raise ValueError("a duration is a number with a unit, like 30s, 5m, 12h or 30d")


def parse_listen(value: object) -> tuple[str, int]:
    """`127.0.0.1:5000`; `:5000` and `[::]:5000` are all addresses, for which the host is "". Raises
    ValueError.
    """
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("an address to listen on is host:port, like 127.0.0.1:5000 or [::]:5000")
    if int(match[3]) > MAX_PORT:
        raise ValueError(f"a port is a number up to {MAX_PORT}")
    host = match[1] or match[2] or ""
    return "" if host == "::" else host, int(match[3])


def parse_size_bytes(value: object) -> int:
    """`64KiB`, `20MiB`, `1.5GiB`, `0`. Raises ValueError."""
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size is a number with a unit, like 512KiB, 20MiB or 1.5GiB, or 0")
    return int(float(match[1]) * _BYTES[match[2]])


Bytes = Annotated[int, BeforeValidator(parse_size_bytes)]
Seconds = Annotated[float, BeforeValidator(parse_duration_seconds)]
Listen = Annotated[tuple[str, int], BeforeValidator(parse_listen)]
