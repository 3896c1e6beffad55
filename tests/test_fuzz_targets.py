"""What is fuzzed for minutes by `make fuzz` holds here for what hypothesis thinks of in seconds."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

# The machine may be busy.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ALL_SEEDS = [(name, seed) for name, seeds in SEEDS.items() for seed in seeds]
# Each was found by a run of the fuzzer, and broke the mirror.
FINDINGS = [
    ("challenges", b'</?n=1>; rel="next"\n<http://[]@/?n=1>; rel="next"'),
    ("challenges", b'Bearer realm="http://[]@/token"'),
    ("challenges", b"http://[]@/"),
]
WORDS = {
    name: [
        line[1:-1].encode("latin-1").decode("unicode_escape").encode("latin-1")
        for line in (Path(targets.__file__).parent / f"{name}.dict").read_text().splitlines()
    ]
    for name in TARGETS
}


def inputs(name: str) -> st.SearchStrategy[bytes]:
    piece = st.sampled_from(WORDS[name]) | st.binary(max_size=10) | st.sampled_from(SEEDS[name])
    return st.lists(piece, max_size=8).map(b"".join)


@pytest.mark.parametrize(("name", "data"), ALL_SEEDS + FINDINGS)
def test_what_is_known_holds(name: str, data: bytes) -> None:
    TARGETS[name](data)


@PATIENT
@given(inputs("requests"))
def test_any_request_is_an_address_or_the_clients_mistake(data: bytes) -> None:
    TARGETS["requests"](data)


@PATIENT
@given(inputs("challenges"))
def test_any_answers_headers_and_documents_are_read_or_overlooked(data: bytes) -> None:
    TARGETS["challenges"](data)


NAMES = ["config", "layers", "manifests", "blobs", "mediaType", "digest", "size", "urls"]
MORE_NAMES = ["platform", "os", "architecture", "schemaVersion", "signatures", "errors", "code"]
KEYS = st.sampled_from([*NAMES, *MORE_NAMES])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("linux.sha256:/+-é\0"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@PATIENT
@given(st.dictionaries(KEYS, JSON))
def test_any_json_is_a_manifest_or_none(document: dict[str, object]) -> None:
    TARGETS["challenges"](targets.written(document))
