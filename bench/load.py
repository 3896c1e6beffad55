"""The load: wrk for many small answers, and a reader of our own for few large ones.

The reader is one process with one epoll loop. It throws bodies away inside the kernel (MSG_TRUNC on
a TCP socket: the bytes are never copied to us), so that on a machine of two cores it is the server
that is measured: clients on other machines cost it no copy either. With `copy_bodies` they are
copied, as by clients on the same machine. The same generator is used for every server.
"""

import hashlib
import http.client
import re
import selectors
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

from bench.content import CONFIG_TYPE, MANIFEST_TYPE, Blob

Address = tuple[str, int]

DISCARD_BYTES = 4 << 20  # at most so many in one system call
HEAD_LIMIT_BYTES = 16 << 10
STALL_LIMIT_SECONDS = 60
ACCEPT = ", ".join(
    (
        MANIFEST_TYPE,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "*/*",
    )
)


class LoadError(Exception):
    """The server failed under the load: a wrong answer, a closed connection, silence."""


# ---------------------------------------------------------------------------- small answers: wrk


@dataclass(frozen=True)
class Rate:
    per_second: float
    p50: str
    p99: str


def wrk_command(address: Address, path: str, connections: int, seconds: float) -> list[str]:
    return [
        "/usr/bin/wrk",
        "--threads=1",
        f"--connections={connections}",
        f"--duration={max(1, round(seconds))}s",
        "--timeout=10s",
        "--latency",
        f"--header=Accept: {ACCEPT}",
        f"http://{address[0]}:{address[1]}{path}",
    ]


def request_rate(address: Address, path: str, connections: int, seconds: float) -> Rate:
    """Requests per second that wrk gets answered; any answer but 2xx fails the measure."""
    command = wrk_command(address, path, connections, seconds)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = dict(re.findall(r"^\s*([\w/%. -]+?):?\s+([\d.]+\w*)\s*$", done.stdout, re.MULTILINE))
    if done.returncode or "Requests/sec" not in found:
        raise LoadError(f"wrk failed: {done.stderr or done.stdout}")
    if "Non-2xx or 3xx responses" in found:
        raise LoadError(f"{found['Non-2xx or 3xx responses']} answers were not 2xx")
    if errors := re.search(r"Socket errors:.*", done.stdout):
        raise LoadError(errors.group())
    return Rate(float(found["Requests/sec"]), found["50%"], found["99%"])


# --------------------------------------------------------------------- large answers: our reader


@dataclass
class Crowd:
    """What the clients of one measure got."""

    seconds: float
    body_bytes: int
    answers: int
    first_byte_seconds: list[float]  # of each answer, since the start
    cpu_seconds: float  # the generator's own


@dataclass
class _Client:
    socket: socket.socket
    request: bytes
    size: int
    flags: int  # of the reads of the body
    head: bytearray = field(default_factory=bytearray)
    left: int | None = None  # of the body; None while the head is being read

    def ask(self) -> None:
        self.head.clear()
        self.left = None
        self.socket.sendall(self.request)

    def read(self, scrap: bytearray) -> int:
        """Takes what is there and says how much of it was body."""
        if self.left is None:
            return self._read_head()
        wanted = min(self.left, len(scrap))
        count = self.socket.recv_into(scrap, wanted, self.flags)
        if not count:
            raise LoadError(f"closed with {self.left} of {self.size} bytes missing")
        self.left -= count
        return count

    def _read_head(self) -> int:
        received = self.socket.recv(HEAD_LIMIT_BYTES)
        if not received:
            raise LoadError("closed without an answer")
        self.head += received
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return 0
        lines = self.head[:end].decode("latin-1").split("\r\n")
        if lines[0].split()[1] != "200":
            raise LoadError(f"answered {lines[0]!r}")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        if headers.get("content-length") != str(self.size):
            raise LoadError(f"Content-Length {headers.get('content-length')}, not {self.size}")
        body = len(self.head) - end - 4
        self.left = self.size - body
        return body


class _Clients:
    """Connections that are read by one epoll loop."""

    def __init__(
        self, stack: ExitStack, address: Address, blob: Blob, count: int, copy: bool
    ) -> None:
        flags = 0 if copy else socket.MSG_TRUNC
        request = f"GET {blob.path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n\r\n".encode()
        self.selector = stack.enter_context(selectors.EpollSelector())
        self.clients = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(address, timeout=10))
            client = _Client(connection, request, blob.size, flags)
            self.selector.register(connection, selectors.EVENT_READ, client)
            self.clients.append(client)

    def run(self, start: float, deadline: float | None) -> Crowd:
        """One answer for each client; with a deadline, answer after answer until then."""
        cpu_before = time.process_time()
        scrap = bytearray(DISCARD_BYTES)  # not even touched unless bodies are copied
        crowd = Crowd(0.0, 0, 0, [], 0.0)
        for client in self.clients:
            client.ask()
        busy = len(self.clients)
        while busy and (deadline is None or time.monotonic() < deadline):
            ready = self.selector.select(STALL_LIMIT_SECONDS)
            if not ready:
                raise LoadError(f"no byte for {STALL_LIMIT_SECONDS} s, {busy} clients waiting")
            for key, _ in ready:
                client = key.data
                waiting = client.left is None
                crowd.body_bytes += client.read(scrap)
                if waiting and client.left is not None:
                    crowd.first_byte_seconds.append(time.monotonic() - start)
                if client.left == 0:
                    crowd.answers += 1
                    if deadline is None:
                        self.selector.unregister(client.socket)
                        busy -= 1
                    else:
                        client.ask()
        crowd.seconds = time.monotonic() - start
        crowd.cpu_seconds = time.process_time() - cpu_before
        return crowd


def download(address: Address, blob: Blob, clients: int, copy: bool) -> Crowd:
    """Each client takes the blob once, all at the same time; connecting is part of the time."""
    with ExitStack() as stack, _as_load_error():
        start = time.monotonic()
        return _Clients(stack, address, blob, clients, copy).run(start, None)


def stream(address: Address, blob: Blob, clients: int, seconds: float, copy: bool) -> Crowd:
    """Each client takes the blob again and again on its connection until the time is over."""
    with ExitStack() as stack, _as_load_error():
        connections = _Clients(stack, address, blob, clients, copy)
        start = time.monotonic()
        return connections.run(start, start + seconds)


@contextmanager
def _as_load_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LoadError(str(error)) from error


# ------------------------------------------------------------------------------------- checking


def check(address: Address, path: str, blob: Blob) -> None:
    """Fetch with every byte looked at, outside of all measuring."""
    connection = http.client.HTTPConnection(*address, timeout=STALL_LIMIT_SECONDS)
    with closing(connection):
        try:
            connection.request("GET", path, headers={"Accept": f"{ACCEPT}, {CONFIG_TYPE}"})
            response = connection.getresponse()
            hashed = hashlib.sha256()
            while piece := response.read(1 << 20):
                hashed.update(piece)
        except (OSError, http.client.HTTPException) as error:
            raise LoadError(f"{path}: {error!r}") from error
    if response.status != 200:
        raise LoadError(f"{path}: answered {response.status}")
    if f"sha256:{hashed.hexdigest()}" != blob.digest:
        raise LoadError(f"{path}: the bytes are not those of {blob.digest}")
