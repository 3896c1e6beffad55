"""What every client shall find true of the mirror, told once."""

from __future__ import annotations

from collections.abc import Collection

from tests.real.client import Client
from tests.real.image import Image
from tests.real.mirror import Mirror
from tests.real.registry import Upstream
from tests.real.relay import Request


def pulls_what_was_pushed(
    client: Client, image: Image, upstream: Upstream, proof: Collection[str]
) -> None:
    """A cold pull: the client can show the digests of `proof`; upstream gave no blob twice."""
    with upstream.relay.asked() as asked:
        client.pull(image.tagged)
    assert client.digests(image.tagged) >= set(proof)
    assert reads(asked, image) == dict.fromkeys(image.blobs, 1)


def pulls_again_without_asking_upstream(
    client: Client, image: Image, upstream: Upstream, mirror: Mirror
) -> None:
    """The second pull, after the client lost its copy, is the mirror's alone."""
    client.pull(image.tagged)
    client.forget()
    with upstream.relay.asked() as asked_upstream, mirror.relay.asked() as asked_mirror:
        client.pull(image.tagged)
    assert reads(asked_mirror, image).keys() == set(image.blobs), "the client had kept something"
    assert asked_upstream == []


def pulls_while_upstream_is_down(client: Client, image: Image, upstream: Upstream) -> None:
    """Tag and digest, both from nothing."""
    client.pull(image.tagged)
    with upstream.relay.down():
        for reference in (image.tagged, image.pinned):
            client.forget()
            client.pull(reference)
            assert client.digests(reference) >= {image.digest, image.config}


def reads(asked: list[Request], image: Image) -> dict[str, int]:
    """How often each blob of the image was read."""
    counts = {blob: sum(request.reads(blob) for request in asked) for blob in image.blobs}
    return {blob: count for blob, count in counts.items() if count}
