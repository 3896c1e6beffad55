"""What is read out of manifests."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    MAX_BLOBS_NAMED,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    Named,
    blobs_of,
    fallback_child,
    is_accepted,
    is_manifest_type,
    media_type_of,
    named_in,
)
from tests.fakes.images import OCI_CONFIG, OCI_LAYER, digest_of, make_image, make_index
from tests.support.images import foreign_image

MANIFEST_TYPES = [
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    "application/vnd.cncf.oras.artifact.manifest.v1+json",
]


@pytest.mark.parametrize("media_type", MANIFEST_TYPES)
def test_types_that_say_manifest(media_type: str) -> None:
    assert is_manifest_type(media_type)
    assert media_type_of(b"{}", f"{media_type.title()} ; charset=utf-8") == media_type


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "application/json",
        "application/octet-stream",
        "text/html",
        OCI_CONFIG,
        OCI_LAYER,
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.oci.empty.v1+json",
        "application/vnd.in-toto+json",
        "application/vnd.oci.image.manifest.v1+json\r\nX: y",
    ],
)
def test_types_that_say_something_else(media_type: str) -> None:
    assert not is_manifest_type(media_type)
    assert media_type_of(b"{}", media_type) is None


def test_the_parts_of_an_image_are_its_config_and_layers() -> None:
    image = make_image([b"one", b"two"], b"{}")
    assert [str(part.digest) for part in blobs_of(image.manifest)] == [image.config, *image.layers]
    assert [part.size_bytes for part in blobs_of(image.manifest)] == [2, 3, 3]


def test_entries_of_an_index_and_foreign_layers_prove_nothing() -> None:
    image = make_image([b"one"], b"{}")
    assert blobs_of(make_index({"linux/amd64": image}).manifest) == []
    entry = {"digest": image.config, "size": 2}
    foreign = [
        {**entry, "urls": ["https://elsewhere.example/layer"]},
        {**entry, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        {**entry, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"},
        {**entry, "size": -1},
        {**entry, "size": "2"},
        {**entry, "size": 1 << 70},
        {**entry, "digest": "sha256:short"},
        {"size": 2},
        "text",
        None,
    ]
    assert blobs_of(json.dumps({"layers": foreign, "config": 7}).encode()) == []


def test_the_stand_in_for_an_index() -> None:
    arm, amd = make_image([b"arm"], b"{}"), make_image([b"amd"], b"{}")
    index = make_index({"linux/arm64": arm, "linux/amd64": amd})
    assert str(fallback_child(index.manifest)) == amd.digest
    assert fallback_child(make_index({"linux/arm64": arm}).manifest) is None
    assert fallback_child(b'{"manifests":{}}') is None
    assert fallback_child(b"no JSON") is None


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ([], True),
        ([""], True),
        (["*/*"], True),
        (["application/*"], True),
        (["text/html", "*/*"], True),
        ([f"text/html,{OCI_INDEX};q=0.5"], True),
        ([OCI_INDEX.upper()], True),
        ([OCI_MANIFEST], False),
        ([f"{OCI_MANIFEST}, {OCI_INDEX}; q=0"], False),
        ([f"{OCI_MANIFEST}, {OCI_INDEX};v=1;Q=0.000"], False),
        ([f"{OCI_MANIFEST}, {OCI_INDEX};q=0.001"], True),
        (["text/*"], False),
    ],
)
def test_accept(headers: list[str], accepted: bool) -> None:
    assert is_accepted(OCI_INDEX, headers) is accepted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "mediaType",
                    "manifests",
                    "layers",
                    "config",
                    "blobs",
                    "platform",
                    "digest",
                    "size",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_breaks_the_reader(body: bytes) -> None:
    media_type = media_type_of(body, "application/json")
    assert media_type is None or is_manifest_type(media_type)
    assert isinstance(blobs_of(body), list)
    fallback_child(body)


@pytest.mark.parametrize("body", [b"[" * 500_000, b'{"layers":' * 100_000, b"\xff" * 1000])
def test_deep_or_broken_bodies_are_no_manifests(body: bytes) -> None:
    assert media_type_of(body, OCI_MANIFEST) is None
    assert blobs_of(body) == []
    assert fallback_child(body) is None


def test_what_a_manifest_names_is_bounded() -> None:
    layers = [
        {"mediaType": "x", "digest": f"sha256:{n:064x}", "size": n}
        for n in range(2 * MAX_BLOBS_NAMED)
    ]
    assert len(blobs_of(json.dumps({"layers": layers}).encode())) == MAX_BLOBS_NAMED


def test_all_that_an_index_names_is_told_apart() -> None:
    image, attestation, other = (f"sha256:{n * 64}" for n in "abc")
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries = [
        {"digest": image, "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": attestation, "platform": unknown},
        {"digest": other},
        {"digest": "nonsense"},
        "nonsense",
        {"digest": image, "platform": "linux"},
    ]
    named = named_in(json.dumps({"manifests": entries}).encode())
    assert [str(digest) for digest in named.digests] == [image, attestation, other]
    assert named.children == named.digests
    assert [str(digest) for digest in named.platforms] == [image]


def test_a_manifest_names_what_is_not_distributable_as_well() -> None:
    body, _ = foreign_image([b"one", b"two"], [b"layer"])
    assert {str(digest) for digest in named_in(body).digests} >= {
        digest_of(data) for data in (b"one", b"two", b"layer", b"{}")
    }
    assert named_in(body).children == ()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"layers": 1, "manifests": {}}', b"\xff", b"null"])
def test_nonsense_names_nothing(body: bytes) -> None:
    assert named_in(body) == Named()
