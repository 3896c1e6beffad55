"""WWW-Authenticate as registries send it, and as no registry should."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.upstream.challenge import MAX_CHALLENGE_CHARACTERS, Challenge, parse_challenges

REALM = "https://auth.test/token"
SCOPE = "repository:library/app:pull,push"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        ([""], []),
        ([",, ,"], []),
        (["Basic"], [("basic", {})]),
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (['BEARER Realm="x"'], [("bearer", {"realm": "x"})]),
        (
            [f'Bearer realm="{REALM}",service="s",scope="{SCOPE}"'],
            [("bearer", {"realm": REALM, "service": "s", "scope": SCOPE})],
        ),
        (
            [f"Bearer realm={REALM} , service = s"],
            [("bearer", {"realm": REALM, "service": "s"})],
        ),
        (['Bearer realm="a \\"b\\" \\\\c"'], [("bearer", {"realm": 'a "b" \\c'})]),
        (['Bearer realm=""'], [("bearer", {"realm": ""})]),
        (['Bearer,realm="x"'], [("bearer", {"realm": "x"})]),
        (
            ['Basic realm="a, Bearer b", Bearer realm="x",service="s"'],
            [("basic", {"realm": "a, Bearer b"}), ("bearer", {"realm": "x", "service": "s"})],
        ),
        (["Negotiate, Basic"], [("negotiate", {}), ("basic", {})]),
        (
            ['Negotiate oRQ/w+Eq==, Bearer realm="x"'],
            [("negotiate", {}), ("bearer", {"realm": "x"})],
        ),
        (
            ['Basic realm="a"', 'Bearer realm="b"'],
            [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})],
        ),
        (['realm="x"'], []),
        (['Bearer service="s",realm="unclosed'], [("bearer", {"service": "s", "realm": ""})]),
        (['Basic realm="a" @@@ Bearer realm="b"'], [("basic", {"realm": "a"})]),
        (["@@@", "Basic"], [("basic", {})]),
    ],
)
def test_challenges(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(headers) == [Challenge(*each) for each in expected]


WORDS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=8)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
PARAMETERS = st.dictionaries(WORDS, VALUES, min_size=1, max_size=4)
CHALLENGES = st.lists(st.tuples(WORDS, PARAMETERS), min_size=1, max_size=4)


def written(scheme: str, parameters: dict[str, str]) -> str:
    """As RFC 9110 has it, all values quoted."""
    pairs = [
        f'{k}="{re.sub(chr(92) * 2 + "|" + chr(34), lambda m: chr(92) + m[0], v)}"'
        for k, v in parameters.items()
    ]
    return f"{scheme} {', '.join(pairs)}"


@given(CHALLENGES, st.booleans())
def test_what_is_written_by_the_book_is_read(
    challenges: list[tuple[str, dict[str, str]]], one_header: bool
) -> None:
    lines = [written(*each) for each in challenges]
    headers = [", ".join(lines)] if one_header else lines
    assert parse_challenges(headers) == [Challenge(*each) for each in challenges]


@given(st.lists(st.text(st.sampled_from('Bearer realm="x",\\= \t@/é'), max_size=60), max_size=3))
def test_whatever_is_sent_is_no_error(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


@pytest.mark.parametrize(
    "part", ["a", "a ", "a=", 'a="', '\\"', "a=b,", " ", "a  ,", "=", '"', "a b=="]
)
def test_a_header_as_long_as_it_may_be_takes_no_time(part: str) -> None:
    header = "Bearer " + part * MAX_CHALLENGE_CHARACTERS
    started = time.process_time()
    parse_challenges([header])
    assert time.process_time() - started < 1


def test_what_stands_behind_the_limit_is_not_read() -> None:
    header = "Basic " + "," * MAX_CHALLENGE_CHARACTERS + f'Bearer realm="{REALM}"'
    assert parse_challenges([header]) == [Challenge("basic")]
