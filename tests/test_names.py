"""Names, and what is none."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import DigestInvalid, ManifestUnknown, NameInvalid
from mirror.names import MAX_NAME_CHARACTERS, Digest, Repository, Tag, parse_reference, shown

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize("text", [SHA256, SHA512])
def test_digests(text: str) -> None:
    digest = Digest.parse(text)
    assert str(digest) == text
    assert parse_reference(text) == digest
    assert f"{digest.algorithm}:{digest.hex}" == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256:",
        SHA256[:-1],
        SHA256 + "0",
        SHA256 + "\n",
        SHA256.upper(),
        "SHA256" + SHA256[6:],
        SHA256.replace("a", "g"),
        SHA256.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}"),
        SHA256.replace("0", "/"),
        SHA256.replace("sha256", "sha512"),
        SHA512.replace("sha512", "sha256"),
        "md5:" + "0" * 32,
        f" {SHA256}",
        f"{SHA256}:0",
    ],
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@given(st.binary(max_size=100))
def test_a_digest_matches_its_content_alone(algorithm: str, content: bytes) -> None:
    digest = Digest.of(content, algorithm)
    assert digest.hex == hashlib.new(algorithm, content).hexdigest()
    assert Digest.parse(str(digest)) == digest
    assert digest.matches(content)
    assert not digest.matches(content + b"x")


@pytest.mark.parametrize("text", ["latest", "v1.0", "_", "A-b_c.d", "sha256-0123.sig", "x" * 128])
def test_tags(text: str) -> None:
    assert parse_reference(text) == Tag.parse(text) == text


@pytest.mark.parametrize("text", ["", ".a", "-a", "a b", "a/b", "a\n", "é", "a%2f", "x" * 129])
def test_what_is_no_tag(text: str) -> None:
    with pytest.raises(ManifestUnknown):
        Tag.parse(text)


@pytest.mark.parametrize(
    ("upstream", "name", "expected"),
    [
        ("quay.io", "app", "quay.io/app"),
        ("quay.io", "a/b/c", "quay.io/a/b/c"),
        ("quay.io", "a.b_c__d-e---f/0", "quay.io/a.b_c__d-e---f/0"),
        ("docker.io", "app", "docker.io/library/app"),
        ("docker.io", "library/app", "docker.io/library/app"),
        ("docker.io", "org/app", "docker.io/org/app"),
        ("quay.io", "x" * MAX_NAME_CHARACTERS, "quay.io/" + "x" * MAX_NAME_CHARACTERS),
    ],
)
def test_repositories(upstream: str, name: str, expected: str) -> None:
    assert str(Repository.parse(upstream, name)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "a_-b",
        "a___b",
        "a..b",
        "..",
        "a/../b",
        ".a",
        "a.",
        "-a",
        "a b",
        "a\n",
        "a\x00",
        "ä",
        "a:b",
        "x" * (MAX_NAME_CHARACTERS + 1),
    ],
)
def test_what_is_no_repository(name: str) -> None:
    with pytest.raises(NameInvalid):
        Repository.parse("quay.io", name)


def test_the_same_name_under_two_upstreams_is_two_repositories() -> None:
    assert Repository("quay.io", "a/b") != Repository("ghcr.io", "a/b")


@given(st.text())
def test_text_in_messages_is_harmless(text: str) -> None:
    quoted = shown(text)
    assert quoted.isascii()
    assert quoted.isprintable()
    assert len(quoted) < 1200
