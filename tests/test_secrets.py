"""Passwords and tokens are seen by the upstream alone: not in answers, logs, metrics, messages."""

import asyncio
import base64
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mirror.app import upstreams_of
from mirror.cli import app
from mirror.config import load
from mirror.logs import logging_to_stderr
from tests.fakes.auth import Auth, BasicAuth, BearerAuth
from tests.fakes.client import RawResponse
from tests.fakes.faults import Fault, Garbage, HangUp, Status
from tests.fakes.registry import FakeRegistry
from tests.support.house import House, mirroring

APP = "org/app"
PASSWORD = "correct-horse-battery"  # noqa: S105 - the secret of these tests
DATA = bytes(range(256)) * 1000
ALICE = {"username": "alice", "password": PASSWORD}


def spellings(registry: FakeRegistry) -> list[str]:
    """How a secret might be seen: the password, as the login has it, and every token."""
    tokens = list(registry.auth.issued) if isinstance(registry.auth, BearerAuth) else []
    return [PASSWORD, base64.b64encode(f"alice:{PASSWORD}".encode()).decode(), *tokens]


async def visit(house: House, digest: str) -> list[RawResponse]:
    """Asks for all there is, and for what there is not."""
    paths = [
        f"/v2/hub.test/{APP}/manifests/latest",
        f"/v2/hub.test/{APP}/manifests/none",
        f"/v2/hub.test/{APP}/blobs/{digest}",
        f"/v2/hub.test/{APP}/tags/list",
        f"/v2/hub.test/{APP}/referrers/{digest}",
        "/v2/hub.test/org/other/manifests/latest",
        "/v2/",
        "/v2/_catalog",
        "/readyz",
    ]
    answers = [await house.get(path) for path in paths]
    answers += [await house.head(path) for path in paths]
    return [*answers, await house.get("/metrics")]


FAULTS: list[Fault] = [
    Status(401),
    Status(403),
    Status(500),
    Status(302, {"Location": "http://127.0.0.1:1/"}),
    Status(302, {"Location": "nowhere://x"}),
    Garbage(),
    HangUp(),
]


AUTHS = {
    "Bearer": BearerAuth({"alice": PASSWORD}, anonymous=False),
    "Basic": BasicAuth("alice", PASSWORD),
    "wrong password": BearerAuth({"alice": "another"}, anonymous=False),
    "Basic with a wrong password": BasicAuth("alice", "another"),
    "other realm": BearerAuth(realm="https://evil.test/token"),
}


async def pull_in_every_way(auth: Auth, folder: Path) -> tuple[FakeRegistry, list[RawResponse]]:
    """Well, and under each fault."""
    async with FakeRegistry() as registry:
        registry.auth = auth
        digest = registry.add_blob(APP, DATA)
        registry.add_image(APP)
        upstream = {"endpoints": [registry.url], "credentials": [ALICE], "tag_ttl": "0s"}
        async with mirroring(folder, {"hub.test": upstream}) as house:
            answers = await visit(house, digest)
            for fault in FAULTS:
                registry.fail(fault)
                answers += await visit(house, digest)
                registry.heal()
    return registry, answers


@pytest.mark.parametrize("scheme", AUTHS)
def test_no_secret_is_told_to_anybody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], scheme: str
) -> None:
    with logging_to_stderr("json", "debug"):
        registry, answers = asyncio.run(pull_in_every_way(AUTHS[scheme], tmp_path))
    shown = [str((answer.status, answer.headers, answer.body)) for answer in answers]
    logged = capfd.readouterr()
    assert "hub.test" in logged.err
    assert any(seen.authorization for seen in registry.requests) is (scheme != "other realm")
    for secret in spellings(registry):
        assert not any(secret in each for each in [*shown, *logged])


async def test_no_secret_is_told_by_the_cache(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.auth = BearerAuth({"alice": PASSWORD}, anonymous=False)
    digest = registry.add_blob(APP, DATA)
    registry.add_image(APP)
    upstream = {"endpoints": [registry.url], "credentials": [ALICE]}
    async with mirroring(tmp_path, {"hub.test": upstream}) as house:
        await visit(house, digest)
    for file in [file for file in house.storage.rglob("*") if file.is_file()]:
        content = file.read_bytes()
        assert not any(secret.encode() in content for secret in spellings(registry))


def test_what_is_printed_of_settings_is_masked(tmp_path: Path) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text(yaml.safe_dump({"upstreams": {"docker.io": {"credentials": [ALICE]}}}))
    settings = load(file, {})
    upstreams = upstreams_of(settings)
    assert upstreams[0].accounts[0].read_password() == PASSWORD
    for value in (settings, settings.upstreams, *upstreams, *upstreams[0].accounts):
        assert PASSWORD not in repr(value)
        assert PASSWORD not in str(value)
    assert PASSWORD not in settings.model_dump_json()


@pytest.mark.parametrize(
    "credential",
    [
        "username: alice\n      password: {secret}",
        "username: alice\n      passwort: {secret}",
        "username: alice\n      password: [{secret}]",
        "username: alice\n      password: {{inner: {secret}}}",
        "username: alice\n      password: {secret}\n      password_file: /nowhere",
        "username: alice\n      password: {secret}\n      password: {secret}",
        "username: alice:{secret}",
        "username: alice\n      password: !vault {secret}",
        "username: alice\n      password: !!int {secret}",
        "username: alice\n      password: !!timestamp {secret}",
        "username: alice\n      password: *{secret}",
        "username: alice\n      password: &{secret}",
        "username: alice\n      password: !{secret}",
        "username: alice\n      password: %{secret}",
        'username: alice\n      password: "{secret}',
        "username: alice\n      password: `{secret}",
        "username: alice\n      password: x: {secret}",
        "{secret}",
    ],
)
@pytest.mark.parametrize("how", ["written", "variable", "override"])
def test_checking_the_configuration_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credential: str, how: str
) -> None:
    monkeypatch.setenv("PASSWORD", PASSWORD)
    secret = "${PASSWORD}" if how == "variable" else PASSWORD
    file = tmp_path / "mirror.yaml"
    written = credential.format(secret=secret)
    file.write_text(f"upstreams:\n  docker.io:\n    credentials:\n    - {written}\n")
    if how == "override":
        monkeypatch.setenv("MIRROR_UPSTREAMS", f"[{PASSWORD}")
    result = CliRunner().invoke(app, ["check-config", "--config", str(file)])
    assert PASSWORD not in result.output
    assert result.exit_code in (0, 2)
