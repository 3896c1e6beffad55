"""What excuses a 403 in a soak, and what does not."""

from pathlib import Path

import pytest
from multidict import CIMultiDict

from tests.fakes.client import raw_get
from tests.fakes.delivery import Answer
from tests.fakes.seen import Seen
from tests.soak.clients import UPSTREAM
from tests.soak.plan import Ware
from tests.soak.revocations import Excuses, Revocations
from tests.soak.upstream import SoakRegistry
from tests.support.house import mirroring
from tests.support.layers import add_layer

PATH, OTHER = "/v2/org/app/blobs/sha256:1", "/v2/org/app/blobs/sha256:2"
FIRST, SECOND = "Bearer first", "Bearer second"
TOLD = b'{"errors":[{"code":"DENIED","message":"hub: answered 401 for %b (UNAUTHORIZED); asked"}]}'


@pytest.fixture
def revocations() -> Revocations:
    """Of which the first token is revoked already, as one that waits to be renewed."""
    revocations = Revocations()
    revocations.revoke(["first"])
    return revocations


@pytest.mark.parametrize("presented", [FIRST, None])
def test_a_second_token_that_was_revoked_meanwhile_explains_it(
    presented: str | None, revocations: Revocations
) -> None:
    since = revocations.now()
    revocations.refuse(PATH, presented)
    revocations.revoke(["second"])
    revocations.refuse(PATH, SECOND)
    assert revocations.explain(PATH, since)
    assert not revocations.explain(OTHER, since)


@pytest.mark.parametrize(
    ("refused", "revoked"),
    [
        ([], ["second"]),
        ([(PATH, SECOND)], ["second"]),  # it was not renewed
        ([(PATH, SECOND), (PATH, SECOND)], ["second"]),
        ([(PATH, SECOND), (PATH, FIRST)], ["second"]),
        ([(PATH, FIRST), (PATH, SECOND)], []),  # expired, or never issued
        ([(PATH, FIRST), (PATH, None)], ["second"]),
        ([(OTHER, FIRST), (PATH, SECOND)], ["second"]),
        ([(PATH, FIRST), (OTHER, SECOND)], ["second"]),
    ],
)
def test_nothing_else_explains_it(
    refused: list[tuple[str, str | None]], revoked: list[str], revocations: Revocations
) -> None:
    since = revocations.now()
    revocations.revoke(revoked)
    for path, authorization in refused:
        revocations.refuse(path, authorization)
    assert not revocations.explain(PATH, since)


def test_what_was_revoked_before_does_not_explain_it(revocations: Revocations) -> None:
    revocations.revoke(["second"])
    since = revocations.now()
    revocations.refuse(PATH, FIRST)
    revocations.refuse(PATH, SECOND)
    assert not revocations.explain(PATH, since)


def test_what_was_refused_before_does_not_explain_it(revocations: Revocations) -> None:
    revocations.refuse(PATH, FIRST)
    since = revocations.now()
    revocations.revoke(["second"])
    revocations.refuse(PATH, SECOND)
    assert not revocations.explain(PATH, since)


def refuse_twice(revocations: Revocations) -> None:
    revocations.refuse(PATH, FIRST)
    revocations.revoke(["second"])
    revocations.refuse(PATH, SECOND)


@pytest.mark.parametrize(
    ("body", "excused"),
    [
        (TOLD % PATH.encode(), True),
        (TOLD % OTHER.encode(), False),
        ((TOLD % PATH.encode()).replace(b"401", b"403"), False),
        (b"not open to you", False),
        (b"", True),  # after HEAD
    ],
)
def test_the_403_has_to_tell_of_that_401(
    body: bytes, excused: bool, revocations: Revocations
) -> None:
    excuses = Excuses(revocations)
    with excuses.asking("here"):
        refuse_twice(revocations)
    assert excuses.excuse("here", [PATH], body) == excused


def test_clients_that_ask_for_the_same_at_once_count_as_one_request(
    revocations: Revocations,
) -> None:
    excuses = Excuses(revocations)
    with excuses.asking("here"):
        refuse_twice(revocations)
        with excuses.asking("here"), excuses.asking("there"):
            pass
    assert excuses.excuse("here", [PATH], b"")
    assert not excuses.excuse("there", [PATH], b"")
    with excuses.asking("here"):
        pass
    assert not excuses.excuse("here", [PATH], b"")


async def test_a_tag_stands_for_all_that_it_ever_was() -> None:
    async with SoakRegistry() as registry:
        for number in range(2):
            registry.stock(Ware("org/app", "t", f"seed {number}", (1000,)))
        digests = registry.tagged["org/app", "t"]
        assert len(digests) == 2
        folder = "/v2/org/app/manifests"
        behind = {f"{folder}/t", *(f"{folder}/{digest}" for digest in digests)}
        assert set(registry.paths_behind(f"{folder}/t")) == behind
        assert registry.paths_behind(PATH) == [PATH]


class HastyRegistry(SoakRegistry):
    """Revokes each token before it can be used."""

    def _answer(self, seen: Seen, headers: CIMultiDict[str]) -> Answer:
        answer = super()._answer(seen, headers)
        if seen.kind == "token":
            self.revoke_tokens()
        return answer


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_mirror_whose_tokens_are_revoked_on_their_way_is_excused(
    method: str, tmp_path: Path
) -> None:
    async with HastyRegistry() as registry, mirroring(tmp_path, {UPSTREAM: registry}) as house:
        path = add_layer(registry, b"a layer")
        excuses = Excuses(registry.revocations)
        upstream_path = path.replace(f"/{UPSTREAM}", "")
        with excuses.asking(path):
            answer = await raw_get(house.url + path, method=method)
        assert answer.status == 403
        assert excuses.excuse(path, [upstream_path], answer.body)
