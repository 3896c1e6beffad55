"""Which proxy, if any, leads to a URL."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from mirror.egress import Egress, ForwardProxy

PLAIN, SECURE = ForwardProxy(URL("http://plain:1")), ForwardProxy(URL("http://secure:1"))


def is_direct(host: str, *none_for: str, scheme: str = "https") -> bool:
    return Egress(PLAIN, SECURE, none_for).proxy_for(URL(f"{scheme}://{host}/v2/")) is None


def test_it_goes_by_the_scheme() -> None:
    egress = Egress(PLAIN, SECURE)
    assert egress.proxy_for(URL("http://quay.io/v2/")) is PLAIN
    assert egress.proxy_for(URL("https://quay.io/v2/")) is SECURE
    assert Egress(http=PLAIN).proxy_for(URL("https://quay.io/v2/")) is None
    assert Egress().proxy_for(URL("https://quay.io/v2/")) is None


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1", "127.8.8.8:1", "[::1]:5000"])
def test_this_host_is_near(host: str) -> None:
    assert is_direct(host)


@pytest.mark.parametrize(
    ("exempt", "hosts", "others"),
    [
        ("corp.test", ["corp.test", "a.corp.test:5000", "CORP.test."], ["xcorp.test", "test"]),
        (".corp.test", ["corp.test", "a.b.corp.test"], ["corp.test.io"]),
        ("*.corp.test", ["corp.test", "a.corp.test"], ["corp"]),
        ("corp.test:5000", ["corp.test:5000", "a.corp.test:5000"], ["corp.test", "corp.test:1"]),
        ("corp.test:443", ["corp.test"], ["corp.test:5000"]),
        ("10.0.0.0/8", ["10.1.2.3", "10.0.0.1:5000"], ["11.0.0.1", "ten.test", "[fd00::1]"]),
        ("10.1.2.3/8", ["10.9.9.9"], ["11.0.0.1"]),
        ("10.0.0.1", ["10.0.0.1:5000"], ["10.0.0.2"]),
        ("10.0.0.1:5000", ["10.0.0.1:5000"], ["10.0.0.1"]),
        ("fd00::/8", ["[fd00::1]:5000"], ["[fe00::1]", "10.0.0.1"]),
        ("[fd00::1]:5000", ["[fd00::1]:5000"], ["[fd00::1]"]),
        ("fd00::1", ["[fd00::1]"], ["[fd00::2]"]),
        ("*", ["quay.io", "10.0.0.1", "[fd00::1]"], []),
        ("bücher.test", ["bücher.test", "xn--bcher-kva.test", "a.bücher.test"], ["bucher.test"]),
        ("xn--bcher-kva.test", ["bücher.test", "xn--bcher-kva.test"], []),
        ("<local>", [], ["quay.io", "local"]),
        ("", [], ["quay.io", "10.0.0.1"]),
    ],
)
def test_what_is_exempt(exempt: str, hosts: list[str], others: list[str]) -> None:
    assert [each for each in hosts if not is_direct(each, exempt)] == []
    assert [each for each in others if is_direct(each, exempt)] == []
    assert is_direct("quay.io", exempt) == (exempt == "*")


def test_each_of_several_counts() -> None:
    assert is_direct("b.test", "a.test", "b.test")
    assert is_direct("10.0.0.1", "a.test", "10.0.0.0/8")


@given(st.lists(st.text(max_size=30), max_size=5))
def test_nothing_that_is_listed_is_an_error(none_for: list[str]) -> None:
    Egress(PLAIN, SECURE, none_for).proxy_for(URL("https://quay.io/v2/"))
