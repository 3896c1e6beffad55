"""Many clients of one blob in one thread: those that read as fast as they can, and slow ones.
from tests.fakes.deadline import DEADLINE_SECONDS

Nothing is kept: each piece is compared with the right bytes where it lies. Two cores move some
gigabytes a second in this way.
"""

import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.fakes.deadline import DEADLINE_SECONDS

PIECE_BYTES = 1024 * 1024
HEAD_LIMIT_BYTES = 16 * 1024
RESET_WHEN_CLOSED = struct.pack("ii", 1, 0)
SLOW_BUFFER_BYTES = 16 * 1024
SLOW_PIECE_BYTES = 1024
SLOW_TICK_SECONDS = 0.25  # one piece each


@dataclass
class Reader:
    """One answer, checked as it comes."""

    connection: socket.socket
    right: bytes
    head: bytearray = field(default_factory=bytearray)
    status: int = 0
    position: int = 0  # in the body
    is_right: bool = True
    is_over: bool = False

    def read(self, room: memoryview) -> None:
        """What is there now, at most as much as there is room for."""
        try:
            count = self.connection.recv_into(room)
        except OSError:
            count = 0
        if not count:
            self.is_over = True
            return
        data = room[:count]
        self._check(data if self.status else self._behind_head(data))

    def hang_up(self, *, reset: bool) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_WHEN_CLOSED)
        self.connection.close()
        self.is_over = True

    def _behind_head(self, data: memoryview) -> memoryview:
        before = len(self.head)
        self.head += data
        assert len(self.head) < HEAD_LIMIT_BYTES + len(data)
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return data[:0]
        self.status = int(self.head.split(b" ", 2)[1])
        return data[end + 4 - before :]

    def _check(self, data: memoryview) -> None:
        self.is_right = self.is_right and self.right.startswith(data, self.position)
        self.position += len(data)
        if self.position >= len(self.right):
            self.is_over = True


def ask(url: str, right: bytes, *, slow: bool = False) -> Reader:
    """A client that has sent its request; a slow one has little room for the answer."""
    parts = urlsplit(url)
    connection = socket.socket()
    if slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
    connection.settimeout(DEADLINE_SECONDS)
    connection.connect((parts.hostname, parts.port))
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    connection.sendall(request.encode())
    return Reader(connection, right)


def fetch(url: str, right: bytes) -> Reader:
    """One client that has come to its end. Blocking."""
    reader = ask(url, right)
    read_all([reader], [])
    return reader


def read_all(fast: list[Reader], slow: list[Reader]) -> None:
    """Until the fast ones have come to their end; the slow ones take a little now and then.

    Blocking.
    """
    room, little = memoryview(bytearray(PIECE_BYTES)), memoryview(bytearray(SLOW_PIECE_BYTES))
    with selectors.EpollSelector() as selector:
        for reader in fast:
            selector.register(reader.connection, selectors.EVENT_READ, reader)
        tick_at = time.monotonic()
        while selector.get_map():
            for key, _ in selector.select(SLOW_TICK_SECONDS):
                key.data.read(room)
                if key.data.is_over:
                    selector.unregister(key.fileobj)
                    key.data.hang_up(reset=False)
            if time.monotonic() >= tick_at:
                tick_at = time.monotonic() + SLOW_TICK_SECONDS
                _sip(slow, little)


def _sip(slow: list[Reader], little: memoryview) -> None:
    for reader in slow:
        reader.connection.setblocking(False)
        try:
            if not reader.is_over and reader.connection.recv(1, socket.MSG_PEEK):
                reader.read(little)
        except BlockingIOError:  # its headers are not there yet
            continue
