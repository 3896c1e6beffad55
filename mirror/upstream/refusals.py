"""Passwords that were refused, and for how long they are not tried again: token servers count
failed logins, and lock accounts for them.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from mirror.errors import UpstreamDenied

FIRST_PAUSE_SECONDS = 10
MAX_PAUSE_SECONDS = 600

_log = structlog.get_logger()


class LoginRefused(UpstreamDenied):
    """It is the password that was refused, not the content: another account may be asked."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """`is_retried`: its pause has ended, and somebody tries it again."""

    fingerprint: bytes
    pause_seconds: float
    ends_at: float
    is_retried: bool = False


class Refusals:
    """By account of one upstream. A login is the value of a Basic Authorization header; of it, no
    more than a hash is kept.
    """

    def __init__(self, upstream: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream = upstream
        self._clock = clock
        self._refused: dict[str, _Refusal] = {}
        self._proven: dict[str, bytes] = {}
        self._first_tries: dict[str, asyncio.Lock] = {}

    def is_refused(self, account: str) -> bool:
        return account in self._refused

    def is_left_out(self, account: str, login: str) -> bool:
        """Whether it may not be tried now. Where a pause has ended, one asker may try, and the
        others go on without.
        """
        refusal = self._of(account, login)
        if refusal is None:
            return False
        now = self._clock()
        if now < refusal.ends_at:
            return True
        ends_at = now + refusal.pause_seconds
        self._refused[account] = replace(refusal, ends_at=ends_at, is_retried=True)
        return False

    @asynccontextmanager
    async def trying(self, account: str, login: str) -> AsyncIterator[None]:
        """Around a login, of which `accepted` or `refused` is then told. Until a password was
        accepted once, it is tried by one at a time. Raises LoginRefused where it was refused
        meanwhile.
        """
        if self.is_proven(account, login):
            yield
            return
        async with self._first_tries.setdefault(account, asyncio.Lock()):
            refusal = self._of(account, login)
            if refusal is not None and not refusal.is_retried:
                raise self.error(account)
            yield

    def is_proven(self, account: str, login: str) -> bool:
        """Whether this was the last password to be accepted."""
        return self._proven.get(account) == _fingerprint(login)

    def accepted(self, account: str, login: str) -> None:
        self._proven[account] = _fingerprint(login)
        if self._refused.pop(account, None) is not None:
            _log.info("login works again", upstream=self._upstream, account=account)

    def refused(self, account: str, login: str) -> LoginRefused:
        """Notes it; the error is for the caller to raise."""
        self._proven.pop(account, None)
        if account not in self._refused:
            _log.warning("login refused", upstream=self._upstream, account=account)
        before = self._of(account, login)
        # Of several that tried at the same time, only the first counts.
        if before is None or before.is_retried:
            pause_seconds = (
                min(2 * before.pause_seconds, MAX_PAUSE_SECONDS) if before else FIRST_PAUSE_SECONDS
            )
            ends_at = self._clock() + pause_seconds
            self._refused[account] = _Refusal(_fingerprint(login), pause_seconds, ends_at)
        return self.error(account)

    def error(self, account: str) -> LoginRefused:
        return LoginRefused(
            self._upstream,
            f"refuses the password of {account}: check that credential; it is not tried again "
            "for a while",
        )

    def _of(self, account: str, login: str) -> _Refusal | None:
        """Of this very password: another one may be tried at once."""
        refusal = self._refused.get(account)
        is_same = refusal is not None and refusal.fingerprint == _fingerprint(login)
        return refusal if is_same else None


def _fingerprint(login: str) -> bytes:
    return hashlib.sha256(login.encode()).digest()
