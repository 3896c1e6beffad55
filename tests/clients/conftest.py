"""An upstream for all tests of this folder, a mirror for each file, an image for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.image import Image, Kind, new_name, publish
from tests.real.mirror import Mirror, mirroring
from tests.real.registry import Upstream, upstream_registry

pytest.register_assert_rewrite("tests.clients.stories")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with _short_folder(tmp_path_factory) as path:
        yield path


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with _short_folder(tmp_path_factory) as path:
        yield path


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with _short_folder(tmp_path_factory) as path, upstream_registry(path) as registry:
        yield registry


@pytest.fixture(scope="module")
def mirror(upstream: Upstream, module_folder: Path) -> Iterator[Mirror]:
    """Knows the upstream as docker.io and as registry.example; starts with an empty cache."""
    with mirroring(upstream, module_folder) as running:
        yield running


@pytest.fixture
def image(request: pytest.FixtureRequest, upstream: Upstream) -> Image:
    """At the upstream and nowhere else; an index of two platforms unless the test asks for its
    kind.
    """
    kind: Kind = getattr(request, "param", "index")
    return publish(upstream, new_name(), kind)


@contextmanager
def _short_folder(factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose path is short, as those of sockets must be.

    Only the files in it, logs and settings, outlive the tests: image stores are large.
    """
    path = factory.mktemp("x")
    yield path
    for child in path.iterdir():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)
