"""What upstreams tell about pulls left: shown, and used to choose an account."""

from pathlib import Path

import pytest

from mirror.metrics import Metrics
from mirror.upstream.ratelimit import RateLimits
from tests.fakes.answers import error
from tests.fakes.auth import Auth, BasicAuth, Door, read_basic
from tests.fakes.delivery import Answer, Delivery
from tests.fakes.faults import Header
from tests.fakes.ratelimit import RateLimit
from tests.fakes.registry import FakeRegistry
from tests.fakes.seen import Seen
from tests.house import House, mirroring

APP = "org/app"
TAG = f"/v2/hub.test/{APP}/manifests/latest"
REMAINING, LIMIT = "mirror_ratelimit_remaining", "mirror_ratelimit_limit"


def upstream(registry: FakeRegistry, *usernames: str) -> dict[str, object]:
    """Asked for each pull anew; each account's password is its name."""
    credentials = [{"username": name, "password": name} for name in usernames]
    return {"endpoints": [registry.url], "tag_ttl": "0s", "credentials": credentials}


async def gauges(house: House, account: str = "anonymous") -> tuple[float, float]:
    of = {"upstream": "hub.test", "account": account}
    return await house.metric(REMAINING, **of), await house.metric(LIMIT, **of)


async def test_the_gauges_follow_get_and_head(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(APP)
    registry.ratelimit = RateLimit(limit=100, remaining=76)
    async with mirroring(tmp_path, {"hub.test": upstream(registry)}) as house:
        assert (await house.get(TAG)).status == 200
        assert registry.requests[-1].method == "GET"
        assert await gauges(house) == (75, 100)
        registry.ratelimit.remaining, registry.ratelimit.limit = 40, 200
        assert (await house.get(TAG)).status == 200
        assert registry.requests[-1].method == "HEAD"
        assert await gauges(house) == (40, 200)


async def test_a_refused_pull_tells_it_too(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(APP)
    registry.ratelimit = RateLimit(limit=100, remaining=0)
    async with mirroring(tmp_path, {"hub.test": upstream(registry)}) as house:
        assert (await house.get(TAG)).status == 429
        assert await gauges(house) == (0, 100)


async def test_the_label_is_the_accounts_name(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(APP)
    registry.auth = BasicAuth("alice", "alice")
    registry.ratelimit = RateLimit(limit=200, remaining=76)
    async with mirroring(tmp_path, {"hub.test": upstream(registry, "alice")}) as house:
        assert (await house.get(TAG)).status == 200
        assert await gauges(house, "alice") == (75, 200)
        assert await gauges(house) == (0, 0)


@pytest.mark.parametrize("value", ["76;w=21600", " 76 ; w=21600", "76", "76;w=", "076;x"])
async def test_values_that_can_be_read(registry: FakeRegistry, tmp_path: Path, value: str) -> None:
    registry.add_image(APP)
    registry.fail(Header("ratelimit-remaining", value), Header("RateLimit-Limit", "100;w=21600"))
    async with mirroring(tmp_path, {"hub.test": upstream(registry)}) as house:
        assert (await house.get(TAG)).status == 200
        assert await gauges(house) == (76, 100)


@pytest.mark.parametrize(
    "value", ["", "many", "-1", "1e9", "7.5", "76,80", "76 80", "\xb2", "9" * 40, ";w=21600"]
)
async def test_odd_values_are_ignored(registry: FakeRegistry, tmp_path: Path, value: str) -> None:
    registry.add_image(APP)
    registry.fail(Header("ratelimit-remaining", value), Header("ratelimit-limit", "100"), times=2)
    registry.fail(Header("ratelimit-remaining", "7"), Header("ratelimit-limit", value))
    async with mirroring(tmp_path, {"hub.test": upstream(registry)}) as house:
        assert (await house.get(TAG)).status == 200
        assert f"{REMAINING}{{".encode() not in (await house.get("/metrics")).body
        assert (await house.get(TAG)).status == 200
        page = (await house.get("/metrics")).body
        assert f"{REMAINING}{{".encode() in page
        assert f"{LIMIT}{{".encode() not in page


class AnyAccount(Auth):
    """Lets in whoever gives a name."""

    def refuse(self, seen: Seen, door: Door) -> Answer | None:
        return None if read_basic(seen.authorization) else BasicAuth("", "").refuse(seen, door)


class MeteredRegistry(FakeRegistry):
    """Each account has pulls of its own."""

    def __init__(self, **left: int) -> None:
        super().__init__()
        self.auth = AnyAccount()
        self.left = left

    def respond(self, seen: Seen) -> tuple[Answer, Delivery]:
        answer, delivery = super().respond(seen)
        account, _ = read_basic(seen.authorization) or ("", "")
        if account and seen.kind == "manifest":
            self.left[account] -= seen.method == "GET"
            answer.headers["ratelimit-remaining"] = f"{self.left[account]};w=21600"
        return answer, delivery


class RefusingAlice(FakeRegistry):
    """429 for one account, without a word of what is left."""

    def __init__(self, retry_after: str | None) -> None:
        super().__init__()
        self.auth = AnyAccount()
        self.retry_after = retry_after

    def respond(self, seen: Seen) -> tuple[Answer, Delivery]:
        answer, delivery = super().respond(seen)
        if read_basic(seen.authorization) == ("alice", "alice"):
            answer = error(429, "TOOMANYREQUESTS", "slower")
            if self.retry_after is not None:
                answer.headers["Retry-After"] = self.retry_after
        return answer, delivery


@pytest.mark.parametrize("retry_after", [None, "60", "Wed, 21 Oct 2065 07:28:00 GMT", "985.86µs"])
async def test_an_account_that_was_refused_is_left_alone(
    tmp_path: Path, retry_after: str | None
) -> None:
    async with RefusingAlice(retry_after) as registry:
        registry.add_image(APP)
        described = upstream(registry, "alice", "bob")
        async with mirroring(tmp_path, {"hub.test": described}) as house:
            assert [(await house.get(TAG)).status for _ in range(3)] == [429, 200, 200]


def test_an_account_that_was_refused_is_asked_again_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    limits = RateLimits("hub.test", Metrics())
    limits.note("alice", 429, {"Retry-After": "7"})
    now += 6.9
    assert limits.remaining("alice") == 0
    now += 0.2
    assert limits.remaining("alice") == float("inf")


async def test_the_account_with_more_pulls_left_is_used(tmp_path: Path) -> None:
    async with MeteredRegistry(alice=20, bob=8) as registry:
        for number in range(11):
            registry.add_image(APP, str(number), [b"%d" % number])
        described = upstream(registry, "alice", "bob")
        async with mirroring(tmp_path, {"hub.test": described}) as house:
            for number in range(11):
                path = f"/v2/hub.test/{APP}/manifests/{number}"
                assert (await house.get(path)).status == 200
            assert (await gauges(house, "alice"))[0] == registry.left["alice"]
            assert (await gauges(house, "bob"))[0] == registry.left["bob"]
        # One pull of bob's went by before it was known what he has left.
        assert sum(registry.left.values()) == 17
        assert registry.left["bob"] >= 7
