"""What upstreams tell about pulls left: shown, and used to choose an account."""

import asyncio
from collections import Counter
from math import inf
from pathlib import Path

import pytest
from yarl import URL

from mirror.allowance import Allowance
from mirror.metrics import Metrics
from mirror.upstream.definition import Account, Upstream
from mirror.upstream.ratelimit import RateLimits
from tests.fakes.answers import error
from tests.fakes.auth import Auth, BasicAuth, Door, basic, read_basic
from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.delivery import Answer, Delivery
from tests.fakes.faults import Header, Stall, Status
from tests.fakes.ratelimit import RateLimit
from tests.fakes.registry import FakeRegistry
from tests.fakes.seen import Seen
from tests.support.clocks import Clocks
from tests.support.house import House, mirroring
from tests.support.replies import is_stale, message_of

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
            assert [(await house.get(TAG)).status for _ in range(3)] == [200, 200, 200]
        as_alice = [s for s in registry.requests if s.authorization == basic("alice", "alice")]
        assert len(as_alice) == 1


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


# --- One allowance --------------------------------------------------------------------------------

WALL = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT
NONE_LEFT = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}
SOME_LEFT = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "9;w=21600"}


@pytest.mark.parametrize(
    ("headers", "rest_seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "Fri, 15 Jan 2027 08:02:00 GMT"}, 120),
        ({"Retry-After": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0),
        ({"Retry-After": "Fri, 15 Jan 2047 08:00:00 GMT"}, 86400),
        ({"Retry-After": "999999"}, 86400),
        ({"Retry-After": "985.86µs"}, 60),
        ({}, 60),
        (SOME_LEFT, 60),
        (NONE_LEFT, 21600),
        ({**NONE_LEFT, "Retry-After": "30"}, 30),
        ({"ratelimit-remaining": "0"}, 60),
    ],
    ids=str,
)
def test_how_long_an_account_rests_after_a_429(
    headers: dict[str, str], rest_seconds: float
) -> None:
    allowance = Allowance()
    allowance.hear(429, headers, 1000, WALL)
    assert allowance.rest_seconds(1000) == rest_seconds
    assert allowance.rest_seconds(1000 + rest_seconds) == 0


def test_a_window_counts_from_its_first_pull() -> None:
    allowance = Allowance()
    for seconds, left in ((0, 50), (1000, 20), (20_000, 0)):
        told = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": f"{left};w=21600"}
        allowance.hear(200, told, 1000 + seconds, WALL)
    allowance.hear(429, NONE_LEFT, 22_000, WALL)
    assert allowance.rest_seconds(22_000) == 600
    assert allowance.left(22_599) == 0
    assert allowance.left(22_600) == inf, "what was heard in a window that is over counts no more"


def test_what_is_told_of_an_allowance() -> None:
    allowance = Allowance()
    assert allowance.told(1000) == "an unknown number of pulls left"
    allowance.hear(200, {**SOME_LEFT, "docker-ratelimit-source": "192.0.2.7"}, 1000, WALL)
    assert allowance.told(1000) == "9 of 100 pulls left (counted as 192.0.2.7)"
    allowance.hear(429, {**NONE_LEFT, "docker-ratelimit-source": "<b>"}, 1100, WALL)
    assert allowance.told(1100) == "0 of 100 pulls left, back in 5 h 59 min"
    assert allowance.told(22_000) == "0 of 100 pulls left, back in 10 min"
    assert allowance.told(22_590) == "0 of 100 pulls left, back in 10 s"


@pytest.mark.parametrize(
    ("wall_seconds_later", "left", "rest_seconds"),
    [(60, 0, 540), (599, 0, 1), (601, 9, 0), (21_599, 9, 0), (21_601, None, 0), (-9e9, 0, 86400)],
)
def test_an_allowance_is_remembered_until_its_window_ends(
    wall_seconds_later: float, left: float | None, rest_seconds: float
) -> None:
    allowance = Allowance()
    allowance.hear(429, {**SOME_LEFT, "Retry-After": "600"}, 1000, WALL)
    remembered = allowance.remembered("hub.test", "http://hub.test", "alice", 1000, WALL)
    recalled = Allowance.recalled(remembered, 5.0, WALL + wall_seconds_later)
    assert (recalled and recalled.left(5.0)) == left
    assert (recalled.rest_seconds(5.0) if recalled else 0) == pytest.approx(rest_seconds)


@pytest.mark.parametrize(
    ("left", "factor"),
    [
        ([100], 1),
        ([50], 1),
        ([49], 2),
        ([25], 2),
        ([24], 4),
        ([10], 4),
        ([9], 12),
        ([0], 12),
        ([0, 100], 1),
        ([10, 30], 4),
        ([], 1),
    ],
)
def test_tags_live_longer_the_fewer_pulls_are_left(left: list[int], factor: int) -> None:
    endpoint, now = URL("http://hub.test"), 1000.0
    accounts = tuple(Account(f"user{number}", lambda: "") for number in range(len(left)))
    limits = RateLimits(Upstream("hub.test", (endpoint,), accounts), Metrics(), lambda: now)
    assert limits.ttl_factor == 1
    for account, count in zip(accounts, left, strict=True):
        told = {"ratelimit-limit": "100;w=60", "ratelimit-remaining": f"{count};w=60"}
        limits.note(endpoint, account.username, 200, told)
    assert limits.ttl_factor == factor
    limits.note(endpoint, "anonymous", 429, {})
    assert limits.ttl_factor == factor, "nobody told the limit of the bare address"
    now += 60
    assert limits.ttl_factor == 1, "a window that is over"


def test_an_account_that_rests_does_not_count_as_left() -> None:
    endpoint = URL("http://hub.test")
    limits = RateLimits(Upstream("hub.test", (endpoint,)), Metrics(), lambda: 1000.0)
    limits.note(endpoint, "alice", 200, {"ratelimit-limit": "100", "ratelimit-remaining": "20"})
    limits.note(endpoint, "bob", 429, {"ratelimit-limit": "100", "ratelimit-remaining": "90"})
    assert limits.ttl_factor == 4
    limits.note(endpoint, "alice", 429, {})
    assert limits.ttl_factor == 12


async def test_an_account_that_rests_is_asked_again_in_time(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    registry.fail(Status(429, {"Retry-After": "1"}), times=1)
    async with mirroring(tmp_path, {"hub.test": upstream(registry)}) as house:
        answer = await house.get(TAG)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert (await house.get(TAG)).status == 429
        assert registry.count() == 1, "nobody is asked while all rest"
        await house.get_until(TAG, lambda answer: answer.status == 200)
        assert await house.metric("mirror_ratelimit_reset_seconds") == 0


async def test_a_resting_endpoint_does_not_keep_the_next_one_from_being_asked(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.fail(Status(429))
    async with FakeRegistry() as second:
        second.add_image(APP)
        described = {"endpoints": [registry.url, second.url], "tag_ttl": "0s"}
        async with mirroring(tmp_path, {"hub.test": described}) as house:
            for _ in range(3):
                assert (await house.get(TAG)).status == 200
    assert registry.count() == 1


# --- The floor ------------------------------------------------------------------------------------

BACKGROUND = {"Priority": "u=7"}


def test_the_background_comes_back_when_the_rest_is_over_too() -> None:
    endpoint, now = URL("http://hub.test"), 1000.0
    limits = RateLimits(Upstream("hub.test", (endpoint,)), Metrics(), lambda: now)
    told = {"ratelimit-limit": "100;w=60", "ratelimit-remaining": "0;w=60", "Retry-After": "900"}
    limits.note(endpoint, "anonymous", 429, told)
    now += 100  # its window is over, its rest is not
    kept = limits.kept_from_background()
    assert kept is not None
    assert kept.headers["Retry-After"] == "800"


def path_of(tag: str) -> str:
    return f"/v2/hub.test/{APP}/manifests/{tag}"


async def test_the_last_pulls_are_not_for_the_background(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    for number in range(40):
        registry.add_image(APP, f"t{number}", [b"%d" % number])
    registry.ratelimit = RateLimit(limit=100, remaining=30)
    async with mirroring(tmp_path, {"hub.test": upstream(registry)}) as house:
        paths = [path_of(f"t{number}") for number in range(40)]
        seeded = await asyncio.gather(*(house.get(path, BACKGROUND) for path in paths))
        assert Counter(answer.status for answer in seeded) == {200: 11, 429: 29}
        assert registry.ratelimit.remaining == 19, "however many come at once"
        refused = next(answer for answer in seeded if answer.status == 429)
        assert "19 of 100 pulls left" in message_of(refused)
        assert "Priority: u=7" in message_of(refused)
        assert 21_000 < int(refused.headers["Retry-After"]) <= 21_600

        asked = registry.count()
        had = seeded.index(next(answer for answer in seeded if answer.status == 200))
        again = await house.get(paths[had], BACKGROUND)
        assert (again.status, is_stale(again)) == (200, True), "what is here is served"
        digest = again.headers["Docker-Content-Digest"]
        assert (await house.get(path_of(digest), BACKGROUND)).status == 200
        assert registry.count() == asked

        missed = seeded.index(refused)
        assert (await house.get(paths[missed])).status == 200, "somebody waits for this one"
        assert registry.ratelimit.remaining == 18


async def test_what_is_here_does_not_wait_for_what_is_not(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    registry.add_image(APP, "slow", [b"slow"])
    described = {**upstream(registry), "tag_ttl": "10m"}
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        digest = (await house.get(TAG)).headers["Docker-Content-Digest"]
        stall = Stall(-1)
        registry.fail(stall, kind="manifest")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(house.get(path_of("slow"), BACKGROUND))
            await registry.until(lambda: any(seen.held for seen in registry.requests))
            for path in (TAG, path_of(digest)):
                async with asyncio.timeout(SOON_SECONDS):
                    assert (await house.get(path, BACKGROUND)).status == 200
            registry.release()


async def test_without_a_limit_the_background_gets_everything(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image(APP)
    async with mirroring(tmp_path, {"hub.test": upstream(registry)}) as house:
        assert (await house.get(TAG, BACKGROUND)).status == 200


@pytest.mark.parametrize(
    ("priority", "status"),
    [
        ("u=7", 429),
        ("i, u=7", 429),
        ("u=7;x=1,i", 429),
        ("u=6", 200),
        ("u=77", 200),
        ("mu=7", 200),
        ("", 200),
    ],
)
async def test_which_pulls_are_in_the_background(
    registry: FakeRegistry, tmp_path: Path, priority: str, status: int
) -> None:
    registry.add_image(APP)
    registry.add_image(APP, "next", [b"next"])
    registry.ratelimit = RateLimit(limit=100, remaining=11)
    async with mirroring(tmp_path, {"hub.test": upstream(registry)}) as house:
        assert (await house.get(TAG)).status == 200
        answer = await house.get(path_of("next"), {"Priority": priority})
        assert answer.status == status


# --- Tags -----------------------------------------------------------------------------------------


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr("mirror.proxy.tags.time", clocks)
    return clocks


@pytest.mark.parametrize(("left", "factor"), [(100, 1), (31, 2), (21, 4), (6, 12)])
async def test_a_tag_is_used_for_longer_while_few_pulls_are_left(
    registry: FakeRegistry, tmp_path: Path, clocks: Clocks, left: int, factor: int
) -> None:
    registry.add_image(APP)
    registry.ratelimit = RateLimit(limit=100, remaining=left)
    described = {**upstream(registry), "tag_ttl": "10m"}
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        assert (await house.get(TAG)).status == 200
        registry.forget()
        clocks.ahead_seconds += 600 * factor - 60
        assert (await house.get(TAG)).status == 200
        assert registry.count() == 0
        clocks.ahead_seconds += 120
        assert (await house.get(TAG)).status == 200
        assert registry.count("HEAD") == 1


@pytest.mark.parametrize("jump_seconds", [10 * 365 * 86400, -10 * 365 * 86400])
async def test_a_wall_clock_that_jumps_neither_expires_a_tag_nor_keeps_it(
    registry: FakeRegistry, tmp_path: Path, clocks: Clocks, jump_seconds: float
) -> None:
    registry.add_image(APP)
    described = {**upstream(registry), "tag_ttl": "10m", "stale_for": "1h"}
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        await house.get(TAG)
        registry.forget()
        clocks.jumped_seconds = jump_seconds
        clocks.ahead_seconds = 540
        assert (await house.get(TAG)).status == 200
        assert registry.count() == 0, "still fresh"
        await registry.stop()
        clocks.ahead_seconds = 1200
        answer = await house.get(TAG)
        assert is_stale(answer)
        assert 1200 <= int(answer.headers["Age"]) < 1300
        clocks.ahead_seconds = 3700
        assert (await house.get(TAG)).status == 504, "too old to stand in"


async def test_a_tag_that_was_checked_in_the_future_is_due_and_new(
    registry: FakeRegistry, tmp_path: Path, clocks: Clocks
) -> None:
    registry.add_image(APP)
    described = {**upstream(registry), "tag_ttl": "10m", "stale_for": "1h"}
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        await house.get(TAG)
    clocks.jumped_seconds = -86400
    registry.forget()
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        await house.get(TAG)
        assert registry.count("HEAD") == 1
    clocks.jumped_seconds -= 86400
    await registry.stop()
    async with mirroring(tmp_path, {"hub.test": described}) as house:
        answer = await house.get(TAG)
        assert is_stale(answer)
        assert answer.headers["Age"] == "0"
