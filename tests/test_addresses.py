"""How far inwards an address lies, and which of a name's addresses a redirect may use."""

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.upstream.addresses import (
    MAX_LOOKUPS,
    BoundedResolver,
    ForbiddenAddress,
    Names,
    Reach,
    literal_reach,
    reach_of,
)
from tests.fakes.deadline import SOON_SECONDS


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("8.8.8.8", Reach.PUBLIC),
        ("172.32.0.1", Reach.PUBLIC),
        ("2606:4700::1111", Reach.PUBLIC),
        ("::ffff:8.8.8.8", Reach.PUBLIC),
        ("64:ff9b::8.8.8.8", Reach.PUBLIC),
        ("10.0.0.1", Reach.PRIVATE),
        ("172.16.0.1", Reach.PRIVATE),
        ("192.168.1.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("198.18.0.1", Reach.PRIVATE),
        ("192.0.2.1", Reach.PRIVATE),
        ("0.1.2.3", Reach.PRIVATE),
        ("240.0.0.1", Reach.PRIVATE),
        ("255.255.255.255", Reach.PRIVATE),
        ("fd12::1", Reach.PRIVATE),
        ("fec0::1", Reach.PRIVATE),
        ("2001:db8::1", Reach.PRIVATE),
        ("::127.0.0.1", Reach.PRIVATE),
        ("::ffff:0:127.0.0.1", Reach.PRIVATE),
        ("64:ff9b:1::10.0.0.1", Reach.PRIVATE),
        ("::ffff:10.0.0.1", Reach.PRIVATE),
        ("64:ff9b::10.0.0.1", Reach.PRIVATE),
        ("2002:a00:1::", Reach.PRIVATE),
        ("127.0.0.1", Reach.LOOPBACK),
        ("127.255.255.254", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
        ("::1%lo", Reach.LOOPBACK),
        ("::ffff:127.0.0.1", Reach.LOOPBACK),
        ("64:ff9b::7f00:1", Reach.LOOPBACK),
        ("2002:7f00:1::", Reach.LOOPBACK),
        ("169.254.169.254", Reach.FORBIDDEN),
        ("::ffff:169.254.169.254", Reach.FORBIDDEN),
        ("64:ff9b::a9fe:a9fe", Reach.FORBIDDEN),
        ("fe80::1", Reach.FORBIDDEN),
        ("fe80::1%eth0", Reach.FORBIDDEN),
        ("0.0.0.0", Reach.FORBIDDEN),  # noqa: S104 - not bound to
        ("::", Reach.FORBIDDEN),
        ("::ffff:0.0.0.0", Reach.FORBIDDEN),
        ("224.0.0.1", Reach.FORBIDDEN),
        ("ff02::1", Reach.FORBIDDEN),
        ("fd00:ec2::254", Reach.FORBIDDEN),
        ("100.100.100.200", Reach.FORBIDDEN),
        ("168.63.129.16", Reach.FORBIDDEN),
    ],
)
def test_reach(address: str, reach: Reach) -> None:
    assert reach_of(address) is reach
    assert literal_reach(address) is reach


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f.1",
        "0X7F000001",
        "0x7f000001",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "127.0.0.0x1",
        "127.1.",
        "1.2.3.4.5",
        "evil.com.1",
        "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
        "::1::",
    ],
)
def test_odd_spellings_of_addresses_are_reached_by_nobody(host: str) -> None:
    assert literal_reach(host) is Reach.FORBIDDEN


def test_a_trailing_dot_changes_nothing() -> None:
    assert literal_reach("127.0.0.1.") is Reach.LOOPBACK


@pytest.mark.parametrize("host", ["registry-1.docker.io", "localhost", "127.0.0.1.nip.io", "a1"])
def test_names_are_left_to_the_resolver(host: str) -> None:
    assert literal_reach(host) is None


@pytest.fixture
def names() -> Names:
    return Names(timeout_seconds=0.1)


Answer = tuple[socket.AddressFamily, int, int, str, tuple[str | int, ...]]


def dns(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], list[str]]) -> None:
    """Lets getaddrinfo answer with these addresses."""

    def getaddrinfo(host: str, port: int, *_: object) -> list[Answer]:
        return [
            (socket.AF_INET6, 0, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, 0, 6, "", (each, port))
            for each in answer(host)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        (None, ["8.8.8.8", "10.0.0.1", "::1", "169.254.0.1"]),
        (Reach.LOOPBACK, ["8.8.8.8", "10.0.0.1", "::1"]),
        (Reach.PRIVATE, ["8.8.8.8", "10.0.0.1"]),
        (Reach.PUBLIC, ["8.8.8.8"]),
    ],
)
async def test_a_name_gives_only_the_addresses_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, names: Names, limit: Reach | None, allowed: list[str]
) -> None:
    dns(monkeypatch, lambda host: ["8.8.8.8", "10.0.0.1", "::1", "169.254.0.1"])
    found = await BoundedResolver(names, limit).resolve("some.test", 443)
    assert [(each["host"], each["port"]) for each in found] == [(each, 443) for each in allowed]


async def test_a_name_with_no_address_within_the_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch, names: Names
) -> None:
    dns(monkeypatch, lambda host: ["10.0.0.1", "127.0.0.1"])
    with pytest.raises(ForbiddenAddress, match=r"some\.test resolves"):
        await BoundedResolver(names, Reach.PUBLIC).resolve("some.test")


async def test_a_name_lies_as_far_inwards_as_its_innermost_address(
    monkeypatch: pytest.MonkeyPatch, names: Names
) -> None:
    dns(monkeypatch, lambda host: ["8.8.8.8", "10.0.0.1"])
    assert await names.reach_of("some.test") is Reach.PRIVATE
    assert await names.reach_of("8.8.8.8") is Reach.PUBLIC


async def test_a_name_that_is_none_is_an_error_of_the_network(names: Names) -> None:
    with pytest.raises(OSError, match="not a name"):
        await names.look_up("a..b" + "x" * 80)


async def test_a_silent_name_server_holds_up_nobody_who_reads_the_disk(
    monkeypatch: pytest.MonkeyPatch, names: Names
) -> None:
    """More lookups hang than there are threads, both here and for the rest of the mirror."""
    answers = threading.Event()
    dns(monkeypatch, lambda host: ["8.8.8.8"] if answers.wait(30) else [])
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    tasks = [names.look_up(f"{n}.test") for n in range(MAX_LOOKUPS + 4)]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    try:
        assert {str(each) for each in found} == {"[Errno 110] no answer from DNS within 0.1 s"}
        async with asyncio.timeout(SOON_SECONDS):
            assert await asyncio.to_thread(lambda: "read") == "read"
    finally:
        answers.set()
