"""A limit on pulls, as Docker Hub has it."""

from dataclasses import dataclass, field

from tests.fakes.answers import error
from tests.fakes.auth import BearerAuth
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


@dataclass
class RateLimitByAccount(RateLimit):
    """The same limit for each account of a token server, and one for those who have none."""

    auth: BearerAuth = field(default_factory=BearerAuth)
    counts: dict[str, RateLimit] = field(default_factory=dict)

    def of(self, account: str) -> RateLimit:
        fresh = RateLimit(self.limit, self.window_seconds, self.remaining, self.retry_after)
        return self.counts.setdefault(account, fresh)

    def left(self, account: str) -> int:
        count = self.counts.get(account)
        return self.limit if count is None or count.remaining is None else count.remaining

    def apply(self, seen: Seen, answer: Answer) -> Answer:
        token = (seen.authorization or "").removeprefix("Bearer ")
        return self.of(self.auth.issued[token].account or "anonymous").apply(seen, answer)
