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
from mirror.upstream.definition import Upstream

ANONYMOUS = "anonymous"
# While less than this share of the limit is left, tags live so many times longer.
TTL_STEPS = ((0.10, 12), (0.25, 4), (0.50, 2))

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
        """How many times longer a tag may be used without asking: by what is left of the limits of
        all accounts that do not rest. 1 where no limit is known.
        """
        now = self._clock()
        of_pulls = (each for key, each in self._allowances.items() if not key[2])
        known = [each for each in of_pulls if each.limit and each.left(now) != inf]
        usable = [each for each in known if not each.rest_seconds(now)]
        if not known:
            return 1
        limit = sum(each.limit or 0 for each in usable)
        share = sum(each.left(now) for each in usable) / limit if limit else 0
        return next((factor for below, factor in TTL_STEPS if share < below), 1)

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
