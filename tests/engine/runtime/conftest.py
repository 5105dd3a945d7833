from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import oci

from longshore.engine.runtime import cgroups
from longshore.engine.runtime.runtime import Runtime


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oci.make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def parent() -> str:
    """The cgroup that a test's containers are in."""
    return f"/longshore-test-{os.getpid()}"


@pytest.fixture
async def runtime(tmp_path: Path, parent: str) -> AsyncIterator[Runtime]:
    made = Runtime(tmp_path / "run", cgroup_parent=parent)
    yield made
    for id in made.ids():
        await made.delete(id, force=True)
    made.close()
    cgroups.remove(parent)
