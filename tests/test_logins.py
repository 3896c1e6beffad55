"""Logging in at upstreams: by challenge, once for many, with a password that goes nowhere else."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from publicsuffixlist import PublicSuffixList
from yarl import URL

from mirror.errors import (
    MirrorError,
    UpstreamBroken,
    UpstreamDenied,
    UpstreamError,
    UpstreamUnreachable,
)
from mirror.upstream import realms
from mirror.upstream.challenge import Challenge
from mirror.upstream.definition import Account, Upstream
from mirror.upstream.tokens import Logins
from tests.fakes.auth import BasicAuth, BearerAuth, Door, basic
from tests.fakes.delivery import Answer
from tests.fakes.faults import Cut, Fault, Garbage, HangUp, Status
from tests.fakes.registry import FakeRegistry
from tests.fakes.seen import Seen
from tests.support.house import House, mirroring
from tests.support.internet import pretend

APP = "org/app"
TAG = f"/v2/hub.test/{APP}/manifests/latest"
ALICE = {"username": "alice", "password": "correct-horse"}
BEARER = 'Bearer realm="{realm}",service="{service}",scope="{scope}"'


@asynccontextmanager
async def asking(
    registry: FakeRegistry, folder: Path, *credentials: dict[str, str], **settings: Any
) -> AsyncIterator[House]:
    """A mirror that asks for a tag anew each time, so that each pull needs a login."""
    upstream = {
        "endpoints": [registry.url],
        "credentials": list(credentials),
        "tag_ttl": "0s",
        "not_found_ttl": "0s",
        **settings,
    }
    async with mirroring(folder, {"hub.test": upstream}) as house:
        yield house


@pytest.fixture
def private(registry: FakeRegistry) -> FakeRegistry:
    """Holds an image that only alice may pull."""
    registry.add_image(APP, layers=[b"one", b"two", b"three"])
    registry.auth = BearerAuth(users={"alice": "correct-horse"})
    registry.private = {APP: {"alice"}}
    return registry


def tokens_asked(registry: FakeRegistry) -> int:
    return registry.count(kind="token")


# --- Challenges -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "challenge",
    [
        [BEARER],
        ['bearer REALM="{realm}" , Service={service},scope="{scope}"'],
        ["Bearer realm={realm},scope={scope}"],
        ['Bearer realm="{realm}"'],
        ['Bearer error="insufficient, really",realm="{realm}",scope="{scope}"'],
        ['Basic realm="a, Bearer b", ' + BEARER],
        ['Basic realm="a"', BEARER],
        [BEARER, 'Basic realm="a"'],
        ["Negotiate oRQ/w+Eq==, " + BEARER],
        ["@@@", BEARER],
    ],
)
async def test_a_token_is_fetched_however_the_challenge_is_written(
    private: FakeRegistry, tmp_path: Path, challenge: Sequence[str]
) -> None:
    private.auth = BearerAuth(users={"alice": "correct-horse"}, challenge=challenge)
    async with asking(private, tmp_path, ALICE) as house:
        assert (await house.get(TAG)).status == 200
    asked = next(seen for seen in private.requests if seen.kind == "token")
    assert asked.query["scope"] == f"repository:{APP}:pull"
    assert asked.query.get("service") == ("fake-registry" if "service" in str(challenge) else None)
    assert asked.authorization == basic("alice", "correct-horse")


@pytest.mark.parametrize("token_field", ["token", "access_token"])
@pytest.mark.parametrize("expires_in", [None, 300])
async def test_one_token_serves_every_pull_of_a_repository(
    private: FakeRegistry, tmp_path: Path, token_field: Any, expires_in: float | None
) -> None:
    users = {"alice": "correct-horse"}
    private.auth = BearerAuth(users, token_field=token_field, expires_in=expires_in)
    image = private.add_image(APP)
    async with asking(private, tmp_path, ALICE) as house:
        for _ in range(3):
            assert (await house.get(TAG)).status == 200
        for digest in (image.config, *image.layers):
            assert (await house.get(f"/v2/hub.test/{APP}/blobs/{digest}")).status == 200
    assert tokens_asked(private) == 1
    assert private.count(status=401) == 1


async def test_anonymous_pulls_ask_for_a_token_without_a_login(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    registry.auth = BearerAuth()
    async with asking(registry, tmp_path) as house:
        assert (await house.get(TAG)).status == 200
    assert [seen.authorization for seen in registry.requests if seen.kind == "token"] == [None]


async def test_a_herd_needs_one_token(private: FakeRegistry, tmp_path: Path) -> None:
    digests = [private.add_blob(APP, b"%d" % n * 99) for n in range(20)]
    async with asking(private, tmp_path, ALICE) as house:
        paths = [f"/v2/hub.test/{APP}/blobs/{digest}" for digest in digests]
        answers = await asyncio.gather(*(house.get(path) for path in paths))
        assert {answer.status for answer in answers} == {200}
        assert tokens_asked(private) == 1
        private.revoke_tokens()
        paths = [f"/v2/hub.test/{APP}/manifests/{n}" for n in range(20)]
        answers = await asyncio.gather(*(house.get(path) for path in paths))
        assert {answer.status for answer in answers} == {404}
    assert tokens_asked(private) == 2


async def test_a_revoked_token_is_renewed_and_no_client_notices(
    private: FakeRegistry, tmp_path: Path
) -> None:
    async with asking(private, tmp_path, ALICE) as house:
        for tokens in (1, 2, 3):
            assert (await house.get(TAG)).status == 200
            assert tokens_asked(private) == tokens
            private.revoke_tokens()


async def test_basic_is_answered_where_there_is_no_bearer(
    private: FakeRegistry, tmp_path: Path
) -> None:
    private.auth = BasicAuth("alice", "correct-horse", ['Digest realm="x", Basic realm="x"'])
    async with asking(private, tmp_path, ALICE) as house:
        for _ in range(3):
            assert (await house.get(TAG)).status == 200
    assert private.count(status=401) == 1


class WithoutChallenge(BearerAuth):
    """As gcr.io may do: only the ping says how to log in."""

    def refuse(self, seen: Seen, door: Door) -> Answer | None:
        answer = super().refuse(seen, door)
        if answer is not None and door.repository:
            answer.headers.popall("WWW-Authenticate", None)
        return answer


async def test_a_401_without_a_challenge_is_answered_by_that_of_the_ping(
    private: FakeRegistry, tmp_path: Path
) -> None:
    private.auth = WithoutChallenge(users={"alice": "correct-horse"})
    async with asking(private, tmp_path, ALICE) as house:
        for _ in range(3):
            assert (await house.get(TAG)).status == 200
    assert (private.count(kind="ping"), tokens_asked(private)) == (1, 1)


@dataclass(eq=False)
class OneScopeForAll(BearerAuth):
    """As ECR Public: the scope is `aws` whatever is asked for, and expired tokens get 400."""

    stale_status: int = 400
    challenge: Sequence[str] | None = ('Bearer realm="{realm}",service="ecr",scope="aws"',)
    scopes: list[str] = field(default_factory=list)

    def refuse(self, seen: Seen, door: Door) -> Answer | None:
        return super().refuse(seen, replace(door, repository=""))

    def token(self, seen: Seen) -> Answer:
        self.scopes.append(seen.query["scope"])
        return super().token(seen)


async def test_ecr_public_has_one_scope_and_says_400_to_expired_tokens(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"public.ecr.aws": "127.0.0.1"})
    registry.add_image(APP)
    registry.add_image("org/other")
    endpoint = f"http://public.ecr.aws:{registry.port}"
    registry.auth = auth = OneScopeForAll(realm=f"{endpoint}/token")
    async with asking(registry, tmp_path, endpoints=[endpoint]) as house:
        assert (await house.get(TAG)).status == 200
        assert (await house.get(TAG.replace(APP, "org/other"))).status == 200
        assert auth.scopes == ["aws"]
        registry.revoke_tokens()
        assert (await house.get(TAG)).status == 200
        assert auth.scopes == ["aws", "aws"]


# --- Refusals -------------------------------------------------------------------------------------


async def test_a_401_that_stays_is_a_403_that_names_the_account(
    private: FakeRegistry, tmp_path: Path
) -> None:
    """One more try with a new token, then the client is told."""
    private.private = {APP: {"bob"}}
    async with asking(private, tmp_path, ALICE) as house:
        for pulls in (1, 2, 3):
            answer = await house.get(TAG)
            assert answer.status == 403
            error = json.loads(answer.body)["errors"][0]
            assert error["code"] == "DENIED"
            assert "alice" in error["message"]
            assert "WWW-Authenticate" not in answer.headers
            assert tokens_asked(private) == pulls
    assert private.count(kind="manifest") == 2 * 3


@pytest.mark.parametrize("auth", [BearerAuth(users={"alice": "x"}), BasicAuth("alice", "x")])
async def test_a_wrong_password_is_a_403_that_names_the_account(
    private: FakeRegistry, tmp_path: Path, auth: Any
) -> None:
    private.auth = auth
    async with asking(private, tmp_path, ALICE) as house:
        answer = await house.get(TAG)
    assert answer.status == 403
    assert b"alice" in answer.body
    assert b"correct-horse" not in answer.body
    assert len(private.requests) <= 6


@pytest.mark.parametrize(
    ("auth", "hint"),
    [
        (BasicAuth("alice", "x"), "credentials"),
        (BearerAuth(anonymous=False), "credentials"),
        (BearerAuth(challenge=[]), "without saying how to log in"),
        (BearerAuth(challenge=["Digest realm=x"]), "without saying how to log in"),
    ],
)
async def test_whoever_has_no_login_is_told_what_is_missing(
    private: FakeRegistry, tmp_path: Path, auth: Any, hint: str
) -> None:
    private.auth = auth
    async with asking(private, tmp_path) as house:
        answer = await house.get(TAG)
    assert answer.status == 403
    assert hint in answer.body.decode()


def told(body: object) -> Status:
    return Status(200, {}, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Status(429, {"Retry-After": "7"}), 429),
        (Status(500), 502),
        (Status(404), 502),
        (Status(400), 502),
        (Status(307, {"Location": "http://127.0.0.1:1/token"}), 502),
        (Garbage(), 502),
        (HangUp(), 504),
        (Cut(5), 502),
        (told([]), 502),
        (told({}), 502),
        (told({"token": ""}), 502),
        (told({"token": 7}), 502),
        (told({"token": "two\r\nlines"}), 502),
        (told({"token": "ü"}), 502),
        (told({"token": "x" * 70_000}), 502),
        (Status(200, {"Content-Encoding": "gzip"}, b'{"token": "x"}'), 502),
        (Status(200, {}, b"[" * 60_000), 502),
        (Status(500, {}, b"x" * 1_000_000), 502),
    ],
    ids=lambda value: repr(value)[:80],
)
async def test_a_token_server_that_fails(
    private: FakeRegistry, tmp_path: Path, fault: Fault, status: int
) -> None:
    private.fail(fault, kind="token")
    async with asking(private, tmp_path, ALICE) as house:
        answer = await house.get(TAG)
        assert answer.status == status
        assert answer.headers.get("Retry-After") == ("7" if status == 429 else None)
        private.heal()
        assert (await house.get(TAG)).status == 200
    assert private.count(kind="token", status=200) <= 2


async def test_a_token_server_that_is_down(private: FakeRegistry, tmp_path: Path) -> None:
    async with FakeRegistry() as server:
        private.auth = server.auth = BearerAuth(
            users={"alice": "correct-horse"}, realm=f"{server.url}/token"
        )
        async with asking(private, tmp_path, ALICE, token_realms=[server.authority]) as house:
            await server.stop()
            answer = await house.get(TAG)
            assert answer.status == 504
            await server.start()
            await house.get_until(TAG, lambda answer: answer.status == 200)


@pytest.mark.parametrize("padding", [10_000, 40_000])
async def test_a_challenge_longer_than_any_is_refused(
    private: FakeRegistry, tmp_path: Path, padding: int
) -> None:
    line = f'Basic realm="{"x" * padding}", ' + BEARER
    private.auth = BearerAuth(users={"alice": "correct-horse"}, challenge=[line])
    async with asking(private, tmp_path) as house:
        answer = await house.get(TAG)
    assert answer.status in (403, 502)
    assert len(answer.body) < 1000
    assert tokens_asked(private) == 0


# --- Where a password may go ----------------------------------------------------------------------


async def test_a_token_server_elsewhere_is_not_even_connected_to(
    private: FakeRegistry, tmp_path: Path
) -> None:
    async with FakeRegistry() as elsewhere:
        private.auth = BearerAuth(realm=f"{elsewhere.url}/token")
        async with asking(private, tmp_path, ALICE) as house:
            answer = await house.get(TAG)
        assert answer.status == 502
        assert b"token_realms" in answer.body
        assert elsewhere.connections_accepted == 0


@pytest.mark.parametrize(
    "realm",
    ["http://{there}@{elsewhere}/token", "http://{there}.evil.test/token", "//{elsewhere}/", ""],
)
async def test_a_realm_that_only_looks_like_the_upstream_is_refused(
    private: FakeRegistry, tmp_path: Path, realm: str
) -> None:
    async with FakeRegistry() as elsewhere:
        spelled = realm.format(there=private.authority, elsewhere=elsewhere.authority)
        private.auth = BearerAuth(challenge=[f'Bearer realm="{spelled}"'])
        async with asking(private, tmp_path, ALICE) as house:
            assert (await house.get(TAG)).status == 502
        assert elsewhere.connections_accepted == 0


async def test_a_token_server_elsewhere_may_be_configured(
    private: FakeRegistry, tmp_path: Path
) -> None:
    async with FakeRegistry() as server:
        private.auth = server.auth = BearerAuth(
            users={"alice": "correct-horse"}, realm=f"{server.url}/token"
        )
        async with asking(private, tmp_path, ALICE, token_realms=[server.authority]) as house:
            assert (await house.get(TAG)).status == 200
        assert [seen.authorization for seen in server.requests] == [basic("alice", "correct-horse")]
    assert all("Basic" not in (seen.authorization or "") for seen in private.requests)


async def test_a_token_server_of_the_same_domain_needs_no_configuration(
    private: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of public suffixes is read for it: a file, and so not on the event loop."""
    readers = []

    def read() -> PublicSuffixList:
        readers.append(threading.current_thread())
        return PublicSuffixList()

    monkeypatch.setattr(realms, "PublicSuffixList", read)
    realms._suffixes.cache_clear()
    pretend(monkeypatch, {"registry.hub.test": "127.0.0.1", "auth.hub.test": "127.0.0.1"})
    realm = f"http://auth.hub.test:{private.port}/token"
    private.auth = BearerAuth(users={"alice": "correct-horse"}, realm=realm)
    endpoint = f"http://registry.hub.test:{private.port}"
    async with asking(private, tmp_path, ALICE, endpoints=[endpoint]) as house:
        assert (await house.get(TAG)).status == 200
    assert threading.main_thread() not in readers
    assert len(readers) == 1
    assert [seen.headers["Host"] for seen in private.requests if seen.kind == "token"] == [
        f"auth.hub.test:{private.port}"
    ]


# --- Password files -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
async def test_a_rotated_password_file_takes_effect(
    private: FakeRegistry, tmp_path: Path, scheme: str
) -> None:
    file = tmp_path / "password"

    def rotate(password: str) -> None:
        file.write_text(f"{password}\n")
        if scheme == "Basic":
            private.auth = BasicAuth("alice", password)
        else:
            private.auth = BearerAuth(users={"alice": password})

    rotate("first")
    async with asking(
        private, tmp_path, {"username": "alice", "password_file": str(file)}
    ) as house:
        assert (await house.get(TAG)).status == 200
        rotate("second")
        assert (await house.get(TAG)).status == 200
        file.write_text("\n")  # as one is for a moment that is written in place
        private.revoke_tokens()
        assert (await house.get(TAG)).status == 200
        file.unlink()
        if scheme == "Bearer":
            private.auth = BearerAuth(users={"alice": "second"})  # which forgets its tokens
        assert (await house.get(TAG)).status == 200, "a secret that is away for a moment"


@pytest.mark.parametrize("is_there", [True, False], ids=["empty", "gone"])
async def test_a_password_file_that_was_never_read(
    private: FakeRegistry, tmp_path: Path, is_there: bool
) -> None:
    file = tmp_path / "password"
    file.touch()
    async with asking(
        private, tmp_path, {"username": "alice", "password_file": str(file)}
    ) as house:
        if not is_there:
            file.unlink()
        answer = await house.get(TAG)
        assert answer.status == 502
        assert b"password file of alice cannot be read: check that it is there" in answer.body
    assert tokens_asked(private) <= 1, "nobody's"


# --- How long a token holds -----------------------------------------------------------------------


class TokenServer:
    """Answers for a realm, and counts; `now` is the clock of the logins that ask it."""

    def __init__(self, expires_in: str | None = "300") -> None:
        self.now = 1000.0
        self.asked: list[tuple[str, str]] = []
        self.problem: UpstreamError | None = None
        self._expires_in = expires_in

    async def ask(self, _endpoint: URL, url: URL, authorization: str | None, account: str) -> bytes:
        self.asked.append((url.query.get("scope", ""), account))
        if self.problem is not None:
            raise self.problem
        more = "" if self._expires_in is None else f',"expires_in": {self._expires_in}'
        return f'{{"token": "t{len(self.asked)}"{more}}}'.encode()

    def logins(self) -> Logins:
        return Logins(Upstream("hub.test", (ENDPOINT,)), self.ask, lambda: self.now)


ENDPOINT = URL("https://hub.test")
CHALLENGE = Challenge("bearer", {"realm": "https://hub.test/token", "service": "hub"})


@pytest.mark.parametrize(
    ("expires_in", "held_seconds"),
    [
        ("300", 285),
        ("300.5", 285.5),
        ("61", 46),
        (None, 45),
        ("null", 45),
        ("0", 45),
        ("5", 45),
        ("-300", 45),
        ("true", 45),
        ('"300"', 45),
        ("[]", 45),
        ("NaN", 45),
        ("-Infinity", 45),
        ("Infinity", 86385),
        ("1e300", 86385),
        ("9" * 400, 86385),
    ],
)
async def test_a_token_is_renewed_before_it_ends(
    expires_in: str | None, held_seconds: float
) -> None:
    server = TokenServer(expires_in)
    logins = server.logins()
    assert await logins.answer(ENDPOINT, APP, None, [CHALLENGE], None) == "Bearer t1"
    server.now += held_seconds - 0.1
    assert await logins.remembered(ENDPOINT, APP, None) == "Bearer t1"
    server.now += 0.2
    assert await logins.remembered(ENDPOINT, APP, None) == "Bearer t2"


async def test_tokens_are_kept_by_scope_service_and_account() -> None:
    server = TokenServer()
    logins = server.logins()
    alice, bob = Account("alice", lambda: "a"), Account("bob", lambda: "b")
    other = Challenge("bearer", {**CHALLENGE.parameters, "service": "other"})
    wide = Challenge("bearer", {**CHALLENGE.parameters, "scope": "all"})
    for _ in range(2):
        for repository, account, challenge in [
            (APP, None, CHALLENGE),
            (APP, alice, CHALLENGE),
            (APP, bob, CHALLENGE),
            (APP, bob, other),
            (APP, alice, wide),
            ("org/more", alice, wide),
            ("org/more", alice, CHALLENGE),
        ]:
            await logins.answer(ENDPOINT, repository, account, [challenge], None)
    one, more = f"repository:{APP}:pull", "repository:org/more:pull"
    assert server.asked == [
        (one, "anonymous"),
        (one, "alice"),
        (one, "bob"),
        (one, "bob"),
        ("all", "alice"),
        (more, "alice"),
    ]


async def test_only_the_token_that_was_refused_is_thrown_away() -> None:
    """Of many that were refused with the old token, the later ones get the new one."""
    server = TokenServer()
    logins = server.logins()
    first = await logins.answer(ENDPOINT, APP, None, [CHALLENGE], None)
    second = await logins.answer(ENDPOINT, APP, None, [CHALLENGE], first)
    assert await logins.answer(ENDPOINT, APP, None, [CHALLENGE], first) == second
    assert len(server.asked) == 2


async def test_a_login_that_is_refused_is_not_sent_again() -> None:
    logins = TokenServer().logins()
    alice = Account("alice", lambda: "password")
    header = await logins.answer(ENDPOINT, APP, alice, [Challenge("basic")], None)
    with pytest.raises(MirrorError, match="alice"):
        await logins.answer(ENDPOINT, APP, alice, [Challenge("basic")], header)


async def test_a_realm_that_was_wrong_once_is_not_held_to(
    private: FakeRegistry, tmp_path: Path
) -> None:
    assert isinstance(private.auth, BearerAuth)
    async with asking(private, tmp_path, ALICE) as house:
        private.auth.challenge = [BEARER.replace("{realm}", f"{private.url}/no-such-realm")]
        assert (await house.get(TAG)).status == 502
        private.auth.challenge = None
        assert (await house.get(TAG)).status == 200


@pytest.mark.parametrize(
    ("problem", "is_raised"),
    [
        (UpstreamBroken("hub.test", "answered 404"), False),
        (UpstreamDenied("hub.test", "refuses alice"), False),
        (UpstreamUnreachable("hub.test", "no route"), True),
    ],
)
async def test_a_realm_that_no_longer_answers_is_forgotten(
    problem: UpstreamError, is_raised: bool
) -> None:
    """Then the registry is asked without a login, and names the realm anew."""
    source = TokenServer()
    logins = source.logins()
    await logins.answer(ENDPOINT, APP, None, [CHALLENGE], None)
    source.now += 400
    source.problem = problem
    with pytest.raises(UpstreamUnreachable) if is_raised else nullcontext():
        assert await logins.remembered(ENDPOINT, APP, None) is None
    assert await logins.remembered(ENDPOINT, APP, None) is None
    await logins.aclose()
