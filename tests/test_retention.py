"""Which blobs go first, in principle; test_zipf.py and bench/zipf.py show what comes of it."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.retention import worth

sizes = st.integers(0, 1 << 50)
uses = st.integers(1, 1 << 40)


@given(sizes, uses)
def test_worth_is_bounded(size_bytes: int, used: int) -> None:
    assert 1 <= worth(size_bytes, used) < worth(size_bytes, used, costs_pull=True) <= 112


@given(sizes, sizes, uses, uses)
def test_what_is_smaller_and_used_more_is_worth_no_less(
    size_a: int, size_b: int, uses_a: int, uses_b: int
) -> None:
    least = worth(max(size_a, size_b), min(uses_a, uses_b))
    assert worth(min(size_a, size_b), max(uses_a, uses_b)) >= least


def test_a_manifest_that_costs_a_pull_stays_twice_as_long_as_a_config() -> None:
    assert worth(1500, 1, costs_pull=True) >= 2 * worth(1500, 1)
    assert worth(4 << 20, 1, costs_pull=True) > worth(1500, 1), "also a large one"
