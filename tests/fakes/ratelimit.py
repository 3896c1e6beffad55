"""A limit on pulls, as Docker Hub has it."""

from dataclasses import dataclass

from tests.fakes.answers import error
from tests.fakes.delivery import Answer
from tests.fakes.seen import Seen


@dataclass
class RateLimit:
    """So many manifest GETs in a window, told in headers as Docker Hub does."""

    limit: int = 100
    window_seconds: int = 21600
    remaining: int | None = None  # None: all of them
    retry_after: str | None = None
    source: str = "192.0.2.7"

    def apply(self, seen: Seen, answer: Answer) -> Answer:
        """The answer with its headers, or 429 in its place; a GET that is served spends one."""
        left = self.limit if self.remaining is None else self.remaining
        if seen.method == "GET" and answer.status == 200:
            if left <= 0:
                answer = error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
                if self.retry_after is not None:
                    answer.headers["Retry-After"] = self.retry_after
            left = max(0, left - 1)
        self.remaining = left
        answer.headers["ratelimit-limit"] = f"{self.limit};w={self.window_seconds}"
        answer.headers["ratelimit-remaining"] = f"{left};w={self.window_seconds}"
        answer.headers["docker-ratelimit-source"] = self.source
        return answer
