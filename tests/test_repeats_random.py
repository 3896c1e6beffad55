"""Whether requests are looked up or read makes no difference to anybody, however they are sent."""

import asyncio
import re
from itertools import pairwise
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mirror.web.repeats
from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire
from tests.support.house import House, mirroring
from tests.support.layers import APP, UPSTREAM, until_idle

EXAMPLES = 80
BETWEEN_SECONDS = 0.001
DATE = re.compile(rb"Date: [^\r]*\r\n")
LAST = b"GET /healthz HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n"


def plain(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: mirror", *headers, "", ""]).encode()


def requests_for(config: str) -> st.SearchStrategy[bytes]:
    """Of a few contents, so that they come again; some carry another one as their body."""
    manifests = f"/v2/{UPSTREAM}/{APP}/manifests"
    blob = f"/v2/{UPSTREAM}/{APP}/blobs/{config}"
    bare = st.builds(
        plain,
        st.sampled_from(["GET", "HEAD"]),
        st.sampled_from(["/v2/", f"{manifests}/latest", f"{manifests}/none", blob]),
    )
    headed = bare.map(lambda request: request[:-2] + b"Range: bytes=1-5\r\n\r\n")
    return st.one_of(bare, bare, bare, headed, bare.map(with_length), bare.map(chunked))


def with_length(hidden: bytes) -> bytes:
    return plain("GET", "/v2/", f"Content-Length: {len(hidden)}") + hidden


def chunked(hidden: bytes) -> bytes:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    return plain("GET", "/v2/", "Transfer-Encoding: chunked") + body


async def said(house: House, pieces: list[bytes]) -> bytes:
    """All that comes back on one connection, but for the dates."""
    loop = asyncio.get_running_loop()
    port = int(house.url.rpartition(":")[2])
    transport, wire = await loop.create_connection(Wire, "127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for piece in pieces:
                transport.write(piece)
                await asyncio.sleep(BETWEEN_SECONDS)
            while await wire.more():
                pass
            return DATE.sub(b"", bytes(wire.buffer))
    finally:
        transport.abort()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def test_looking_up_and_reading_come_to_the_same(tmp_path: Path) -> None:
    """One mirror for all examples, in a loop that each of them runs a little further."""
    with asyncio.Runner() as runner:
        registry = FakeRegistry()
        image = registry.add_image(APP, layers=[b"x" * 1000])
        described = {"endpoints": [registry.url], "tag_ttl": "1h", "not_found_ttl": "1h"}
        runner.run(registry.start())
        described["endpoints"] = [registry.url]
        neighbourhood = mirroring(tmp_path, {UPSTREAM: described})
        house = runner.run(neighbourhood.__aenter__())
        for path in (f"manifests/{tag}" for tag in ("latest", "none")):
            runner.run(house.get(f"/v2/{UPSTREAM}/{APP}/{path}"))
        for _ in range(2):
            runner.run(house.get(f"/v2/{UPSTREAM}/{APP}/blobs/{image.config}"))
            runner.run(until_idle(house))

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.lists(requests_for(image.config), min_size=1, max_size=6),
            st.lists(st.integers(0, 2000), max_size=4),
            st.booleans(),
        )
        def check(requests: list[bytes], places: list[int], one_by_one: bool) -> None:
            pieces = [*requests, LAST] if one_by_one else cut(b"".join([*requests, LAST]), places)
            kept_seconds = mirror.web.repeats.REPEAT_SECONDS
            try:
                mirror.web.repeats.REPEAT_SECONDS = 0.0
                read = runner.run(said(house, pieces))
            finally:
                mirror.web.repeats.REPEAT_SECONDS = kept_seconds
            for _ in range(2):
                assert runner.run(said(house, pieces)) == read
            assert read.count(b"HTTP/1.1 ") >= len(requests) + 1 or b" 400 " in read

        try:
            check()
        finally:
            runner.run(neighbourhood.__aexit__(None, None, None))
            runner.run(registry.stop())
