"""An engine for the journeys of one file; `clean` takes away what a test has left in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.docker_engine import DockerEngine, running_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    yield from running_engine(tmp_path_factory.mktemp("docker"))


@pytest.fixture
def clean(engine: DockerEngine) -> Iterator[None]:
    yield
    ids = engine.docker("ps", "-aq").stdout.split()
    if ids:
        engine.docker("rm", "-f", "-v", *ids)
    engine.docker("network", "prune", "-f")
