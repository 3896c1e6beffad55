"""The accounts of one upstream: what each has left, who is asked next, and who rests.

An allowance belongs to an account at an endpoint: two endpoints are two registries' counters, or
one that tells the same to both. The bare address has an allowance of its own, `anonymous`. Blobs
have another one than the rest: Docker Hub counts manifests, and goes on giving the blobs of what
was pulled before; a 429 for a blob is about the pace, and is forgotten with the process.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from math import ceil, inf

from yarl import URL

from mirror.allowance import Allowance, RememberedAllowance
from mirror.errors import UpstreamRateLimited
from mirror.metrics import Metrics
from mirror.upstream.definition import ANONYMOUS, Upstream

# While less than this share of the limit is left, tags live so many times longer.
TTL_STEPS = ((0.10, 12), (0.25, 4), (0.50, 2))
# Below this share, what is left is kept for pulls that somebody waits for.
FLOOR_SHARE = 0.20

# Endpoint, account, and whether it is about blobs.
_Key = tuple[str, str, bool]


def _nobody() -> None:
    """Nobody wants to know."""


class RateLimits:
    """`on_change` is called when there is something to remember."""

    def __init__(
        self,
        upstream: Upstream,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._metrics = metrics
        self._clock = clock
        self._allowances: dict[_Key, Allowance] = {}
        self._changed: set[_Key] = set()
        self.on_change: Callable[[], None] = _nobody

    def note(
        self,
        endpoint: URL,
        account: str,
        status: int,
        headers: Mapping[str, str],
        *,
        for_blob: bool = False,
    ) -> None:
        """What an answer told, if anything."""
        if status != 429 and "ratelimit-remaining" not in headers:
            return
        if for_blob and "Retry-After" not in headers:
            return  # it may be about this one blob
        key = str(endpoint), account, for_blob
        allowance = self._allowances.setdefault(key, Allowance())
        allowance.hear(status, headers, self._clock(), time.time())
        if not for_blob:
            self._changed.add(key)
            self._show(endpoint, account)
            self.on_change()

    def left(self, endpoint: URL, account: str) -> float:
        """Pulls; infinite where no limit is known, 0 while the account rests."""
        return self._of(endpoint, account).left(self._clock())

    def rests(self, endpoint: URL, account: str, *, for_blob: bool = False) -> bool:
        return self._of(endpoint, account, for_blob).rest_seconds(self._clock()) > 0

    def refusal(
        self, endpoint: URL, accounts: Iterable[str], said: str, *, for_blob: bool = False
    ) -> UpstreamRateLimited | None:
        """What to tell while some of these accounts rest; None where none does."""
        now = self._clock()
        known = {account: self._of(endpoint, account, for_blob) for account in accounts}
        rests = [seconds for each in known.values() if (seconds := each.rest_seconds(now))]
        if not rests:
            return None
        told = "; ".join(f"{account}: {each.told(now)}" for account, each in known.items())
        return UpstreamRateLimited(
            self._upstream.name,
            f"{said}. {told}. Content that is cached is still served; an account with a higher "
            "limit can be set under `credentials`",
            str(ceil(min(rests))),
        )

    @property
    def ttl_factor(self) -> int:
        """How many times longer a tag may be used without asking."""
        share = self._share_left()
        return next((factor for below, factor in TTL_STEPS if share < below), 1)

    def kept_from_background(self) -> UpstreamRateLimited | None:
        """What to tell a pull that nobody waits for, while the few that are left are kept for those
        that somebody does; None while there are enough.
        """
        if self._share_left() >= FLOOR_SHARE:
            return None
        now = self._clock()
        limited = self._limited(now)
        told = "; ".join(f"{key[1]}: {each.told(now)}" for key, each in limited.items())
        back_seconds = min(each.back_seconds(now) for each in limited.values())
        return UpstreamRateLimited(
            self._upstream.name,
            f"the last {FLOOR_SHARE:.0%} of its limit are kept for pulls that are not in the "
            f"background (Priority: u=7). {told}",
            str(ceil(max(back_seconds, 1))),
        )

    def take_changes(self) -> list[RememberedAllowance]:
        """What has changed since they were last taken."""
        now, wall = self._clock(), time.time()
        changed, self._changed = self._changed, set()
        return [
            self._allowances[key].remembered(self._upstream.name, *key[:2], now, wall)
            for key in sorted(changed)
        ]

    def recall(self, remembered: Iterable[RememberedAllowance]) -> None:
        """What an earlier process knew of accounts and endpoints that are still configured."""
        accounts = {*(each.username for each in self._upstream.accounts), ANONYMOUS}
        endpoints = {str(endpoint): endpoint for endpoint in self._upstream.endpoints}
        for each in remembered:
            if each.account not in accounts or each.endpoint not in endpoints:
                continue
            allowance = Allowance.recalled(each, self._clock(), time.time())
            if allowance is not None:
                self._allowances[each.endpoint, each.account, False] = allowance
                self._show(endpoints[each.endpoint], each.account)

    def _share_left(self) -> float:
        """Of the limits of all accounts that do not rest; 1 where no limit is known, 0 where all
        accounts rest.
        """
        now = self._clock()
        limited = self._limited(now)
        if not limited:
            return 1
        usable = [each for each in limited.values() if not each.rest_seconds(now)]
        limit = sum(each.limit or 0 for each in usable)
        return sum(each.left(now) for each in usable) / limit if limit else 0

    def _limited(self, now: float) -> dict[_Key, Allowance]:
        """Those whose limit on pulls is known."""
        return {
            key: each
            for key, each in self._allowances.items()
            if not key[2] and each.limit and each.left(now) != inf
        }

    def _of(self, endpoint: URL, account: str, for_blob: bool = False) -> Allowance:
        return self._allowances.get((str(endpoint), account, for_blob)) or Allowance()

    def _show(self, endpoint: URL, account: str) -> None:
        allowance = self._of(endpoint, account)
        name = self._upstream.name
        if allowance.remaining is not None:
            self._metrics.ratelimit(name, account, allowance.limit, allowance.remaining)
        self._metrics.ratelimit_resets(name, account, lambda: self._seconds_until_back(account))

    def _seconds_until_back(self, account: str) -> float:
        """At the endpoint where that is soonest."""
        now = self._clock()
        return min(
            self._of(endpoint, account).rest_seconds(now) for endpoint in self._upstream.endpoints
        )
