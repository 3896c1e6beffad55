"""containerd 1.x and 2.x, sent to the mirror by hosts.toml, naming the registry with `?ns=`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import stories
from tests.real.containerd import CHUNK, Ctr, containerd
from tests.real.image import KINDS, Image, new_name, publish
from tests.real.mirror import Mirror
from tests.real.registry import Upstream
from tests.real.relay import Request

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180)]

ONE, TWO = pytest.param(1, id="1.x"), pytest.param(2, id="2.x")


@pytest.fixture(scope="module", params=[ONE, TWO])
def ctr(request: pytest.FixtureRequest, module_folder: Path, mirror: Mirror) -> Iterator[Ctr]:
    with containerd(request.param, module_folder, mirror) as client:
        yield client


@pytest.mark.parametrize("image", KINDS, indirect=True)
def test_a_pulled_image_is_the_pushed_one_and_runs(
    ctr: Ctr, image: Image, upstream: Upstream
) -> None:
    stories.pulls_what_was_pushed(ctr, image, upstream, image.content)
    assert ctr.run(image.tagged) == image.greeting


def test_other_registries_are_mirrored_too(ctr: Ctr, upstream: Upstream) -> None:
    image = publish(upstream, new_name("registry.example/team"))
    stories.pulls_what_was_pushed(ctr, image, upstream, image.content)
    assert ctr.run(image.tagged) == image.greeting


def test_the_second_pull_asks_the_upstream_nothing(
    ctr: Ctr, image: Image, upstream: Upstream, mirror: Mirror
) -> None:
    stories.pulls_again_without_asking_upstream(ctr, image, upstream, mirror)


def test_tag_and_digest_are_pulled_while_the_upstream_is_down(
    ctr: Ctr, image: Image, upstream: Upstream
) -> None:
    stories.pulls_while_upstream_is_down(ctr, image, upstream)


@pytest.mark.parametrize("ctr", [TWO], indirect=True)
def test_a_layer_is_served_in_parallel_ranges(ctr: Ctr, image: Image, mirror: Mirror) -> None:
    """Once the mirror has it. Cold, an answer of the whole is right, too: it is taken as such."""
    ctr.pull(image.tagged)
    ctr.forget()
    with mirror.relay.asked() as asked:
        ctr.pull(image.tagged)
    noise = max(image.layers, key=lambda layer: len(image.content[layer]))
    assert offsets(asked, noise) == set(range(0, len(image.content[noise]), CHUNK))
    assert ctr.digests(image.tagged) >= image.content.keys()


def offsets(asked: list[Request], digest: str) -> set[int]:
    """Where the open-ended ranges began in which that blob was asked for."""
    ranges = [request.headers["range"] for request in asked if request.reads(digest)]
    return {int(value.removeprefix("bytes=").removesuffix("-")) for value in ranges}
