"""No request gives 5xx by its form alone: requests of any form, sent over real sockets."""

import asyncio
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.deadline import DEADLINE_SECONDS
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire
from tests.support.house import House, mirroring
from tests.support.layers import APP, UPSTREAM

EXAMPLES = 250
DIGEST = "sha256:" + "0" * 64

ANY_BYTES = st.binary(max_size=40)
WORDS = st.sampled_from(
    [UPSTREAM, APP, "v2", "manifests", "blobs", "tags", "list", "referrers", "latest", DIGEST]
)
ODDITIES = st.sampled_from(
    ["_catalog", "uploads", "..", "", "%2f", "%00", "%ff", "%", "é", "A", "a" * 300, "docker.io"]
)
PARTS = (WORDS | ODDITIES).map(str.encode)
TARGETS = st.one_of(
    st.lists(PARTS, max_size=8).map(lambda parts: b"/v2/" + b"/".join(parts)),
    st.lists(PARTS | ANY_BYTES, max_size=8).map(lambda parts: b"/" + b"/".join(parts)),
    ANY_BYTES,
)
QUERIES = st.lists(
    st.tuples(
        st.sampled_from([b"ns", b"n", b"last", b"artifactType"]) | ANY_BYTES,
        st.sampled_from([UPSTREAM.encode(), b"-1", b"9" * 30, b"%ff", b""]) | ANY_BYTES,
    ).map(b"=".join),
    max_size=3,
).map(lambda pairs: b"?" + b"&".join(pairs) if pairs else b"")
METHODS = st.sampled_from([b"GET"] * 6 + [b"HEAD", b"PUT", b"OPTIONS", b"get", b"X-Y"]) | ANY_BYTES
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b""])
NAMES = st.sampled_from(
    b"Range If-Range If-None-Match Accept Host Content-Length Connection Transfer-Encoding"
    b" Content-Encoding Expect Upgrade Authorization Cookie".split()
)
VALUES = st.one_of(
    ANY_BYTES,
    st.text(st.sampled_from("bytes=0123456789-, \t"), max_size=60).map(str.encode),
    st.text(st.sampled_from('W/"sha256:0*,; q='), max_size=60).map(str.encode),
    st.sampled_from([b"chunked", b"gzip", b"100-continue", b"upgrade", b"0", b"-1", b"x" * 70_000]),
)
HEADERS = st.lists(st.tuples(NAMES | ANY_BYTES, VALUES).map(b": ".join), max_size=5)


@st.composite
def raw_requests(draw: st.DrawFn) -> bytes:
    target = draw(TARGETS) + draw(QUERIES)
    first = b" ".join([draw(METHODS), target, draw(VERSIONS)])
    return b"\r\n".join([first, b"Host: mirror", *draw(HEADERS), b"", b""])


async def first_line(house: House, request: bytes) -> bytes:
    """Of the answer to these bytes; empty where the connection is closed without one."""
    loop = asyncio.get_running_loop()
    port = int(house.url.rpartition(":")[2])
    transport, wire = await loop.create_connection(Wire, "127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            transport.write(request)
            transport.write(b"\r\n\r\n")  # ends what the request itself may leave open
            transport.write_eof()
            return await wire.until(b"\r\n") or b""
    finally:
        transport.abort()
        while await wire.more():
            pass


def test_no_form_of_a_request_is_the_mirrors_failure(tmp_path: Path) -> None:
    """One mirror for all examples, in a loop that each of them runs a little further."""
    with asyncio.Runner() as runner:
        registry = FakeRegistry()
        registry.add_image(APP, layers=[b"x" * 100_000])
        neighbourhood = mirroring(tmp_path, {UPSTREAM: registry}, default_upstream=UPSTREAM)
        runner.run(registry.start())
        house = runner.run(neighbourhood.__aenter__())

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(raw_requests())
        def check(request: bytes) -> None:
            line = runner.run(first_line(house, request))
            assert not line or b"200" <= line.split()[1] < b"500", line

        try:
            check()
            assert runner.run(house.get("/healthz")).status == 200
        finally:
            runner.run(neighbourhood.__aexit__(None, None, None))
            runner.run(registry.stop())
