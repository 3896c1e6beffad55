"""How large and how long: the two sizes a run comes in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    rounds: int
    window_seconds: float  # how long each warm measure lasts
    large_bytes: int  # the large warm blob and the cold one
    herd_bytes: int  # the blob that a hundred clients want at once
    small_bytes: int = 10_000
    middle_bytes: int = 1 << 20
    connections: int = 32  # of the warm measures of small things
    herd_clients: int = 100
    busy_downloads: int = 8  # of the large blob, while small answers are timed
    layers: int = 20  # of an image that is pulled as a whole
    layer_bytes: int = 5_000_000
    copy_bodies: bool = False  # the reader takes bodies into its own memory (see reader.py)


FULL = Scale(rounds=3, window_seconds=2.0, large_bytes=200_000_000, herd_bytes=100_000_000)
QUICK = Scale(rounds=1, window_seconds=1.0, large_bytes=50_000_000, herd_bytes=20_000_000)


def size_text(size_bytes: int) -> str:
    """The size as the rows' titles name it: 10 KB, 1 MiB, 200 MB."""
    if size_bytes % (1 << 20) == 0:
        return f"{size_bytes >> 20} MiB"
    if size_bytes >= 1_000_000:
        return f"{size_bytes / 1_000_000:g} MB"
    return f"{size_bytes / 1000:g} KB"
