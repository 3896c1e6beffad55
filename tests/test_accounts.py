"""Several accounts: pulls are spent where most are left, nobody is asked in vain, and a login that
is refused takes nothing public away.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from mirror import pulls
from mirror.metrics import Metrics
from mirror.names import Repository
from mirror.pulls import RepositoryPulls
from mirror.upstream.refusals import LoginRefused, Refusals
from tests.fakes.auth import BasicAuth, BearerAuth, basic
from tests.fakes.faults import Status
from tests.fakes.ratelimit import RateLimitByAccount
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.replies import error_of, is_stale, message_of

APP = "org/app"
ACCOUNTS = ("alice", "bob", "carol")
EVERYBODY = (*ACCOUNTS, "anonymous")


def path_of(repository: str, reference: str = "latest") -> str:
    return f"/v2/hub.test/{repository}/manifests/{reference}"


TAG = path_of(APP)


@asynccontextmanager
async def hub(
    registry: FakeRegistry, folder: Path, *usernames: str, **settings: Any
) -> AsyncIterator[House]:
    """Each account's password is its name, tags are always due, and 404s are not remembered."""
    upstream = {
        "endpoints": [registry.url],
        "credentials": [{"username": name, "password": name} for name in usernames],
        "tag_ttl": "0s",
        "not_found_ttl": "0s",
        **settings,
    }
    async with mirroring(folder, {"hub.test": upstream}) as house:
        yield house


def meter(registry: FakeRegistry, **limits: Any) -> RateLimitByAccount:
    registry.auth = auth = BearerAuth(users={name: name for name in ACCOUNTS})
    registry.ratelimit = metered = RateLimitByAccount(auth=auth, **limits)
    return metered


async def shown(house: House, name: str) -> dict[str, float]:
    """A metric by account."""
    of = {"upstream": "hub.test"}
    return {each: await house.metric(name, account=each, **of) for each in EVERYBODY}


# --- Pulls ----------------------------------------------------------------------------------------


async def test_500_pulls_from_a_hub_that_grants_100_to_each_account(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    metered = meter(registry, limit=100)
    names = [f"org/app{number}" for number in range(500)]
    for name in names:
        registry.add_image(name, layers=[name.encode()])
    told: Counter[int] = Counter()
    async with hub(registry, tmp_path, *ACCOUNTS) as house:
        for number, name in enumerate(names, 1):
            told[(await house.get(path_of(name))).status] += 1
            if number % 50 == 0:
                remembered = await house.get(path_of(names[number // 50 - 1]))
                assert remembered.status == 200
                await check_metrics(house, registry, metered, saved=number // 50)
        assert told == {200: 400, 429: 100}, "never a 404"
        assert {metered.left(account) for account in EVERYBODY} == {0}
        asked = registry.count()
        answer = await house.get(path_of(names[-1]))
        assert 21_000 < int(answer.headers["Retry-After"]) <= 21_600
        for account in EVERYBODY:
            assert f"{account}: 0 of 100 pulls left" in message_of(answer)
        assert "back in 6 h" in message_of(answer) or "back in 5 h" in message_of(answer)
        assert is_stale(await house.get(path_of(names[0])))
        assert registry.count() == asked, "while all rest, nobody is asked"
        assert min((await shown(house, "mirror_ratelimit_reset_seconds")).values()) > 21_000
    async with hub(registry, tmp_path, *ACCOUNTS) as house:
        answer = await house.get(path_of(names[-1]))
        assert error_of(answer) == (429, "TOOMANYREQUESTS")
        assert int(answer.headers["Retry-After"]) > 21_000
        assert is_stale(await house.get(path_of(names[0])))
        assert registry.count() == asked, "nor after a restart"
        assert set((await shown(house, "mirror_ratelimit_remaining")).values()) == {0}


async def check_metrics(
    house: House, registry: FakeRegistry, metered: RateLimitByAccount, saved: int
) -> None:
    """Against the registry's own count."""
    used = {account: metered.left(account) for account in metered.counts}
    remaining = await shown(house, "mirror_ratelimit_remaining")
    assert {account: remaining[account] for account in used} == used
    spent = await shown(house, "mirror_pulls_spent_total")
    assert spent == {account: 100 - metered.left(account) for account in EVERYBODY}
    assert sum(spent.values()) == registry.count("GET", "manifest", status=200)
    limits = await shown(house, "mirror_ratelimit_limit")
    assert {account for account, limit in limits.items() if limit == 100} == set(used)
    assert await house.metric("mirror_pulls_saved_total", upstream="hub.test") == saved


async def test_pulls_are_taken_evenly_from_all_accounts(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    metered = meter(registry, limit=100)
    async with hub(registry, tmp_path, *ACCOUNTS) as house:
        for number in range(12):
            registry.add_image(APP, f"t{number}", [b"%d" % number])
            assert (await house.get(path_of(APP, f"t{number}"))).status == 200
    assert [metered.left(account) for account in EVERYBODY] == [96, 96, 96, 100]


async def test_what_only_the_account_may_have_is_a_429_while_it_rests(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    meter(registry, limit=1, retry_after="77")
    registry.add_image(APP)
    registry.add_image("org/private", layers=[b"private"])
    registry.private = {"org/private": {"alice"}}
    async with hub(registry, tmp_path, "alice") as house:
        assert (await house.get(TAG)).status == 200
        for _ in range(2):
            answer = await house.get(path_of("org/private"))
            assert error_of(answer) == (429, "TOOMANYREQUESTS")
            assert "alice: 0 of 1 pulls left" in message_of(answer)
            assert 70 < int(answer.headers["Retry-After"]) <= 77


async def test_while_an_account_rests_a_404_told_to_nobody_in_particular_is_a_429(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    meter(registry)
    registry.add_image(APP)
    rule = registry.fail(Status(429), kind="manifest", times=1)
    async with hub(registry, tmp_path, "alice") as house:
        assert (await house.get(TAG)).status == 200, "anonymously, in the same request"
        assert rule.used == 1
        answer = await house.get(path_of(APP, "none"))
        assert error_of(answer) == (429, "TOOMANYREQUESTS")
        assert "alice" in message_of(answer)
        assert answer.headers["Retry-After"] in ("59", "60")


async def test_a_429_for_a_blob_rests_the_account_for_blobs_and_the_same_request_goes_on(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    meter(registry)
    registry.add_image(APP)
    digests = [registry.add_blob(APP, bytes([n]) * 1000) for n in range(2)]
    registry.fail(Status(429, {"Retry-After": "120"}), kind="blob", times=2)
    async with hub(registry, tmp_path, *ACCOUNTS) as house:
        for digest in digests:
            assert (await house.get(f"/v2/hub.test/{APP}/blobs/{digest}")).status == 200
        asked = [seen for seen in registry.requests if seen.kind == "blob" and seen.status != 401]
        assert [seen.status for seen in asked] == [429, 429, 200, 200]
        assert set((await shown(house, "mirror_ratelimit_reset_seconds")).values()) == {0}
        assert (await house.get(TAG)).status == 200
        assert sum((await shown(house, "mirror_pulls_spent_total")).values()) == 1


async def test_a_429_for_a_manifest_leaves_blobs_alone(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """Docker Hub goes on giving the layers of what was pulled before."""
    digest = registry.add_blob(APP, b"x" * 1000)
    registry.fail(Status(429), kind="manifest")
    async with hub(registry, tmp_path) as house:
        for _ in range(2):
            assert error_of(await house.get(TAG)) == (429, "TOOMANYREQUESTS")
        assert registry.count(kind="manifest") == 1
        assert (await house.get(f"/v2/hub.test/{APP}/blobs/{digest}")).status == 200


async def test_a_head_spends_no_pull_and_a_remembered_answer_saves_one(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    meter(registry)
    image = registry.add_image(APP)
    registry.tag(APP, "same", image.digest)
    async with hub(registry, tmp_path) as house:
        await house.head(TAG)
        assert registry.count("GET", "manifest") == 0
        for path in (TAG, TAG, path_of(APP, image.digest), path_of(APP, "same")):
            assert (await house.get(path)).status == 200
        assert (await house.get(path_of(APP, "none"))).status == 404
        of = {"upstream": "hub.test"}
        assert await house.metric("mirror_pulls_spent_total", account="anonymous", **of) == 1
        assert await house.metric("mirror_pulls_saved_total", **of) == 3
        both = {
            outcome: await house.metric("mirror_repository_pulls", outcome=outcome, repository=APP)
            for outcome in ("spent", "saved")
        }
        assert both == {"spent": 1, "saved": 3}


def test_only_the_repositories_with_most_pulls_are_shown_and_not_many_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pulls, "MAX_COUNTED", 50)
    counts = RepositoryPulls()
    for number in range(30):
        for _ in range(2 + number):
            counts.count("hub.test", f"org/app{number}", "saved")
    for number in range(5000):
        counts.count("hub.test", f"org/once{number}", "spent")
    assert len(counts._counts["hub.test"]) == 50
    registry = CollectorRegistry()
    registry.register(counts)
    lines = [line for line in generate_latest(registry).decode().splitlines() if "{" in line]
    assert len(lines) == 2 * 20
    assert all(f'repository="org/app{number}"' in "".join(lines) for number in range(10, 30))


def test_metrics_count_pulls_by_repository() -> None:
    metrics = Metrics()
    metrics.pull_spent("hub.test", "alice", Repository("hub.test", APP).name)
    metrics.pull_saved("hub.test", APP)
    page = metrics.render().decode()
    for outcome in ("spent", "saved"):
        assert f'{{outcome="{outcome}",repository="{APP}",upstream="hub.test"}} 1.0' in page


# --- Logins ---------------------------------------------------------------------------------------


@pytest.fixture
def guarded(registry: FakeRegistry) -> FakeRegistry:
    """Alice's password is another one here; `org/private` is hers, the rest is public."""
    registry.auth = BearerAuth(users={"alice": "new", "bob": "bob"})
    for name in (APP, "org/other", "org/private"):
        registry.add_image(name, layers=[name.encode()])
    registry.private = {"org/private": {"alice"}}
    return registry


def logins(registry: FakeRegistry, user: str = "alice") -> int:
    """How often the token server was asked with this user's password."""
    said = [seen for seen in registry.requests if seen.authorization == basic(user, user)]
    return sum(seen.kind == "token" for seen in said)


async def test_a_refused_password_is_not_tried_again_and_what_is_public_works(
    guarded: FakeRegistry, tmp_path: Path
) -> None:
    with capture_logs() as lines:
        async with hub(guarded, tmp_path, "alice") as house:
            for path in (TAG, TAG, path_of("org/other"), TAG):
                assert (await house.get(path)).status == 200
            for path in (path_of("org/private"), path_of(APP, "none")):
                answer = await house.get(path)
                assert error_of(answer) == (403, "DENIED")
                assert "password of alice" in message_of(answer)
            assert logins(guarded) == 1
    told = [line for line in lines if line["event"] == "login refused"]
    assert told == [
        {
            "event": "login refused",
            "log_level": "warning",
            "upstream": "hub.test",
            "account": "alice",
        }
    ]


async def test_many_at_once_try_an_unproven_password_once(
    guarded: FakeRegistry, tmp_path: Path
) -> None:
    names = [f"org/many{number}" for number in range(20)]
    for name in names:
        guarded.add_image(name)
    async with hub(guarded, tmp_path, "alice") as house:
        answers = await asyncio.gather(*(house.get(path_of(name)) for name in names))
        assert {answer.status for answer in answers} == {200}
    assert logins(guarded) == 1


async def test_meanwhile_the_next_account_is_used(guarded: FakeRegistry, tmp_path: Path) -> None:
    guarded.private = {APP: {"bob"}}
    async with hub(guarded, tmp_path, "alice", "bob") as house:
        for _ in range(3):
            assert (await house.get(TAG)).status == 200
    assert (logins(guarded), logins(guarded, "bob")) == (1, 1)


async def test_what_one_account_may_not_read_another_may(
    guarded: FakeRegistry, tmp_path: Path
) -> None:
    guarded.auth = BearerAuth(users={name: name for name in ACCOUNTS})
    guarded.add_image("org/private", "next", [b"next"])
    async with hub(guarded, tmp_path, "bob", "carol", "alice") as house:
        assert (await house.get(path_of("org/private"))).status == 200
        guarded.forget()
        assert (await house.get(path_of("org/private", "next"))).status == 200
        assert not logins(guarded, "bob"), "it is known who is let in"
        guarded.private = {"org/private": {"dave"}}
        guarded.forget()
        answer = await house.get(path_of("org/private", "other"))
        assert answer.status in (403, 404)
        assert guarded.count("HEAD", "manifest") <= 6, "each account once or twice, and nobody else"


async def test_another_password_is_tried_at_once(guarded: FakeRegistry, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("alice")
    login = {"username": "alice", "password_file": str(file)}
    with capture_logs() as lines:
        async with hub(guarded, tmp_path, credentials=[login]) as house:
            assert (await house.get(path_of("org/private"))).status == 403
            file.write_text("new")
            assert (await house.get(path_of("org/private"))).status == 200
    told = [line["event"] for line in lines if line["event"].startswith("login")]
    assert told == ["login refused", "login works again"]
    assert not [line for line in lines if "new" in str(line.get("password", ""))]


async def test_what_is_public_needs_no_password_file(guarded: FakeRegistry, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch()
    login = {"username": "alice", "password_file": str(file)}
    async with hub(guarded, tmp_path, credentials=[login]) as house:
        file.unlink()
        assert (await house.get(TAG)).status == 200
        answer = await house.get(path_of("org/private"))
        assert answer.status == 502
        assert "password file of alice cannot be read" in message_of(answer)


async def test_a_basic_login_that_the_registry_refuses_is_not_sent_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.auth = BasicAuth("alice", "new")
    registry.add_image(APP)
    async with hub(registry, tmp_path, "alice") as house:
        for _ in range(4):
            answer = await house.get(TAG)
            assert error_of(answer) == (403, "DENIED")
            assert "password of alice" in message_of(answer)
    tried = [seen for seen in registry.requests if seen.authorization]
    assert [seen.authorization for seen in tried] == [basic("alice", "alice")]


async def test_a_token_server_that_denies_one_repository_does_not_refuse_the_password(
    guarded: FakeRegistry, tmp_path: Path
) -> None:
    """As GHCR does: 403 for what the account may not read."""
    guarded.auth = BearerAuth(users={"alice": "alice"})
    async with hub(guarded, tmp_path, "alice") as house:
        assert (await house.get(TAG)).status == 200
        guarded.fail(Status(403), kind="token", times=1)
        assert (await house.get(path_of("org/other"))).status == 403
        assert (await house.get(path_of("org/private"))).status == 200


class TestRefusals:
    @pytest.fixture
    def refusals(self) -> Refusals:
        self.now = 1000.0
        return Refusals("hub.test", lambda: self.now)

    def test_the_pause_doubles_up_to_ten_minutes(self, refusals: Refusals) -> None:
        refusals.refused("alice", "Basic x")
        for seconds in (10, 20, 40, 80, 160, 320, 600, 600):
            self.now += seconds - 0.1
            assert refusals.is_left_out("alice", "Basic x")
            self.now += 0.2
            assert not refusals.is_left_out("alice", "Basic x"), "one tries again"
            assert refusals.is_left_out("alice", "Basic x"), "and one only"
            refusals.refused("alice", "Basic x")

    def test_those_that_failed_together_count_once(self, refusals: Refusals) -> None:
        for _ in range(5):
            refusals.refused("alice", "Basic x")
        self.now += 10.1
        assert not refusals.is_left_out("alice", "Basic x")

    def test_another_password_begins_anew(self, refusals: Refusals) -> None:
        refusals.refused("alice", "Basic x")
        assert not refusals.is_left_out("alice", "Basic y")
        assert not refusals.is_left_out("bob", "Basic x")
        refusals.refused("alice", "Basic y")
        assert refusals.is_left_out("alice", "Basic y")
        refusals.accepted("alice", "Basic y")
        assert not refusals.is_refused("alice")
        assert refusals.is_proven("alice", "Basic y")
        assert not refusals.is_proven("alice", "Basic x")

    async def test_who_waited_for_the_first_try_hears_that_it_failed(
        self, refusals: Refusals
    ) -> None:
        tries = 0

        async def log_in() -> None:
            nonlocal tries
            async with refusals.trying("alice", "Basic x"):
                tries += 1
                await asyncio.sleep(0)
                raise refusals.refused("alice", "Basic x")

        results = await asyncio.gather(*(log_in() for _ in range(5)), return_exceptions=True)
        assert {type(result) for result in results} == {LoginRefused}
        assert tries == 1

    def test_no_password_is_kept(self, refusals: Refusals) -> None:
        refusals.refused("alice", "Basic secret")
        refusals.accepted("bob", "Basic secret")
        assert "secret" not in repr(vars(refusals))
