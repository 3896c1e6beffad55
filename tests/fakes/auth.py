"""How the fake registry asks who is there."""

import base64
import binascii
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs

from multidict import CIMultiDict

from tests.fakes.answers import error, json_answer
from tests.fakes.delivery import Answer
from tests.fakes.seen import Seen


@dataclass(frozen=True)
class Door:
    """What a request wants to pass: a repository ("" for the ping), and who alone may."""

    repository: str
    allowed: Collection[str] | None  # None: everybody
    own_realm: str

    def admits(self, account: str | None) -> bool:
        return self.allowed is None or account in self.allowed


class Auth:
    """Decides over a request, and answers the token endpoint if there is one."""

    def refuse(self, seen: Seen, door: Door) -> Answer | None:
        """The refusal, or None for "come in"."""
        raise NotImplementedError

    def token(self, seen: Seen) -> Answer:
        return error(404, "UNSUPPORTED", "there is no token endpoint here")


@dataclass(frozen=True)
class NoAuth(Auth):
    """Everybody is let in, except to private repositories."""

    def refuse(self, seen: Seen, door: Door) -> Answer | None:
        return None if door.admits(None) else _denied()


@dataclass(frozen=True)
class BasicAuth(Auth):
    """One account with a password."""

    user: str
    password: str
    challenge: Sequence[str] = ('Basic realm="fake registry"',)

    def refuse(self, seen: Seen, door: Door) -> Answer | None:
        if read_basic(seen.authorization) != (self.user, self.password):
            return _unauthorized(self.challenge)
        return None if door.admits(self.user) else _denied()


@dataclass(frozen=True)
class Grant:
    """What a token stands for."""

    account: str | None
    repositories: frozenset[str]
    expires_at: float


@dataclass(eq=False)
class BearerAuth(Auth):
    """Tokens from a token endpoint.

    Two registries with the same object share its tokens: that is an auth server on another port
    (`realm` its /token). In `challenge` lines {realm}, {service} and {scope} are filled in; an
    empty list means a 401 without any challenge.
    """

    users: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = True
    realm: str | None = None  # None: /token of the registry that challenges
    service: str = "fake-registry"
    expires_in: float | None = 300  # None: not said, and never
    token_field: Literal["token", "access_token"] = "token"  # noqa: S105  # a field's name
    challenge: Sequence[str] | None = None
    stale_status: int = 401  # for expired and revoked tokens; some registries say 400
    issued: dict[str, Grant] = field(default_factory=dict, repr=False)

    def refuse(self, seen: Seen, door: Door) -> Answer | None:
        scheme, _, token = (seen.authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return self._challenge(door)
        grant = self.issued.get(token)
        if grant is None or grant.expires_at < time.monotonic():
            return self._challenge(door, self.stale_status, "invalid_token")
        in_scope = not door.repository or door.repository in grant.repositories
        if in_scope and door.admits(grant.account):
            return None
        return self._challenge(door, problem="insufficient_scope")

    def token(self, seen: Seen) -> Answer:
        form = parse_qs(seen.body.decode()) if seen.method == "POST" else {}
        given = read_basic(seen.authorization)
        if given is None and "username" in form:
            given = form["username"][0], form.get("password", [""])[0]
        if given is None and not self.anonymous:
            return error(401, "UNAUTHORIZED", "log in first")
        if given is not None and self.users.get(given[0]) != given[1]:
            return error(401, "UNAUTHORIZED", "wrong user or password")
        scopes = " ".join(seen.query.getall("scope", []) + form.get("scope", []))
        return self._issue(given[0] if given else None, scopes.split())

    def revoke(self) -> None:
        self.issued.clear()

    def _issue(self, account: str | None, scopes: Sequence[str]) -> Answer:
        repositories = frozenset(
            scope.split(":", 1)[1].rpartition(":")[0]
            for scope in scopes
            if scope.startswith("repository:")
        )
        lifetime = float("inf") if self.expires_in is None else self.expires_in
        token = f"fake-{secrets.token_hex(16)}"
        self.issued[token] = Grant(account, repositories, time.monotonic() + lifetime)
        said = {} if self.expires_in is None else {"expires_in": self.expires_in}
        return json_answer(200, {self.token_field: token, **said})

    def _challenge(self, door: Door, status: int = 401, problem: str = "") -> Answer:
        scope = f"repository:{door.repository}:pull" if door.repository else ""
        lines = self.challenge
        if lines is None:
            line = 'Bearer realm="{realm}",service="{service}"'
            line += ',scope="{scope}"' if scope else ""
            lines = [line + (f',error="{problem}"' if problem else "")]
        facts = {"realm": self.realm or door.own_realm, "service": self.service, "scope": scope}
        return _unauthorized([_filled(line, facts) for line in lines], status)


def read_basic(authorization: str | None) -> tuple[str, str] | None:
    """User and password of a Basic header; None for anything else."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user, password


def basic(user: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _filled(line: str, facts: Mapping[str, str]) -> str:
    for name, value in facts.items():
        line = line.replace("{" + name + "}", value)
    return line


def _unauthorized(lines: Sequence[str], status: int = 401) -> Answer:
    answer = error(status, "UNAUTHORIZED", "authentication required")
    answer.headers.extend(CIMultiDict([("WWW-Authenticate", line) for line in lines]))
    return answer


def _denied() -> Answer:
    return error(403, "DENIED", "requested access to the resource is denied")
