"""What an upstream lets one account pull, as it told in the headers of its answers. No I/O.

Docker Hub sends `ratelimit-limit: 100;w=21600`, `ratelimit-remaining` alike, and in
`docker-ratelimit-source` whom it counts: an address, or an account's id. The headers come with
every manifest, also with HEAD, which spends nothing; without them nothing is limited. Any registry
may answer 429.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from math import ceil, inf

# After a 429 that tells no time: Retry-After is optional on Docker Hub. Podman waits as long.
DEFAULT_REST_SECONDS = 60
# Beyond this, an upstream's word (or a wall clock that jumped) is not believed.
MAX_REST_SECONDS = 24 * 3600
_COUNT = re.compile(r"\s*(\d{1,9})\s*(?:;.*)?", re.ASCII)
_WINDOW = re.compile(r"[^;]*(?:;[^;]*)*?;\s*w=(\d{1,7})\s*(?:;.*)?", re.ASCII)
_SECONDS = re.compile(r"\s*(\d{1,6})\s*", re.ASCII)
_SOURCE = re.compile(r"[\w.:/-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RememberedAllowance:
    """An allowance as it outlives the process: times are wall-clock seconds. `account` is a
    username or `anonymous`; what was not told is None.
    """

    upstream: str
    endpoint: str
    account: str
    limit: int | None
    remaining: int | None
    window_seconds: int | None
    source: str
    heard_at: float
    window_ends_at: float
    rests_until: float


@dataclass(slots=True)
class Allowance:
    """In memory: times are seconds on a clock that does not jump. What was not told is None."""

    limit: int | None = None
    remaining: int | None = None
    window_seconds: int | None = None
    source: str = ""
    heard_at: float = -inf
    window_ends_at: float = -inf
    rests_until: float = -inf

    def hear(self, status: int, headers: Mapping[str, str], now: float, wall: float) -> None:
        """`wall` is the time in the world, for dates."""
        if (remaining := _count(headers.get("ratelimit-remaining"))) is not None:
            self._hear_count(remaining, headers, now)
        if status == 429:
            self.rests_until = now + self._rest_seconds(headers.get("Retry-After"), now, wall)

    def rest_seconds(self, now: float) -> float:
        """Until it may be used again; 0: now."""
        return max(0.0, self.rests_until - now)

    def back_seconds(self, now: float) -> float:
        """Until the whole limit can be used again, as far as we know; 0: now."""
        return max(0.0, self.rests_until - now, self.window_ends_at - now)

    def left(self, now: float) -> float:
        """Pulls; infinite where no limit is known, or the known one's window is over."""
        if self.rest_seconds(now):
            return 0
        return inf if self.remaining is None or now >= self.window_ends_at else self.remaining

    def told(self, now: float) -> str:
        """For people: how much is left, and when it is back."""
        count = "an unknown number of pulls left"
        if self.remaining is not None:
            of_limit = "" if self.limit is None else f" of {self.limit}"
            count = f"{self.remaining}{of_limit} pulls left"
        counted_as = f" (counted as {self.source})" if self.source else ""
        rest_seconds = self.rest_seconds(now)
        back = f", back in {_duration(rest_seconds)}" if rest_seconds else ""
        return f"{count}{counted_as}{back}"

    def remembered(
        self, upstream: str, endpoint: str, account: str, now: float, wall: float
    ) -> RememberedAllowance:
        return RememberedAllowance(
            upstream,
            endpoint,
            account,
            self.limit,
            self.remaining,
            self.window_seconds,
            self.source,
            wall + min(0.0, max(self.heard_at - now, -MAX_REST_SECONDS)),
            wall + max(0.0, self.window_ends_at - now),
            wall + self.rest_seconds(now),
        )

    @classmethod
    def recalled(
        cls, remembered: RememberedAllowance, now: float, wall: float
    ) -> "Allowance | None":
        """None: all that it tells is over."""
        most = remembered.window_seconds or MAX_REST_SECONDS
        window_seconds = min(remembered.window_ends_at - wall, most)
        rest_seconds = min(remembered.rests_until - wall, MAX_REST_SECONDS)
        if window_seconds <= 0 and rest_seconds <= 0:
            return None
        counts = remembered.limit, remembered.remaining, remembered.window_seconds
        return cls(
            *(counts if window_seconds > 0 else (None, None, None)),
            remembered.source,
            now - max(0.0, wall - remembered.heard_at),
            now + window_seconds,
            now + rest_seconds,
        )

    def _hear_count(self, remaining: int, headers: Mapping[str, str], now: float) -> None:
        limit = headers.get("ratelimit-limit")
        self.limit = _count(limit)
        window_seconds = _window(limit) or _window(headers.get("ratelimit-remaining"))
        # Nobody tells when a window began: with its first pull, as far as we saw.
        untouched = self.limit is not None and remaining >= self.limit - 1
        if untouched or now >= self.window_ends_at or window_seconds != self.window_seconds:
            self.window_ends_at = now + (window_seconds or MAX_REST_SECONDS)
        self.remaining, self.window_seconds, self.heard_at = remaining, window_seconds, now
        source = headers.get("docker-ratelimit-source", "").strip()
        self.source = source if _SOURCE.fullmatch(source) else ""

    def _rest_seconds(self, retry_after: str | None, now: float, wall: float) -> float:
        """What was told, else until the window ends, else a minute: a 429 while pulls are left is
        about the pace.
        """
        told = _retry_after_seconds(retry_after, wall)
        if told is None and self.remaining == 0 and self.window_seconds is not None:
            told = self.window_ends_at - now
        return min(DEFAULT_REST_SECONDS if told is None else told, MAX_REST_SECONDS)


def _count(header: str | None) -> int | None:
    """`76;w=21600` → 76."""
    match = _COUNT.fullmatch(header or "")
    return int(match[1]) if match else None


def _window(header: str | None) -> int | None:
    """`76;w=21600` → 21600 seconds."""
    match = _WINDOW.fullmatch(header or "")
    return int(match[1]) or None if match else None


def _retry_after_seconds(header: str | None, wall: float) -> float | None:
    """Seconds or a date (RFC 9110 §10.2.3); None for anything else."""
    if match := _SECONDS.fullmatch(header or ""):
        return int(match[1])
    try:
        return max(0.0, parsedate_to_datetime(header or "").timestamp() - wall)
    except (ValueError, OverflowError):
        return None


def _duration(seconds: float) -> str:
    """`42 s`, `7 min`, `5 h 59 min`; rounded up."""
    whole = ceil(seconds)
    if whole <= 120:
        return f"{whole} s"
    minutes = ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
