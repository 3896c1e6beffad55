"""To which hosts a password may go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from mirror.upstream.realms import is_allowed_realm

HUB = "https://registry-1.docker.io"
GITLAB = "https://registry.gitlab.com"


def is_allowed(realm: str, endpoint: str, *extra_hosts: str) -> bool:
    try:
        return is_allowed_realm(URL(realm), URL(endpoint), frozenset(extra_hosts))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("endpoint", "realm"),
    [
        (HUB, "https://auth.docker.io/token"),
        (HUB, "https://registry-1.docker.io/token"),
        (HUB, "https://docker.io/token"),
        (HUB, "https://AUTH.Docker.IO/token"),
        (HUB, "https://auth.docker.io./token"),
        (HUB, "https://auth.docker.io:8443/token"),
        (GITLAB, "https://gitlab.com/jwt/auth"),
        ("https://registry.example.co.uk", "https://auth.example.co.uk/"),
        ("https://ghcr.io", "https://ghcr.io/token"),
        ("https://me.github.io", "https://auth.me.github.io/token"),
        ("https://192.0.2.1:5000", "https://192.0.2.1:5000/token"),
        ("https://[2001:db8::1]:5000", "https://[2001:db8::1]:5000/token"),
        ("http://localhost:5000", "http://localhost:5000/token"),
        ("http://registry:5000", "http://registry:5000/token"),
        ("http://registry.corp.example", "http://auth.corp.example/token"),
        ("http://registry.corp.example", "https://auth.corp.example/token"),
    ],
)
def test_its_own_domain_is_allowed(endpoint: str, realm: str) -> None:
    assert is_allowed(realm, endpoint)


@pytest.mark.parametrize(
    ("endpoint", "realm"),
    [
        (HUB, "https://evil.com/token"),
        (HUB, "https://docker.io.evil.com/token"),
        (HUB, "https://evildocker.io/token"),
        (HUB, "https://169.254.169.254 .docker.io/token"),
        (HUB, "https://169%2E254.docker.io/token"),
        (HUB, "https://auth.docker.io@evil.com/token"),
        (HUB, "https://auth.docker.io:443@evil.com/token"),
        (HUB, "https://evil.com#@auth.docker.io/token"),
        (HUB, "https://evil.com\\@auth.docker.io/token"),
        (HUB, "https://user:secret@auth.docker.io/token"),
        (HUB, "http://auth.docker.io/token"),
        (HUB, "http://registry-1.docker.io/token"),
        (HUB, "ftp://auth.docker.io/token"),
        (HUB, "file:///etc/passwd"),
        (HUB, "//auth.docker.io/token"),
        (HUB, "/token"),
        (HUB, "auth.docker.io"),
        (HUB, ""),
        (HUB, "https://"),
        (HUB, "https://io/"),
        (HUB, "https://auth.docker.io:99999/"),
        (HUB, "https://[auth.docker.io/"),
        (HUB, "https://127.0.0.1/"),
        (HUB, "https://[::1]/"),
        ("https://me.github.io", "https://you.github.io/token"),
        ("https://registry.example.co.uk", "https://auth.other.co.uk/"),
        ("https://192.0.2.1:5000", "https://192.0.2.1:5001/token"),
        ("https://192.0.2.1", "https://192.0.2.2/token"),
        ("https://192.0.2.1:5000", "http://192.0.2.1:5000/token"),
        ("https://[2001:db8::1]", "https://[2001:db8::2]/"),
        ("http://localhost:5000", "http://localhost:5001/token"),
        ("http://registry:5000", "http://auth:5000/token"),
        ("http://registry:5000", "http://auth.registry:5000/token"),
    ],
)
def test_other_hosts_are_not(endpoint: str, realm: str) -> None:
    assert not is_allowed(realm, endpoint)


@pytest.mark.parametrize(
    ("configured", "realm", "allowed"),
    [
        ("auth.corp", "https://auth.corp/token", True),
        ("Auth.Corp", "https://auth.corp/token", True),
        ("auth.corp:443", "https://auth.corp/token", True),
        ("auth.corp", "https://auth.corp:443/token", True),
        ("auth.corp:8443", "https://auth.corp:8443/token", True),
        ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443/token", True),
        ("auth.corp", "https://auth.corp:8443/token", False),
        ("auth.corp:8443", "https://auth.corp/token", False),
        ("auth.corp", "https://evil.auth.corp/token", False),
        ("auth.corp", "https://auth.corp@evil.com/token", False),
        ("auth.corp", "http://auth.corp/token", False),
        ("auth.corp:80", "http://auth.corp/token", False),
    ],
)
def test_configured_hosts(configured: str, realm: str, allowed: bool) -> None:
    assert is_allowed(realm, HUB, configured) is allowed


def test_plain_http_is_allowed_where_the_endpoint_has_it_too() -> None:
    assert is_allowed("http://auth.corp/token", "http://registry.corp", "auth.corp")


@given(st.text(max_size=60), st.sampled_from(["", "https://", "https://auth.docker.io"]))
def test_a_realm_is_judged_or_refused_but_never_anything_else(text: str, start: str) -> None:
    is_allowed(start + text, HUB)
