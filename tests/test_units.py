"""Durations, sizes and addresses as people write them."""

import math

import pytest

from mirror.config.units import parse_duration_seconds, parse_listen, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("30d", 30 * 86400),
        (" 5s ", 5),
        ("1m1ms", 60.001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert math.isclose(parse_duration_seconds(text), seconds)


NO_DURATIONS = [
    "",
    "5",
    "m",
    "5 m",
    "-5s",
    "5s-",
    "5S",
    "1,5s",
    "5y",
    "٣s",
    "5s\n5s",
    "1e3s",
    ".5s",
]
NO_ADDRESSES = ["", ":", "5000", "a", "a:", "a:b", "::1:5000", "[::1]", "[x]:1", "a:65536", "a b:1"]


@pytest.mark.parametrize(
    "value", [*NO_DURATIONS, "5.s", "9" * 400 + "d", 5, 5.0, True, None, ["5s"]], ids=ascii
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="a duration is a number with a unit"):
        parse_duration_seconds(value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        (":5000", ("", 5000)),
        ("[::]:5000", ("", 5000)),
        ("[fe80::1]:1", ("fe80::1", 1)),
        ("localhost:0", ("localhost", 0)),
        ("mirror.corp:65535", ("mirror.corp", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "value", [*NO_ADDRESSES, "a:٣", "http://a:1", 5000, None, ["a:1"]], ids=ascii
)
def test_what_is_no_address(value: object) -> None:
    with pytest.raises(
        ValueError, match=r"address to listen on is host:port|port is a number up to"
    ):
        parse_listen(value)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1B", 1),
        ("512KiB", 512 * 1024),
        ("20MiB", 20 * 1024**2),
        ("1.5GiB", 3 * 1024**3 // 2),
        (" 2TiB ", 2 * 1024**4),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


def test_no_size_at_all_may_be_a_number() -> None:
    assert parse_size_bytes(0) == 0


@pytest.mark.parametrize(
    "text",
    ["", "1", 2, "MiB", "20 MiB", "20MB", "20mib", "-1MiB", "1e3MiB", "٣MiB", None, False, []],
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="20MiB"):
        parse_size_bytes(text)
