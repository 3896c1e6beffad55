"""Docker Engine, for which the mirror stands in `registry-mirrors`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import stories
from tests.real.dockerd import Docker, docker_engine
from tests.real.image import KINDS, Image
from tests.real.mirror import Mirror
from tests.real.registry import Upstream

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def docker(module_folder: Path, mirror: Mirror) -> Iterator[Docker]:
    with docker_engine(module_folder, mirror) as engine:
        yield engine


@pytest.mark.parametrize("image", KINDS, indirect=True)
def test_a_pulled_image_is_the_pushed_one_and_runs(
    docker: Docker, image: Image, upstream: Upstream
) -> None:
    proof = {image.digest, image.config}
    stories.pulls_what_was_pushed(docker, image, upstream, proof)
    assert docker.run(image.tagged) == image.greeting


def test_the_second_pull_asks_the_upstream_nothing(
    docker: Docker, image: Image, upstream: Upstream, mirror: Mirror
) -> None:
    stories.pulls_again_without_asking_upstream(docker, image, upstream, mirror)


def test_tag_and_digest_are_pulled_while_the_upstream_is_down(
    docker: Docker, image: Image, upstream: Upstream
) -> None:
    stories.pulls_while_upstream_is_down(docker, image, upstream)
