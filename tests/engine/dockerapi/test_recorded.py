"""The recorded exchanges of dockerd 28.5, replayed against the engine: most answers are the same, word for word."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine, running_engine

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    yield from running_engine(tmp_path_factory.mktemp("recorded"), alone=True)


# Exact answers of all that are counted, at the time of writing 145 of 146, 107 of 108 and so on; a little slack for timing.
@pytest.mark.parametrize(("part", "share"), [("container", 0.97), ("network", 0.93), ("port", 0.8), ("volume", 0.9)])
def test_answers_are_dockerd_s(engine: DockerEngine, golden: Path, part: str, share: float) -> None:
    command = [
        sys.executable,
        golden / "replay_docker.py",
        "--socket",
        engine.socket,
        "--busybox",
        "/bin/busybox",
        "--diff",
        "20",
        golden / "docker" / "exchanges" / f"{part}.jsonl",
    ]
    out = subprocess.run(command, capture_output=True, text=True, timeout=200).stdout
    words = out.splitlines()[0].split()
    assert int(words[1]) >= share * int(words[-1]), out
