"""The benchmark's clients, with a server that answers as it is told."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bench.load import Address, LoadError
from bench.measures import throughput
from bench.probe import Probe
from bench.reader import Crowd, Want

BODY = b"small"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
INTERVAL_SECONDS = 0.01
BLOCK_SECONDS = 0.3


@contextmanager
def serving(answer: bytes, asked_at: list[float]) -> Iterator[Address]:
    """To each request this answer; `asked_at` tells when each came, on the monotonic clock."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=talk, args=[client], daemon=True).start()

        def talk(client: socket.socket) -> None:
            with client, suppress(OSError):
                while client.recv(65536):
                    asked_at.append(time.monotonic())
                    client.sendall(answer)

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_small_answers_are_timed_while_the_large_ones_come_and_not_before() -> None:
    asked_at: list[float] = []
    with serving(ANSWER, asked_at) as address:
        with Probe(address, Want("/small", len(BODY)), INTERVAL_SECONDS) as probe:
            began_at = time.monotonic()
            time.sleep(BLOCK_SECONDS)
        assert probe.seconds
        assert len(probe.seconds) == len(asked_at)
        quiet_seconds = began_at - min(asked_at)
        assert quiet_seconds < BLOCK_SECONDS / 2, "it had hardly begun when the block did"


def test_a_wrong_small_answer_fails_the_sample() -> None:
    with (
        serving(ANSWER, []) as address,
        pytest.raises(LoadError, match="small answer failed"),
        Probe(address, Want("/small", len(BODY) + 1), INTERVAL_SECONDS),
    ):
        time.sleep(BLOCK_SECONDS)


def test_a_server_that_takes_no_small_clients_fails_the_sample() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with (
        pytest.raises(LoadError, match="small answer failed"),
        Probe(address, Want("/small", len(BODY)), INTERVAL_SECONDS),
    ):
        pass


def test_a_server_that_sends_nothing_in_time_fails_the_sample() -> None:
    with pytest.raises(LoadError, match="nothing came"):
        throughput(Crowd(seconds=1.0), cpu_seconds=0.5)


def test_a_rate_and_what_each_gigabyte_costs() -> None:
    assert throughput(Crowd(seconds=2.0, body_bytes=4 * 10**9), cpu_seconds=1.0) == (2.0, 0.25)
