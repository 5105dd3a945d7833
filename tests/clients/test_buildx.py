"""docker buildx with the default builder (the environment's BUILDX names another one than scripts/setup's)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine, docker_plugin, running_engine

pytestmark = pytest.mark.root
Run = Callable[..., str]
FILE = """FROM busybox AS base
RUN echo one > /one
FROM base AS made
ARG TARGETARCH
RUN --mount=type=secret,id=s,env=S test "$S" = hush && cat /one > /two
FROM scratch
COPY --from=made /two /f
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    docker_plugin("buildx")
    yield from running_engine(tmp_path_factory.mktemp("buildx"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("registry")
    command = [sys.executable, "-m", "longshore", "registry", "--root", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    while not (found := re.search(rb"registry on (\S+)", process.stderr.readline())):
        assert process.poll() is None
    yield found[1].decode()
    process.terminate()
    process.wait(10)


@pytest.fixture
def run(engine: DockerEngine, tmp_path: Path) -> Run:
    """`docker buildx ...` in a folder with a Dockerfile; what it said on both streams."""
    (tmp_path / "Dockerfile").write_text(FILE)
    (tmp_path / "s").write_text("hush")

    def once(*words: str, code: int = 0, input: str = "") -> str:
        environment = {
            **os.environ, "DOCKER_HOST": f"unix://{engine.socket}", "DOCKER_CONFIG": str(engine.base / "config"),
            "BUILDKIT_PROGRESS": "plain",
        }  # fmt: skip
        done = subprocess.run(
            [docker_plugin("buildx"), *words], cwd=tmp_path, env=environment, input=input, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    return once


@pytest.fixture
def newer(run: Run) -> None:
    """Skips where buildx is from before 0.15: it knows no checks, and asks for attestations only when told to."""
    found = re.search(r"buildx v?(\d+)\.(\d+)", run("version"))
    if found is None or (int(found[1]), int(found[2])) < (0, 15):
        pytest.skip("buildx is older than 0.15 (BUILDX names another)")


BUILD = ("build", "--network=none", "--secret", "id=s,src=s")


def test_outputs_and_platforms(run: Run, tmp_path: Path) -> None:
    said = run(*BUILD, "-t", "x:1", "-o", "type=local,dest=out", ".")
    assert (tmp_path / "out" / "f").read_text() == "one\n" and "[base 2/2] RUN echo one > /one" in said
    text = "FROM scratch\nARG TARGETARCH\nCOPY s /$TARGETARCH\n"
    run("build", "--platform=linux/amd64,linux/arm64", "-o", "type=oci,dest=o.tar", "-f", "-", ".", input=text)
    with tarfile.open(tmp_path / "o.tar") as archive:
        names = archive.getnames()
        index = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
    assert "oci-layout" in names and len(index["manifests"]) == 1
    run("build", "--platform=linux/amd64,linux/arm64", "-o", "out2", "-f", "-", ".", input=text)
    assert (tmp_path / "out2" / "linux_arm64" / "arm64").read_text() == "hush"


def test_caches(run: Run, registry: str) -> None:
    steps = r"\[base 2/2\] RUN echo one > /one\n#\d+ CACHED"
    for target, source in (
        (f"type=registry,ref={registry}/c:1,mode=max", f"type=registry,ref={registry}/c:1"),
        ("type=local,dest=cache,mode=max", "type=local,src=cache"),
    ):
        run(*BUILD, "--no-cache", "-t", "x", "--cache-to", target, ".")
        run("prune", "-af")
        said = run(*BUILD, "-t", "x", "--cache-from", source, ".")
        assert re.search(steps, said), said


def test_push_and_what_is_attested(run: Run, newer: None, registry: str) -> None:
    run(*BUILD, "--push", "-t", f"{registry}/app:1", ".")
    shown = run("imagetools", "inspect", f"{registry}/app:1")
    assert "linux/amd64" in shown and "attestation-manifest" in shown
    found = json.loads(run("imagetools", "inspect", f"{registry}/app:1", "--format", "{{json .Provenance}}"))
    assert found["SLSA"]["buildDefinition"]["internalParameters"]["builderPlatform"] == "linux/amd64"
    run("imagetools", "create", "-t", f"{registry}/app:2", f"{registry}/app:1")


def test_checks_and_history(run: Run, newer: None) -> None:
    said = run("build", "--check", "-f", "-", ".", input="FROM busybox AS Big\nCMD x\n", code=1)
    assert "Check complete, 2 warnings have been found!" in said and "StageNameCasing" in said
    assert "Check complete, no warnings found." in run("build", "--check", ".")
    assert "base" in run("build", "--call=targets", ".")
    failed = run("build", "--network=none", "-f", "-", ".", input="FROM busybox\nRUN exit 7\n", code=1)
    assert "Dockerfile:2" in failed and ">>> RUN exit 7" in failed and "exit code: 7" in failed
    assert "Error" in run("history", "ls") and "RUN exit 7" in run("history", "logs")
    assert "Duration" in run("history", "inspect")


def test_bake_links_targets(run: Run, tmp_path: Path) -> None:
    (tmp_path / "docker-bake.json").write_text(
        json.dumps(
            {
                "target": {
                    "one": {"dockerfile-inline": "FROM busybox\nRUN echo baked > /b\nENV B=yes\n"},
                    "default": {
                        "contexts": {"base": "target:one"},
                        "dockerfile-inline": "FROM base\nRUN echo $B >> /b\nFROM scratch\nCOPY --from=0 /b /\n".replace(
                            "--from=1", "--from=0"
                        ),
                        "output": ["type=local,dest=baked"],
                    },
                }
            }
        )
    )
    run("bake")
    assert (tmp_path / "baked" / "b").read_text() == "baked\nyes\n"
