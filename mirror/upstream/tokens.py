"""Logins at upstreams: from a challenge to an Authorization header.

Bearer tokens follow the Docker token specification (distribution, "Token Authentication"); they are
kept by (realm, service, scope, account) and fetched once for however many wait for them.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from cachetools import LRUCache
from yarl import URL

from mirror.errors import (
    UpstreamBroken,
    UpstreamDenied,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamUnreachable,
)
from mirror.names import shown
from mirror.singleflight import Flights
from mirror.upstream.challenge import Challenge
from mirror.upstream.definition import Account, Upstream, name_of
from mirror.upstream.realms import is_allowed_realm
from mirror.upstream.refusals import LoginRefused, Refusals
from mirror.weburls import parse_url

# The token specification: a client that is told no time, or less, may count on this one.
LEAST_EXPIRY_SECONDS = 60
MOST_EXPIRY_SECONDS = 24 * 3600
REFRESH_MARGIN_SECONDS = 15
MAX_REMEMBERED = 4096

# Asks a realm: (endpoint that named it, url, Authorization or None, account's name) → JSON body.
# Raises UpstreamError; an UpstreamDenied has the realm's own status in `answered`.
AskRealm = Callable[[URL, URL, str | None, str], Awaitable[bytes]]


class PasswordUnreadable(UpstreamBroken):
    """This mirror's own fault: a remembered answer may stand in, or another account be asked."""


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    ends_at: float


@dataclass(frozen=True, slots=True)
class _TokenKey:
    realm: URL
    service: str
    scope: str
    account: str


class Logins:
    """The Authorization headers for one upstream."""

    def __init__(
        self,
        upstream: Upstream,
        ask_realm: AskRealm,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._ask_realm = ask_realm
        self._clock = clock
        self._refusals = Refusals(upstream.name, clock)
        self._passwords: dict[str, str] = {}
        self._challenges: LRUCache[tuple[URL, str], Challenge] = LRUCache(MAX_REMEMBERED)
        self._tokens: LRUCache[_TokenKey, _Token] = LRUCache(MAX_REMEMBERED)
        self._flights: Flights[_TokenKey, _Token] = Flights()

    async def remembered(
        self, endpoint: URL, remote_name: str, account: Account | None
    ) -> str | None:
        """The header to send at once, where an earlier challenge tells; a token is renewed if due.

        None where nothing is known, or where the realm no longer answers as it did: the registry
        may name another one by now. Raises UpstreamError where that cannot be asked at all.
        """
        challenge = self._challenges.get((endpoint, remote_name))
        if challenge is None:
            return None
        try:
            return await self._header(endpoint, challenge, remote_name, account)
        except UpstreamError as error:
            if isinstance(error, LoginRefused):
                raise
            self._challenges.pop((endpoint, remote_name), None)
            if isinstance(error, UpstreamUnreachable | UpstreamRateLimited):
                raise
            return None

    async def answer(
        self,
        endpoint: URL,
        remote_name: str,
        account: Account | None,
        challenges: list[Challenge],
        refused: str | None,
    ) -> str:
        """The header that answers a 401; `refused` is what was sent with it.

        Raises LoginRefused for a refused password, UpstreamDenied where nothing new can be tried,
        UpstreamError from the realm.
        """
        challenge = await self._choose(endpoint, account, challenges)
        if challenge.scheme == "bearer":
            self._forget(self._key(challenge, remote_name, account), refused)
        try:
            header = await self._header(endpoint, challenge, remote_name, account)
        except LoginRefused:
            self._challenges[endpoint, remote_name] = challenge  # it is the login that is wrong
            raise
        if header == refused:
            if account is not None and challenge.scheme == "basic":
                raise self._refusals.refused(account.username, header)
            raise UpstreamDenied(
                self._upstream.name,
                f"refuses {name_of(account)} for {remote_name}: check that credential",
                answered=401,
            )
        self._challenges[endpoint, remote_name] = challenge
        return header

    async def is_left_out(self, account: Account) -> bool:
        """Whether its password was refused a while ago, and is still the same."""
        if not self._refusals.is_refused(account.username):
            return False
        try:
            login = await self._basic(account)
        except PasswordUnreadable:
            return True
        return self._refusals.is_left_out(account.username, login)

    def refusal(self) -> LoginRefused | None:
        """What to tell while there is an account whose password is refused."""
        for account in self._upstream.accounts:
            if self._refusals.is_refused(account.username):
                return self._refusals.error(account.username)
        return None

    def note_answer(self, account: Account | None, header: str | None, status: int) -> None:
        """The registry's own word on a Basic login. Raises LoginRefused."""
        if account is None or header is None or not header.startswith("Basic "):
            return
        if status == 401:
            raise self._refusals.refused(account.username, header)
        if status < 400:
            self._refusals.accepted(account.username, header)

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def _choose(
        self, endpoint: URL, account: Account | None, challenges: list[Challenge]
    ) -> Challenge:
        for challenge in challenges:
            if challenge.scheme == "bearer":
                await self._check_realm(endpoint, challenge)
                return challenge
        if any(challenge.scheme == "basic" for challenge in challenges):
            if account is not None:
                return Challenge("basic")
            raise UpstreamDenied(
                self._upstream.name,
                "wants a login; set `credentials` in the configuration",
                answered=401,
            )
        raise UpstreamDenied(
            self._upstream.name,
            "refused access without saying how to log in (Bearer or Basic)",
            answered=401,
        )

    async def _check_realm(self, endpoint: URL, challenge: Challenge) -> None:
        """Raises UpstreamBroken. In a thread, since the list of public suffixes is a file."""
        text = challenge.parameters.get("realm", "")
        extra_hosts = self._upstream.token_realms
        try:
            allowed = await asyncio.to_thread(
                is_allowed_realm, parse_url(text), endpoint, extra_hosts
            )
        except ValueError:
            allowed = False
        if not allowed:
            raise UpstreamBroken(
                self._upstream.name,
                f"sends logins to {shown(text)}, which is not its own domain; if that is right, "
                "list the host under `token_realms`",
            )

    async def _header(
        self, endpoint: URL, challenge: Challenge, remote_name: str, account: Account | None
    ) -> str:
        if challenge.scheme == "basic":
            return await self._basic(account) if account else ""
        key = self._key(challenge, remote_name, account)
        token = self._tokens.get(key)
        if token is None or token.ends_at <= self._clock():
            flight, _ = self._flights.start(key, lambda: self._fetch(endpoint, key, account))
            token = await flight.wait()
        return f"Bearer {token.value}"

    def _key(self, challenge: Challenge, remote_name: str, account: Account | None) -> _TokenKey:
        """The challenge's scope counts over our own: ECR Public, for one, wants a fixed `aws`."""
        parameters = challenge.parameters
        return _TokenKey(
            URL(parameters["realm"]),
            parameters.get("service", ""),
            parameters.get("scope") or f"repository:{remote_name}:pull",
            name_of(account),
        )

    def _forget(self, key: _TokenKey, refused: str | None) -> None:
        token = self._tokens.get(key)
        if token is not None and f"Bearer {token.value}" == refused:
            del self._tokens[key]

    async def _fetch(self, endpoint: URL, key: _TokenKey, account: Account | None) -> _Token:
        query = {"service": key.service, "scope": key.scope}
        url = key.realm.update_query({name: value for name, value in query.items() if value})
        if account is None:
            body = await self._ask_realm(endpoint, url, None, key.account)
        else:
            body = await self._log_in(endpoint, url, account)
        token = _parse_token(body, self._clock())
        if token is None:
            raise UpstreamBroken(
                self._upstream.name, f"its token server {key.realm.host} sent no token"
            )
        self._tokens[key] = token
        return token

    async def _log_in(self, endpoint: URL, url: URL, account: Account) -> bytes:
        """The realm's answer. A 403 for a password that it took before is about the content."""
        login = await self._basic(account)
        name = account.username
        async with self._refusals.trying(name, login):
            try:
                body = await self._ask_realm(endpoint, url, login, name)
            except UpstreamDenied as error:
                if error.answered == 403 and self._refusals.is_proven(name, login):
                    raise
                raise self._refusals.refused(name, login) from error
        self._refusals.accepted(name, login)
        return body

    async def _basic(self, account: Account) -> str:
        """With the last password that could be read: a file may be away or empty for a moment while
        its secret is rotated. Raises PasswordUnreadable.
        """
        name = account.username
        try:
            self._passwords[name] = await asyncio.to_thread(account.read_password)
        except (OSError, ValueError):
            if name not in self._passwords:
                raise PasswordUnreadable(
                    self._upstream.name,
                    f"the password file of {name} cannot be read: check that it is there, that it "
                    "holds a single line, and that this mirror may read it",
                ) from None
        password = self._passwords[name]
        return aiohttp.encode_basic_auth(name, password)


def _parse_token(body: bytes, now: float) -> _Token | None:
    """`token` or `access_token`; `expires_in` may be missing or odd."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    value = answer.get("token") or answer.get("access_token")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        return None
    told = answer.get("expires_in")
    seconds = told if isinstance(told, int | float) else 0
    # The bounds come first: NaN, which JSON in Python knows, is neither more nor less than them.
    expiry_seconds = min(MOST_EXPIRY_SECONDS, max(LEAST_EXPIRY_SECONDS, seconds))
    return _Token(value, now + expiry_seconds - REFRESH_MARGIN_SECONDS)
