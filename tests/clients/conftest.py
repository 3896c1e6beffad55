"""An upstream for all tests of this folder; a mirror and an image of its own for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.image import Image, Kind, new_name, publish
from tests.real.mirror import Mirror, mirroring
from tests.real.registry import Upstream, upstream_registry

pytest.register_assert_rewrite("tests.clients.stories")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose path is short, as those of sockets must be.

    Only the files in it, logs and settings, outlive the test: image stores are large.
    """
    path = tmp_path_factory.mktemp("x")
    yield path
    for child in path.iterdir():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with upstream_registry(tmp_path_factory.mktemp("upstream")) as registry:
        yield registry


@pytest.fixture
def mirror(upstream: Upstream, folder: Path) -> Iterator[Mirror]:
    """An empty mirror that knows the upstream as docker.io and as registry.example."""
    with mirroring(upstream, folder) as running:
        yield running


@pytest.fixture
def image(request: pytest.FixtureRequest, upstream: Upstream, folder: Path) -> Image:
    """A new image at the upstream, an index of two platforms unless the test asks for its kind."""
    kind: Kind = getattr(request, "param", "index")
    return publish(upstream, folder / "layout", new_name(), kind)
