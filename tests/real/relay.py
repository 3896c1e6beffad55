"""A relay between a client and a server that keeps what was asked.

It passes the bytes of both directions unchanged, and notes each request *before* the server sees
it, so that nothing asked is missed. It can follow requests without a body only: push past it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread

from tests.real.programs import free_port

_CHUNK = 256 * 1024
_SETTLE = 0.2
"""Seconds in which a question that somebody still has on their lips is counted, too."""


@dataclass(frozen=True)
class Request:
    """One request as it was seen on the wire."""

    method: str
    target: str
    headers: dict[str, str]  # names in lower case

    @classmethod
    def parse(cls, head: bytes) -> Request:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        fields = (line.partition(":") for line in lines)
        return cls(method, target, {name.lower(): value.strip() for name, _, value in fields})

    def reads(self, digest: str) -> bool:
        """Whether it GETs that content."""
        path = self.target.partition("?")[0]
        return self.method == "GET" and path.endswith(f"/{digest}")

    def __repr__(self) -> str:
        return f"<{self.method} {self.target}>"


class Relay:
    """127.0.0.1:`port`, behind which the server at `target` stands. Used as a context manager."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._accepting = Thread()
        self._clients: dict[socket.socket, Thread] = {}
        self._notes: list[list[Request]] = []

    def __enter__(self) -> Relay:
        self._up()
        return self

    def __exit__(self, *_: object) -> None:
        self._down()
        self._listener.close()

    @contextmanager
    def asked(self) -> Iterator[list[Request]]:
        """A list that grows by each request of the block."""
        notes: list[Request] = []
        self._notes.append(notes)
        try:
            yield notes
            time.sleep(_SETTLE)
        finally:
            self._notes = [other for other in self._notes if other is not notes]

    @contextmanager
    def down(self) -> Iterator[None]:
        """Within the block connections are refused, and those which there were are cut."""
        self._down()
        try:
            yield
        finally:
            self._up()

    def _up(self) -> None:
        self._listener.listen(128)
        self._accepting = Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _down(self) -> None:
        # On Linux this ends the listening, wakes accept(), and keeps the port for the next listen.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for client, thread in list(self._clients.items()):
            _hang_up(client)
            thread.join(timeout=5)

    def _accept(self) -> None:
        with suppress(OSError):  # shut down by _down
            while True:
                client, _ = self._listener.accept()
                thread = Thread(target=self._serve, args=(client,), daemon=True)
                self._clients[client] = thread
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        address = ("127.0.0.1", self._target)
        with client, suppress(OSError), socket.create_connection(address) as server:
            answers = Thread(target=_copy, args=(server, client), daemon=True)
            answers.start()
            self._pass_requests(client, server)
            answers.join()
        del self._clients[client]

    def _pass_requests(self, client: socket.socket, server: socket.socket) -> None:
        pending = b""
        with suppress(OSError):
            while data := client.recv(_CHUNK):
                *heads, pending = (pending + data).split(b"\r\n\r\n")
                for request in map(Request.parse, heads):
                    for notes in self._notes:
                        notes.append(request)
                server.sendall(data)
        _hang_up(server)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    _hang_up(sink)


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
