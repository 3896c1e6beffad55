"""The Range header (RFC 9110 §14): as sent, and as resolved against a size. No I/O."""

import re
from dataclasses import dataclass

from mirror.errors import RangeUnsatisfiable

# containers/image asks for up to 1,024 ranges in one header when it pulls zstd:chunked layers.
MAX_RANGES = 1024

_SPEC = re.compile(r"(\d{0,20})-(\d{0,20})", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Half-open [start, end) of a representation; `open_ended` was sent as `N-`, or with an end
    that lies behind the last byte.
    """

    start: int
    end: int
    open_ended: bool = False

    @property
    def length(self) -> int:
        return self.end - self.start

    def content_range(self, size_bytes: int) -> str:
        return f"bytes {self.start}-{self.end - 1}/{size_bytes}"


def resolve(header: str | None, size_bytes: int) -> list[ByteRange]:
    """The ranges to answer with, in the order asked; an empty list means the whole, as 200.

    A header that RFC 9110 lets a server ignore (another unit, bad syntax, too many ranges, ranges
    that together are larger than the whole) is ignored, except that `bytes=5-3` is answered 416
    as the distribution conformance suite asks. Raises RangeUnsatisfiable when none lies inside.
    """
    specs = _specs(header)
    if not specs or not size_bytes:  # as Go's net/http: an empty blob is given whole
        return []
    ranges = [found for spec in specs if (found := _resolve_one(spec, size_bytes)) is not None]
    if not ranges:
        raise RangeUnsatisfiable(size_bytes)
    if len(ranges) > 1 and sum(each.length for each in ranges) > size_bytes:
        return []
    return ranges


def _specs(header: str | None) -> list[tuple[str, str]]:
    unit, _, text = (header or "").partition("=")
    if unit.strip().lower() != "bytes":
        return []
    matches = [_SPEC.fullmatch(part.strip()) for part in text.split(",", MAX_RANGES)]
    if len(matches) > MAX_RANGES:
        return []
    pairs = [(match[1], match[2]) for match in matches if match is not None]
    well_formed = len(pairs) == len(matches) and all(first or last for first, last in pairs)
    return pairs if well_formed else []


def _resolve_one(spec: tuple[str, str], size_bytes: int) -> ByteRange | None:
    first, last = spec
    if not first:
        suffix_bytes = min(int(last), size_bytes)
        return ByteRange(size_bytes - suffix_bytes, size_bytes) if suffix_bytes else None
    start = int(first)
    asked_end = int(last) + 1 if last else size_bytes + 1
    end = min(asked_end, size_bytes)
    return ByteRange(start, end, open_ended=asked_end > size_bytes) if start < end else None


def parse_content_range(header: str | None) -> tuple[int, int, int | None] | None:
    """`bytes 0-99/1234` as (start, end, complete size or None for `*`), half-open; else None."""
    match = _CONTENT_RANGE.fullmatch((header or "").strip())
    if match is None:
        return None
    start, end = int(match[1]), int(match[2]) + 1
    size_bytes = None if match[3] == "*" else int(match[3])
    is_possible = start < end and (size_bytes is None or end <= size_bytes)
    return (start, end, size_bytes) if is_possible else None
