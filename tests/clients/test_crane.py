"""crane, which stands for all clients made with go-containerregistry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients import stories
from tests.real.crane import Crane
from tests.real.image import KINDS, Image
from tests.real.mirror import Mirror
from tests.real.registry import Upstream
from tests.real.skopeo import files_in

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180)]

HERD = 8


@pytest.fixture
def crane(folder: Path, mirror: Mirror) -> Crane:
    return Crane(folder, mirror)


@pytest.mark.parametrize("image", KINDS, indirect=True)
def test_every_byte_is_the_pushed_one(crane: Crane, image: Image, upstream: Upstream) -> None:
    stories.pulls_what_was_pushed(crane, image, upstream, image.content)
    assert crane.digest(image.tagged) == image.digest


def test_a_cold_image_is_found_valid(crane: Crane, image: Image) -> None:
    crane.validate(image.tagged)


def test_the_second_pull_asks_the_upstream_nothing(
    crane: Crane, image: Image, upstream: Upstream, mirror: Mirror
) -> None:
    stories.pulls_again_without_asking_upstream(crane, image, upstream, mirror)


def test_tag_and_digest_are_pulled_while_the_upstream_is_down(
    crane: Crane, image: Image, upstream: Upstream
) -> None:
    stories.pulls_while_upstream_is_down(crane, image, upstream)


def test_a_herd_of_cold_pulls_reads_each_blob_once(
    crane: Crane, image: Image, upstream: Upstream, folder: Path
) -> None:
    targets = [folder / f"copy-{number}" for number in range(HERD)]
    with upstream.relay.asked() as asked, ThreadPoolExecutor(HERD) as pool:
        list(pool.map(lambda target: crane.copy(image.tagged, target), targets))
    assert stories.reads(asked, image) == dict.fromkeys(image.blobs, 1)
    for target in targets:
        assert files_in(target) >= image.content.keys()
