"""Upstreams over TLS: whose certificates count, and that nothing falls back to plain HTTP."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.fakes.auth import BearerAuth
from tests.fakes.deadline import SOON_SECONDS
from tests.fakes.images import digest_of
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring

APP = "org/app"
DATA = bytes(range(256)) * 1000
BLOB = f"/v2/hub.test/{APP}/blobs/{digest_of(DATA)}"
ALICE = {"username": "alice", "password": "secret"}


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return authority


def served_by(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@asynccontextmanager
async def secured(certificate: trustme.LeafCert) -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(tls=served_by(certificate)) as registry:
        registry.add_blob(APP, DATA)
        yield registry


@asynccontextmanager
async def trusting(registry: FakeRegistry, folder: Path, **settings: Any) -> AsyncIterator[House]:
    tls = {"ca_file": str(folder / "ca.pem")}
    upstream = {"endpoints": [registry.url], "tls": tls, **settings}
    async with mirroring(folder, {"hub.test": upstream}) as house:
        yield house


async def test_a_private_authority_can_be_trusted(authority: trustme.CA, tmp_path: Path) -> None:
    async with (
        secured(authority.issue_cert("127.0.0.1")) as registry,
        trusting(registry, tmp_path) as house,
    ):
        assert (await house.get(BLOB)).body == DATA


async def test_certificates_need_not_be_checked(authority: trustme.CA, tmp_path: Path) -> None:
    async with (
        secured(authority.issue_cert("elsewhere.test")) as registry,
        trusting(registry, tmp_path, tls={"skip_verify": True}) as house,
    ):
        assert (await house.get(BLOB)).body == DATA


@pytest.mark.parametrize("flaw", ["authority", "name", "expired"])
async def test_a_certificate_that_does_not_count_is_told(
    authority: trustme.CA, tmp_path: Path, flaw: str
) -> None:
    long_ago = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    certificate = {
        "authority": lambda: trustme.CA().issue_cert("127.0.0.1"),
        "name": lambda: authority.issue_cert("elsewhere.test"),
        "expired": lambda: authority.issue_cert("127.0.0.1", not_after=long_ago),
    }[flaw]()
    async with secured(certificate) as registry, trusting(registry, tmp_path) as house:
        answer = await house.get(BLOB)
        assert answer.status == 502
        assert b"certificate" in answer.body
        assert b"see `tls` in the configuration" in answer.body
        assert registry.requests == []


async def test_plain_http_where_tls_was_expected(registry: FakeRegistry, tmp_path: Path) -> None:
    upstream = {"endpoints": [f"https://{registry.authority}"], "connect_timeout": "300ms"}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        assert (await house.get(BLOB)).status in (502, 504)
    assert registry.requests == []


async def test_a_handshake_that_is_not_answered_ends(tmp_path: Path) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        upstream = {"endpoints": [f"https://127.0.0.1:{port}"], "connect_timeout": "300ms"}
        async with (
            mirroring(tmp_path, {"hub.test": upstream}) as house,
            asyncio.timeout(SOON_SECONDS),
        ):
            answer = await house.get(BLOB)
        assert answer.status == 504
        assert b"no answer in time" in answer.body


async def test_a_redirect_stays_encrypted_and_gets_no_login(
    authority: trustme.CA, tmp_path: Path
) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    async with secured(certificate) as registry, secured(certificate) as cdn:
        registry.auth = BearerAuth(users={"alice": "secret"}, anonymous=False)
        registry.serve_blobs_from(cdn)
        async with trusting(registry, tmp_path, credentials=[ALICE]) as house:
            assert (await house.get(BLOB)).body == DATA
        assert [seen.authorization for seen in cdn.requests] == [None]


async def test_a_redirect_to_plain_http_is_refused(
    registry: FakeRegistry, authority: trustme.CA, tmp_path: Path
) -> None:
    async with secured(authority.issue_cert("127.0.0.1")) as upstream:
        upstream.serve_blobs_from(registry)
        async with trusting(upstream, tmp_path) as house:
            for answer in (await house.get(BLOB), await house.head(BLOB)):
                assert answer.status == 502
            assert b"plain HTTP" in (await house.get(BLOB)).body
    assert registry.connections_accepted == 0


async def test_a_token_server_without_tls_gets_nothing(
    registry: FakeRegistry, authority: trustme.CA, tmp_path: Path
) -> None:
    """Not even one that is configured."""
    async with secured(authority.issue_cert("127.0.0.1")) as upstream:
        upstream.auth = BearerAuth(realm=f"{registry.url}/token")
        settings = {"token_realms": [registry.authority], "credentials": [ALICE]}
        async with trusting(upstream, tmp_path, **settings) as house:
            assert (await house.get(BLOB)).status == 502
    assert registry.connections_accepted == 0
