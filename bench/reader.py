"""Large answers: a reader of our own.

It is one process with one epoll loop. It throws bodies away inside the kernel (MSG_TRUNC on a TCP
socket: the bytes are never copied to us), so that on a machine of two cores it is the server that
is measured: clients on other machines cost it no copy either. With `copy_bodies` they are copied,
as by clients on the same machine. The same reader is used for every server.
"""

import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import repeat

from bench.content import Blob, Image
from bench.load import ACCEPT, STALL_LIMIT_SECONDS, Address, LoadError

DISCARD_BYTES = 4 << 20  # at most so many in one system call
HEAD_LIMIT_BYTES = 16 << 10
AT_ONCE = 3  # layers that containerd, and Docker, pull at the same time


@dataclass(frozen=True)
class Want:
    path: str
    size: int


@dataclass
class Crowd:
    """What the clients of one measure got."""

    seconds: float = 0.0
    body_bytes: int = 0
    first_byte_seconds: list[float] = field(default_factory=list)  # of each answer
    cpu_seconds: float = 0.0  # the reader's own


class _Connection:
    """Asks for one thing after the other, as long as there are any."""

    def __init__(self, address: Address, wants: Iterator[Want], copy: bool) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self._host = f"{address[0]}:{address[1]}"
        self.wants = wants  # may be shared with other connections
        self._flags = 0 if copy else socket.MSG_TRUNC
        self._head = bytearray()
        self._want = Want("", 0)
        self.left: int | None = None  # of the body; None while the head is being read

    def ask(self) -> bool:
        """False: nothing is left to ask for."""
        want = next(self.wants, None)
        if want is None:
            return False
        self._want, self.left = want, None
        self._head.clear()
        lines = [f"GET {want.path} HTTP/1.1", f"Host: {self._host}", f"Accept: {ACCEPT}", "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        return True

    def read(self, scrap: bytearray) -> int:
        """Takes what is there and says how much of it was body."""
        if self.left is None:
            return self._read_head()
        count = self.socket.recv_into(scrap, min(self.left, len(scrap)), self._flags)
        if not count:
            raise LoadError(f"closed with {self.left} of {self._want.size} bytes missing")
        self.left -= count
        return count

    def _read_head(self) -> int:
        received = self.socket.recv(HEAD_LIMIT_BYTES)
        if not received:
            raise LoadError("closed without an answer")
        self._head += received
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return 0
        first, *lines = self._head[:end].decode("latin-1").split("\r\n")
        if first.split()[1] != "200":
            raise LoadError(f"answered {first!r}")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        length = headers.get("content-length")
        if length != str(self._want.size):
            raise LoadError(f"Content-Length {length}, not {self._want.size}")
        body = len(self._head) - end - 4
        self.left = self._want.size - body
        return body


def _run(connections: list[_Connection], crowd: Crowd, start: float, deadline: float) -> None:
    """Until everything has come, or the deadline; times are counted from `start`."""
    cpu_before = time.process_time()
    scrap = bytearray(DISCARD_BYTES)  # not even touched unless bodies are copied
    with selectors.EpollSelector() as selector:
        for connection in connections:
            if connection.ask():
                selector.register(connection.socket, selectors.EVENT_READ, connection)
        while selector.get_map() and time.monotonic() < deadline:
            ready = selector.select(STALL_LIMIT_SECONDS)
            if not ready:
                raise LoadError(f"no byte for {STALL_LIMIT_SECONDS} s")
            for key, _ in ready:
                connection = key.data
                waiting = connection.left is None
                crowd.body_bytes += connection.read(scrap)
                if waiting and connection.left is not None:
                    crowd.first_byte_seconds.append(time.monotonic() - start)
                if connection.left == 0 and not connection.ask():
                    selector.unregister(connection.socket)
    crowd.seconds = time.monotonic() - start
    crowd.cpu_seconds += time.process_time() - cpu_before


# ----------------------------------------------------------------------------------- the clients


def pull(address: Address, image: Image, copy: bool) -> Crowd:
    """One client, as containerd does it: the manifest by its tag, then the layers, some at once.

    The time is that from connecting to the last byte.
    """
    crowd, layers = Crowd(), iter([_want(layer) for layer in image.layers])
    with _opened(copy) as opened:
        start = time.monotonic()
        first = opened(address, iter([_manifest(image)]))
        _run([first], crowd, start, float("inf"))
        others = min(AT_ONCE, len(image.layers)) - 1
        first.wants = layers
        connections = [first, *(opened(address, layers) for _ in range(others))]
        _run(connections, crowd, start, float("inf"))
    return crowd


def pull_at_once(address: Address, images: list[Image], copy: bool) -> Crowd:
    """A client for each of the images, which have one layer: its manifest, then its layer."""
    with _opened(copy) as opened:
        crowd, start = Crowd(), time.monotonic()
        wants = [iter([_manifest(image), *map(_want, image.layers)]) for image in images]
        _run([opened(address, each) for each in wants], crowd, start, float("inf"))
    return crowd


def stream(address: Address, blob: Blob, clients: int, seconds: float, copy: bool) -> Crowd:
    """Each client takes the blob again and again on its connection until the time is over."""
    with _opened(copy) as opened:
        connections = [opened(address, repeat(_want(blob))) for _ in range(clients)]
        crowd, start = Crowd(), time.monotonic()
        _run(connections, crowd, start, start + seconds)
    return crowd


def _want(blob: Blob) -> Want:
    return Want(blob.path, blob.size)


def _manifest(image: Image) -> Want:
    return Want(image.tag_path, image.manifest.size)


class _Opener:
    def __init__(self, stack: ExitStack, copy: bool) -> None:
        self._stack = stack
        self._copy = copy

    def __call__(self, address: Address, wants: Iterator[Want]) -> _Connection:
        connection = _Connection(address, wants, self._copy)
        self._stack.callback(connection.socket.close)
        return connection


@contextmanager
def _opened(copy: bool) -> Iterator[_Opener]:
    """Opens connections that end with the block."""
    with ExitStack() as stack:
        try:
            yield _Opener(stack, copy)
        except OSError as error:
            raise LoadError(str(error)) from error
