"""skopeo, which copies every byte to where it can be compared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients import stories
from tests.real.image import KINDS, Image, publish
from tests.real.mirror import Mirror, mirroring
from tests.real.registry import Upstream
from tests.real.skopeo import Skopeo, files_in

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180)]

HERD = 8


@pytest.fixture
def skopeo(folder: Path, mirror: Mirror) -> Skopeo:
    return Skopeo(folder, mirror)


@pytest.fixture
def short_memory(upstream: Upstream, folder: Path) -> Iterator[Skopeo]:
    """A skopeo whose mirror looks each tag up anew after a second."""
    with mirroring(upstream, folder, tag_ttl="1s") as mirror:
        yield Skopeo(folder, mirror)


@pytest.mark.parametrize("image", KINDS, indirect=True)
def test_every_byte_is_the_pushed_one(skopeo: Skopeo, image: Image, upstream: Upstream) -> None:
    stories.pulls_what_was_pushed(skopeo, image, upstream, image.content)


def test_the_second_pull_asks_the_upstream_nothing(
    skopeo: Skopeo, image: Image, upstream: Upstream, mirror: Mirror
) -> None:
    stories.pulls_again_without_asking_upstream(skopeo, image, upstream, mirror)


def test_tag_and_digest_are_pulled_while_the_upstream_is_down(
    skopeo: Skopeo, image: Image, upstream: Upstream
) -> None:
    stories.pulls_while_upstream_is_down(skopeo, image, upstream)


def test_a_herd_of_cold_pulls_reads_each_blob_once(
    skopeo: Skopeo, image: Image, upstream: Upstream, folder: Path
) -> None:
    targets = [folder / f"copy-{number}" for number in range(HERD)]
    with upstream.relay.asked() as asked, ThreadPoolExecutor(HERD) as pool:
        list(pool.map(lambda target: skopeo.copy(image.tagged, target), targets))
    assert stories.reads(asked, image) == dict.fromkeys(image.blobs, 1)
    for target in targets:
        assert files_in(target) >= image.content.keys()


def test_a_tag_past_its_time_is_pulled_while_the_upstream_is_down(
    short_memory: Skopeo, image: Image, upstream: Upstream
) -> None:
    short_memory.pull(image.tagged)
    time.sleep(1.1)
    stories.pulls_while_upstream_is_down(short_memory, image, upstream)


def test_a_tag_that_moved_is_followed_after_its_time(
    short_memory: Skopeo, image: Image, upstream: Upstream
) -> None:
    short_memory.pull(image.tagged)
    moved = publish(upstream, image.name)
    time.sleep(1.1)
    short_memory.forget()
    short_memory.pull(moved.tagged)
    assert short_memory.digests(moved.tagged) >= moved.content.keys()
