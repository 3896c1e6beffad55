"""What one endpoint told the accounts that asked it, and what that comes to for the client."""

from yarl import URL

from mirror.errors import UpstreamDenied, UpstreamError, UpstreamRateLimited
from mirror.upstream.definition import ANONYMOUS, Upstream
from mirror.upstream.ratelimit import RateLimits
from mirror.upstream.refusals import LoginRefused
from mirror.upstream.tokens import Logins, PasswordUnreadable

# They say nothing of the content, and another account may be asked.
SETBACKS = (UpstreamRateLimited, LoginRefused, PasswordUnreadable)


class Hearing:
    """Of one question. `is_complete`: no account was left out."""

    def __init__(
        self,
        upstream: Upstream,
        ratelimits: RateLimits,
        logins: Logins,
        endpoint: URL,
        *,
        for_blob: bool,
    ) -> None:
        self._upstream = upstream
        self._ratelimits = ratelimits
        self._logins = logins
        self._endpoint = endpoint
        self._for_blob = for_blob
        self._setback: UpstreamError | None = None
        self.denial: UpstreamError | None = None
        self.is_complete = True

    @property
    def is_settled(self) -> bool:
        """Nobody in particular would be told no more."""
        return self.is_complete and self.denial is not None

    def note(self, error: UpstreamError) -> None:
        """One of SETBACKS, or what the content was denied with."""
        if not isinstance(error, SETBACKS):
            self.denial = self.denial or error
            return
        self.is_complete = False
        if self._setback is None or isinstance(error, UpstreamRateLimited):
            self._setback = error

    def verdict(self) -> UpstreamError:
        """Where nobody was given anything."""
        if self.denial is None:
            return self._all_rest()
        return self.denial if self.is_complete else self._withheld(self.denial)

    def _withheld(self, denial: UpstreamError) -> UpstreamError:
        """What "no" means where an account that was not asked might have been told "yes"."""
        said = f"{self._said(denial)}, and the accounts cannot be asked"
        names = [each.username for each in self._upstream.accounts]
        limited = self._ratelimits.refusal(self._endpoint, names, said, for_blob=self._for_blob)
        if limited is not None:
            return limited
        if isinstance(self._setback, UpstreamRateLimited | PasswordUnreadable):
            return self._setback
        if (refused := self._logins.refusal() or self._setback) is not None:
            told = f"{self._said(refused)}. Without it, the upstream {self._said(denial)}"
            return UpstreamDenied(self._upstream.name, told, answered=denial.answered)
        return UpstreamRateLimited(self._upstream.name, said, "1")

    def _all_rest(self) -> UpstreamError:
        """Nobody may ask, or each was answered 429."""
        setback = self._setback
        is_told = isinstance(setback, UpstreamRateLimited)
        said = self._said(setback) if setback and is_told else "answered 429 for earlier requests"
        names = [*(each.username for each in self._upstream.accounts), ANONYMOUS]
        resting = self._ratelimits.refusal(self._endpoint, names, said, for_blob=self._for_blob)
        return resting or setback or UpstreamRateLimited(self._upstream.name, said, "1")

    def _said(self, error: UpstreamError) -> str:
        return error.message.removeprefix(f"{self._upstream.name}: ")
