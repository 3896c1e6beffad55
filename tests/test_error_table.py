"""What a client is told, by what the upstream says, what is asked, and what is remembered."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.auth import BasicAuth
from tests.fakes.client import RawResponse
from tests.fakes.deadline import DEADLINE_SECONDS, SOON_SECONDS
from tests.fakes.faults import Fault, Garbage, HangUp, Reset, Stall, Status, WrongByte
from tests.fakes.images import OCI_INDEX, Image, make_image
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring
from tests.support.replies import error_of, is_stale, json_of, message_of

APP = "library/app"
LATEST = "/v2/app/manifests/latest"
LAYER = bytes(range(256)) * 64
IMAGE = make_image([LAYER], b"{}")


@dataclass(frozen=True)
class Said:
    """What the upstream says, and what the client is to be told when nothing is cached."""

    faults: tuple[Fault, ...]
    status: int
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    # Whether what is remembered stands in.
    stale: bool = False

    @property
    def answered(self) -> int:
        """The upstream's status, 0 if it gave none."""
        first = self.faults[0]
        return first.code if isinstance(first, Status) else 0


CHALLENGE = {"WWW-Authenticate": 'Basic realm="upstream"'}
DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
FAILS = {
    "401": Said((Status(401, CHALLENGE),), 403, "DENIED"),
    "401 without a challenge": Said((Status(401),), 403, "DENIED"),
    "403": Said((Status(403, CHALLENGE),), 403, "DENIED"),
    "429": Said((Status(429),), 429, "TOOMANYREQUESTS", {"Retry-After": "60"}, stale=True),
    "429 with seconds": Said(
        (Status(429, {"Retry-After": "7"}),),
        429,
        "TOOMANYREQUESTS",
        {"Retry-After": "7"},
        stale=True,
    ),
    "429 with a date": Said(
        (Status(429, {"Retry-After": DATE}),),
        429,
        "TOOMANYREQUESTS",
        {"Retry-After": DATE},
        stale=True,
    ),
    "429 with nonsense": Said(
        (Status(429, {"Retry-After": "985.86µs"}),),
        429,
        "TOOMANYREQUESTS",
        {"Retry-After": "60"},
        stale=True,
    ),
    "500": Said((Status(500),), 502, "UNKNOWN", stale=True),
    "502": Said((Status(502, {}, b"<html>bad gateway</html>"),), 502, "UNKNOWN", stale=True),
    "503": Said((Status(503, {"Retry-After": "7"}),), 502, "UNKNOWN", stale=True),
    "an unheard-of status": Said((Status(599),), 502, "UNKNOWN", stale=True),
    "a redirect to nowhere": Said((Status(302),), 502, "UNKNOWN", stale=True),
    "silence": Said((Stall(-1),), 504, "UNAVAILABLE", stale=True),
    "hang-up": Said((HangUp(),), 504, "UNAVAILABLE", stale=True),
    "reset": Said((Reset(-1),), 504, "UNAVAILABLE", stale=True),
}
GONE = Said((Status(404),), 404)
NONSENSE = Said((Garbage(),), 502, "UNKNOWN", stale=True)
SPOILT = Said((WrongByte(20),), 502, "UNKNOWN", stale=True)

QUESTIONS = {
    "tag": LATEST,
    "digest": f"/v2/app/manifests/{IMAGE.digest}",
    "blob": f"/v2/app/blobs/{IMAGE.layers[0]}",
    "tags": "/v2/app/tags/list",
    "referrers": f"/v2/app/referrers/{IMAGE.digest}",
}
MISSING = {
    "tag": "MANIFEST_UNKNOWN",
    "digest": "MANIFEST_UNKNOWN",
    "blob": "BLOB_UNKNOWN",
    "tags": "NAME_UNKNOWN",
}
METHODS = ["GET", "HEAD"]


@pytest.fixture
def upstream(registry: FakeRegistry) -> FakeRegistry:
    image = registry.add_image(APP, layers=[LAYER])
    # Under the digests that QUESTIONS name.
    registry.add_blob(APP, b"{}")
    registry.add_manifest(APP, IMAGE.manifest, IMAGE.media_type, "latest")
    registry.remove_manifest(APP, image.digest)
    return registry


def impatient(registry: FakeRegistry, **settings: object) -> dict[str, Any]:
    """An upstream that is given up soon, and whose tags are always due."""
    times = {"connect_timeout": "1s", "idle_timeout": "300ms", "tag_ttl": "0s"}
    return {"endpoints": [registry.url], **times, **settings}


async def remembered(mirror: House) -> None:
    """The tag; on a machine that stands still it may take a second try."""
    await mirror.get_until(LATEST, lambda answer: answer.status == 200)


def asking(mirror: House, method: str) -> Callable[[str], Awaitable[RawResponse]]:
    return mirror.get if method == "GET" else mirror.head


def check_error(answer: RawResponse, said: Said, method: str = "GET") -> None:
    assert (answer.status, answer.ended) == (said.status, "complete")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["OCI-Namespace"] == "docker.io"
    assert "WWW-Authenticate" not in answer.headers
    assert answer.headers.get("Retry-After") == said.headers.get("Retry-After")
    assert "Warning" not in answer.headers
    if method == "GET":
        assert error_of(answer) == (said.status, said.code)
        assert message_of(answer).startswith("docker.io: ")


@pytest.mark.parametrize("case", FAILS)
async def test_nothing_cached_and_the_upstream_fails(
    upstream: FakeRegistry, tmp_path: Path, case: str
) -> None:
    said = FAILS[case]
    upstream.fail(*said.faults)
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        for method in METHODS:
            ask = asking(mirror, method)
            for answer in await asyncio.gather(*map(ask, QUESTIONS.values())):
                check_error(answer, said, method)
                if method == "GET" and (answered := said.answered) not in (0, 302, 401):
                    assert f"answered {answered} for " in message_of(answer)
        assert mirror.stored_blobs() == set()


@pytest.mark.parametrize("question", QUESTIONS)
async def test_nothing_cached_and_the_upstream_is_down(
    upstream: FakeRegistry, tmp_path: Path, question: str
) -> None:
    await upstream.stop()
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        refused = Said((), 504, "UNAVAILABLE")
        answer = await mirror.get(QUESTIONS[question])
        check_error(answer, refused)
        assert "Cached content is still served" in message_of(answer)
        check_error(await mirror.head(QUESTIONS[question]), refused, "HEAD")
        await upstream.start()
        await mirror.get_until(QUESTIONS[question], lambda answer: answer.status == 200)


async def test_nothing_cached_and_the_upstream_has_none(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    upstream.fail(*GONE.faults)
    forgetful = impatient(upstream, not_found_ttl="0s")
    async with mirroring(tmp_path, {"docker.io": forgetful}) as mirror:
        for question, code in MISSING.items():
            gone = Said((), 404, code)
            answer = await mirror.get(QUESTIONS[question])
            check_error(answer, gone)
            assert "answered 404 for " in message_of(answer)
            check_error(await mirror.head(QUESTIONS[question]), gone, "HEAD")


@pytest.mark.parametrize("question", ["tag", "digest", "blob", "tags", "referrers"])
async def test_nothing_cached_and_the_upstream_sends_a_web_page(
    upstream: FakeRegistry, tmp_path: Path, question: str
) -> None:
    upstream.fail(*NONSENSE.faults)
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        check_error(await mirror.head(QUESTIONS[question]), NONSENSE, "HEAD")
        check_error(await mirror.get(QUESTIONS[question]), NONSENSE)
        assert mirror.stored_blobs() == set()
        upstream.heal()
        assert (await mirror.get(QUESTIONS[question])).status == 200


@pytest.mark.parametrize("question", ["tag", "digest"])
async def test_nothing_cached_and_the_upstream_sends_other_bytes(
    upstream: FakeRegistry, tmp_path: Path, question: str
) -> None:
    upstream.fail(*SPOILT.faults)
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        check_error(await mirror.get(QUESTIONS[question]), SPOILT)
        assert await mirror.metric("mirror_digest_mismatches_total", upstream="docker.io") == 1
        assert mirror.stored_blobs() == set()
        upstream.heal()
        assert (await mirror.get(QUESTIONS[question])).body == IMAGE.manifest


async def test_a_blob_that_turns_out_wrong_is_never_whole(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    """Its headers are out when that shows: the answer ends short, or, where all of it was held
    back, is an error.
    """
    upstream.fail(*SPOILT.faults)
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        answer = await mirror.get(QUESTIONS["blob"])
        assert answer.status == 502 or answer.ended == "short"
        assert await mirror.metric("mirror_digest_mismatches_total", upstream="docker.io") == 1
        assert mirror.stored_blobs() == set()
        upstream.heal()
        assert (await mirror.get(QUESTIONS["blob"])).body == LAYER


async def test_a_web_page_for_the_head_of_a_blob_is_not_believed(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    upstream.fail(Garbage(), times=1)
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        check_error(await mirror.head(QUESTIONS["blob"]), NONSENSE, "HEAD")
        head = await mirror.head(QUESTIONS["blob"])
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(LAYER)))


@pytest.mark.parametrize("case", [*FAILS, "a web page"])
async def test_a_tag_is_remembered_and_the_upstream_fails(
    upstream: FakeRegistry, tmp_path: Path, case: str
) -> None:
    said = FAILS.get(case, NONSENSE)
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        await remembered(mirror)
        upstream.fail(*said.faults)
        for method in METHODS:
            answer = await asking(mirror, method)(LATEST)
            if said.stale:
                check_stale(answer, IMAGE, method)
            else:
                check_error(answer, said, method)
        stale = await mirror.metric("mirror_requests_total", cache="stale", status="200")
        assert stale == 2 * said.stale


def check_stale(answer: RawResponse, image: Image, method: str = "GET") -> None:
    assert (answer.status, is_stale(answer)) == (200, True)
    assert answer.headers["Docker-Content-Digest"] == image.digest
    assert answer.headers["Content-Type"] == image.media_type
    assert answer.headers["Content-Length"] == str(len(image.manifest))
    assert answer.headers["OCI-Namespace"] == "docker.io"
    assert 0 <= int(answer.headers["Age"]) < 60
    assert answer.body == (image.manifest if method == "GET" else b"")


@pytest.mark.parametrize("method", METHODS)
async def test_a_tag_is_remembered_and_the_upstream_is_down(
    upstream: FakeRegistry, tmp_path: Path, method: str
) -> None:
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        await remembered(mirror)
        await upstream.stop()
        check_stale(await asking(mirror, method)(LATEST), IMAGE, method)
        await upstream.start()
        await mirror.get_until(LATEST, lambda answer: not is_stale(answer))


@pytest.mark.parametrize("method", METHODS)
async def test_a_tag_is_remembered_and_has_moved_to_other_bytes(
    upstream: FakeRegistry, tmp_path: Path, method: str
) -> None:
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        await remembered(mirror)
        upstream.add_image(APP, layers=[b"new"])
        upstream.fail(*SPOILT.faults)
        check_stale(await asking(mirror, method)(LATEST), IMAGE, method)
        assert await mirror.metric("mirror_digest_mismatches_total", upstream="docker.io") == 1


@pytest.mark.parametrize("method", METHODS)
async def test_a_tag_is_remembered_and_the_upstream_has_none(
    upstream: FakeRegistry, tmp_path: Path, method: str
) -> None:
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        await remembered(mirror)
        upstream.untag(APP, "latest")
        gone = Said((), 404, "MANIFEST_UNKNOWN")
        check_error(await asking(mirror, method)(LATEST), gone, method)


@pytest.mark.usefixtures("hurried")
async def test_a_silent_upstream_is_not_waited_for_and_counts_when_it_comes_back(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    patient = impatient(upstream, idle_timeout="1m", tag_ttl="0s")
    async with mirroring(tmp_path, {"docker.io": patient}) as mirror:
        await remembered(mirror)
        moved = upstream.add_image(APP, layers=[b"new"])
        upstream.fail(Stall(-1))
        async with asyncio.timeout(SOON_SECONDS):
            check_stale(await mirror.get(LATEST), IMAGE)
            check_stale(await mirror.get(LATEST), IMAGE)
        assert upstream.count("HEAD", "manifest") == 2, "one question for both"
        upstream.heal()
        upstream.release()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while is_stale(answer := await mirror.get(LATEST)):
                pass
        assert answer.body == moved.manifest


async def test_what_is_cached_by_digest_needs_no_upstream(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    paths = {
        QUESTIONS["digest"]: IMAGE.manifest,
        QUESTIONS["blob"]: LAYER,
        f"/v2/app/blobs/{IMAGE.config}": b"{}",
    }
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        for path in paths:
            await mirror.get(path)
        for said in (*FAILS.values(), GONE, NONSENSE, SPOILT):
            upstream.heal()
            upstream.fail(*said.faults)
            upstream.forget()
            for path, body in paths.items():
                assert (await mirror.get(path)).body == body
                head = await mirror.head(path)
                assert (head.status, head.headers["Content-Length"]) == (200, str(len(body)))
            assert upstream.count() == 0


@pytest.mark.parametrize("question", ["digest", "blob"])
async def test_a_404_is_remembered_by_digest_too(
    upstream: FakeRegistry, tmp_path: Path, question: str
) -> None:
    upstream.fail(Status(404), times=1)
    kept = impatient(upstream, not_found_ttl="1h")
    async with mirroring(tmp_path, {"docker.io": kept}) as mirror:
        for method in ("GET", "HEAD", "GET"):
            assert (await asking(mirror, method)(QUESTIONS[question])).status == 404
        assert upstream.count() == 1
    async with mirroring(tmp_path, {"docker.io": kept}) as mirror:
        assert (await mirror.get(QUESTIONS[question])).status == 200, "but not for ever"


class TestTwoEndpoints:
    @pytest.fixture
    async def first(self) -> Any:
        async with FakeRegistry() as first:
            yield first

    @pytest.mark.parametrize("case", ["down", "500", "404", "403", "hang-up"])
    async def test_the_second_is_asked_where_the_first_has_no_answer(
        self, upstream: FakeRegistry, first: FakeRegistry, tmp_path: Path, case: str
    ) -> None:
        if case == "down":
            await first.stop()
        else:
            first.fail(*(GONE if case == "404" else FAILS[case]).faults)
        both = impatient(upstream, endpoints=[first.url, upstream.url])
        async with mirroring(tmp_path, {"docker.io": both}) as mirror:
            for path in QUESTIONS.values():
                assert (await mirror.get(path)).status == 200

    @pytest.mark.parametrize(
        ("faults", "expected"),
        [
            ((Status(404), Status(404)), (404, "MANIFEST_UNKNOWN")),
            ((Status(404), Status(500)), (502, "UNKNOWN")),
            ((Status(500), Status(404)), (502, "UNKNOWN")),
            ((Status(404), HangUp()), (504, "UNAVAILABLE")),
            ((Status(404), Status(429)), (429, "TOOMANYREQUESTS")),
        ],
    )
    async def test_a_404_counts_only_when_no_endpoint_failed(
        self,
        upstream: FakeRegistry,
        first: FakeRegistry,
        tmp_path: Path,
        faults: tuple[Fault, Fault],
        expected: tuple[int, str],
    ) -> None:
        both = impatient(upstream, endpoints=[first.url, upstream.url])
        async with mirroring(tmp_path, {"docker.io": both}) as mirror:
            first.fail(faults[0])
            rule = upstream.fail(faults[1])
            assert error_of(await mirror.get(LATEST)) == expected
            assert rule.used


async def test_messages_hold_no_secret_and_say_what_to_do(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    upstream.auth = BasicAuth("alice", "right")
    login = {"username": "alice", "password": "hunter2-wrong"}
    async with mirroring(
        tmp_path, {"docker.io": impatient(upstream, credentials=[login])}
    ) as mirror:
        answer = await mirror.get("/v2/app/tags/list?last=query-secret")
        assert error_of(answer) == (403, "DENIED")
        assert "alice" in message_of(answer)
        assert "password" in message_of(answer) or "credential" in message_of(answer)
        upstream.fail(Status(500), before_auth=True)
        broken = await mirror.get("/v2/app/tags/list?last=query-secret")
        assert error_of(broken) == (502, "UNKNOWN")
        for each in (answer, broken):
            assert b"hunter2" not in each.body
            assert b"query-secret" not in each.body


async def test_what_the_upstream_says_is_told_on(upstream: FakeRegistry, tmp_path: Path) -> None:
    said = b'{"errors": [{"code": "DENIED", "message": "pay first\\u0007"}]}'
    upstream.fail(Status(403, {"Content-Type": "application/json"}, said))
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        message = message_of(await mirror.get(QUESTIONS["digest"]))
        assert "pay first" in message
        assert "credentials" in message
        assert message.isprintable()


async def test_an_upstream_without_referrers_has_an_empty_list(
    upstream: FakeRegistry, tmp_path: Path
) -> None:
    upstream.fail(*GONE.faults)
    async with mirroring(tmp_path, {"docker.io": impatient(upstream)}) as mirror:
        answer = await mirror.get(QUESTIONS["referrers"])
        assert (answer.status, answer.headers["Content-Type"]) == (200, OCI_INDEX)
        assert json_of(answer)["manifests"] == []
