"""DOCKER_BUILDKIT=1 of a docker command that brings its own BuildKit client (18.09 to 20.10; Debian's docker.io)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine

pytestmark = pytest.mark.root
OLD = "/usr/bin/docker"
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def command() -> list[str]:
    try:
        said = subprocess.run([OLD, "--version"], capture_output=True, text=True, check=True).stdout
    except OSError:
        pytest.skip("docker.io is not installed")
    found = re.search(r"version (\d+)\.", said)
    if not found or not 18 <= int(found[1]) < 23:
        pytest.skip(f"{OLD} is of another time: {said}")
    return [OLD, "build"]


@pytest.fixture
def environment(engine: DockerEngine, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ, "DOCKER_HOST": f"unix://{engine.socket}", "DOCKER_CONFIG": str(tmp_path / "config"),
        "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain",
    }  # fmt: skip


@pytest.fixture
def run(command: list[str], environment: dict[str, str], tmp_path: Path) -> Run:
    """`docker build ...` in a folder with a Dockerfile."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "f").write_text("data\n")
    (context / "Dockerfile").write_text(
        "FROM busybox\nCOPY f /f\nRUN --mount=type=secret,id=s cat /run/secrets/s; echo from a step\n"
    )
    (tmp_path / "s").write_text("hush\n")

    def once(*words: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, *words], cwd=context, env=environment, input=input, capture_output=True, timeout=60
        )

    return once


def test_builds(engine: DockerEngine, run: Run, tmp_path: Path) -> None:
    done = run("--secret", f"id=s,src={tmp_path}/s", "-t", "old:1", ".")
    assert done.returncode == 0, done.stderr
    assert (
        b"hush" in done.stderr and b"from a step" in done.stderr and b"naming to docker.io/library/old:1" in done.stderr
    )
    made = engine.docker("image", "inspect", "-f", "{{.Id}}", "old:1").stdout.strip()
    assert run("-q", ".").stdout.decode().strip() == made
    done = run("-t", "old:2", "-", input=b"FROM busybox\nRUN echo alone\n")
    assert done.returncode == 0 and b"alone" in done.stderr
    done = run("-f", "-", ".", input=b"FROM busybox\nCOPY f /\nRUN exit 3\n")
    assert done.returncode == 1 and b"did not complete successfully: exit code: 3" in done.stderr
    assert run("-o", str(tmp_path / "out"), ".").returncode == 0
    assert (tmp_path / "out" / "f").read_text() == "data\n"
    (tmp_path / "tar").write_bytes(run("-o", "-", ".").stdout)
    with tarfile.open(tmp_path / "tar") as archive:
        assert "f" in archive.getnames()


def test_an_interrupted_build(
    command: list[str], environment: dict[str, str], engine: DockerEngine, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo begun; sleep 1007\n")
    building = subprocess.Popen([*command, "."], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    assert building.stderr is not None
    while b" begun" not in building.stderr.readline():
        assert building.poll() is None
    building.send_signal(signal.SIGINT)
    assert building.wait(30) == 1
    building.stderr.close()
    # The step is gone with it: the same one can be built.
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo begun\n")
    assert subprocess.run([*command, "-q", "."], cwd=tmp_path, env=environment, timeout=60).returncode == 0


def test_an_engine_killed_in_a_build(engine: DockerEngine, tmp_path: Path) -> None:
    """kill -9 in the middle of a step: nothing of it is left, and what was built before is."""
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo kept > /kept\nRUN echo begun; sleep 1007\n")
    environment = {**os.environ, "DOCKER_HOST": f"unix://{engine.socket}", "DOCKER_BUILDKIT": "0"}
    building = subprocess.Popen(
        ["docker", "build", "--network", "none", "."], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert building.stdout is not None
    while line := building.stdout.readline():
        if line == b"begun\n":
            break
    engine.kill()
    assert building.wait(30) == 1
    building.stdout.close()
    engine.start()
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo kept > /kept\nRUN cat /kept\n")
    done = subprocess.run(
        ["docker", "build", "--network", "none", "-t", "again", "."],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0 and b"Using cache" in done.stdout and b"kept\n" in done.stdout, done.stdout
    (store,) = engine.base.glob("**/images.db")
    assert list((store.parent / "builds").iterdir()) == []
    assert str(store.parent) + "/builds" not in Path(f"/proc/{engine.pid}/mounts").read_text()
    assert b"sleep\x001007" not in b"".join(_command_lines())


def _command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return found
