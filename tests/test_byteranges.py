"""Range and Content-Range as RFC 9110 §14 has them, against a model that counts positions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.byteranges import MAX_RANGES, ByteRange, parse_content_range, resolve
from mirror.errors import RangeUnsatisfiable

SIZE = 10_000
SPECS = st.one_of(
    st.tuples(st.integers(0, 50), st.integers(0, 50)),
    st.tuples(st.integers(0, 50), st.none()),
    st.tuples(st.none(), st.integers(0, 50)),
)
Spec = tuple[int | None, int | None]


def written(specs: list[Spec]) -> str:
    return "bytes=" + ",".join(
        f"{'' if first is None else first}-{'' if last is None else last}" for first, last in specs
    )


def positions(spec: Spec, size: int) -> list[int]:
    """What RFC 9110 §14.1.2 selects."""
    first, last = spec
    if first is None:
        return list(range(size))[-last:] if last else []
    return [each for each in range(size) if each >= first and (last is None or each <= last)]


@given(st.lists(SPECS, min_size=1, max_size=5), st.integers(1, 40))
def test_ranges_select_what_a_naive_reading_selects(specs: list[Spec], size: int) -> None:
    expected = [found for spec in specs if (found := positions(spec, size))]
    if not expected:
        with pytest.raises(RangeUnsatisfiable) as refused:
            resolve(written(specs), size)
        assert refused.value.headers == {"Content-Range": f"bytes */{size}"}
        return
    got = [list(range(each.start, each.end)) for each in resolve(written(specs), size)]
    amplifies = len(expected) > 1 and sum(map(len, expected)) > size
    assert got == ([] if amplifies else expected)


@given(st.lists(SPECS, min_size=1, max_size=1), st.integers(1, 40))
def test_a_range_is_open_ended_where_it_names_no_byte_as_its_last(
    specs: list[Spec], size: int
) -> None:
    first, last = specs[0]
    if positions(specs[0], size):
        (found,) = resolve(written(specs), size)
        assert found.open_ended == (first is not None and (last is None or last >= size))


@given(st.text(alphabet="bytes=0123456789-, x", max_size=20), st.integers(0, 30))
def test_any_text_gives_ranges_inside_or_none_or_a_refusal(text: str, size: int) -> None:
    try:
        ranges = resolve(text, size)
    except RangeUnsatisfiable:
        return
    assert all(0 <= each.start < each.end <= size for each in ranges)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # RFC 9110 §14.1.2's own examples, of a representation of 10,000 bytes
        ("bytes=0-499", [(0, 500)]),
        ("bytes=500-999", [(500, 1000)]),
        ("bytes=-500", [(9500, 10_000)]),
        ("bytes=9500-", [(9500, 10_000)]),
        ("bytes=0-0,-1", [(0, 1), (9999, 10_000)]),
        ("bytes= 0-999, 4500-5499, -1000", [(0, 1000), (4500, 5500), (9000, 10_000)]),
        ("bytes=500-600,601-999", [(500, 601), (601, 1000)]),
        ("bytes=500-700,601-999", [(500, 701), (601, 1000)]),
        # lax where that does no harm
        ("BYTES=0-1", [(0, 2)]),
        ("bytes=0-18446744073709551615", [(0, 10_000)]),
        # overlooked
        (None, []),
        ("", []),
        ("bytes", []),
        ("bytes=", []),
        ("bytes=-", []),
        ("bytes=,", []),
        ("bytes=1-2,", []),
        ("items=0-1", []),
        ("bytes=0x1-2", []),
        ("bytes=\u0660-\u0661", []),
        ("bytes=1-2-3", []),
        ("bytes=0-,-10000", []),
    ],
)
def test_the_header_as_written(header: str | None, expected: list[tuple[int, int]]) -> None:
    assert [(each.start, each.end) for each in resolve(header, SIZE)] == expected


@pytest.mark.parametrize("header", ["bytes=5-3", "bytes=10000-", "bytes=-0", "bytes=9-8,7-6"])
def test_the_header_that_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(RangeUnsatisfiable):
        resolve(header, SIZE)


def test_an_empty_blob_is_given_whole() -> None:
    assert resolve("bytes=0-", 0) == resolve("bytes=-5", 0) == []


def test_the_number_of_ranges_is_bounded() -> None:
    header = "bytes=" + ",".join(f"{each}-{each}" for each in range(MAX_RANGES))
    assert len(resolve(header, SIZE)) == MAX_RANGES
    assert resolve(header + ",5000-5000", SIZE) == []


def test_a_range_tells_its_length_and_place() -> None:
    assert ByteRange(5, 10).length == 5
    assert ByteRange(5, 10).content_range(99) == "bytes 5-9/99"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes 0-99/1234", (0, 100, 1234)),
        (" bytes 1233-1233/1234 ", (1233, 1234, 1234)),
        ("bytes 0-99/*", (0, 100, None)),
        ("bytes 0-99/100", (0, 100, 100)),
        ("bytes 0-99/99", None),
        ("bytes 9-8/100", None),
        ("bytes */1234", None),
        ("bytes 0-99", None),
        ("items 0-99/1234", None),
        ("bytes -99/1234", None),
        ("", None),
        (None, None),
    ],
)
def test_content_range(header: str | None, expected: tuple[int, int, int | None] | None) -> None:
    assert parse_content_range(header) == expected
