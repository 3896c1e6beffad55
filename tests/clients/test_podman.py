"""podman, for which the mirror stands in registries.conf, by path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import stories
from tests.real.image import KINDS, Image, new_name, publish
from tests.real.mirror import Mirror
from tests.real.podman import Podman
from tests.real.registry import Upstream

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def podman(module_folder: Path, mirror: Mirror) -> Podman:
    return Podman(module_folder, mirror, "docker.io", "registry.example")


@pytest.mark.parametrize("image", KINDS, indirect=True)
def test_a_pulled_image_is_the_pushed_one_and_runs(
    podman: Podman, image: Image, upstream: Upstream
) -> None:
    proof = {image.digest, image.manifest, image.config}
    stories.pulls_what_was_pushed(podman, image, upstream, proof)
    assert podman.run(image.tagged) == image.greeting


def test_other_registries_are_mirrored_too(podman: Podman, upstream: Upstream) -> None:
    image = publish(upstream, new_name("registry.example/team"))
    stories.pulls_what_was_pushed(podman, image, upstream, {image.digest, image.config})
    assert podman.run(image.tagged) == image.greeting


def test_the_second_pull_asks_the_upstream_nothing(
    podman: Podman, image: Image, upstream: Upstream, mirror: Mirror
) -> None:
    stories.pulls_again_without_asking_upstream(podman, image, upstream, mirror)


def test_tag_and_digest_are_pulled_while_the_upstream_is_down(
    podman: Podman, image: Image, upstream: Upstream
) -> None:
    stories.pulls_while_upstream_is_down(podman, image, upstream)
