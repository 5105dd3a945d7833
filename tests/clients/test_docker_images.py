"""docker pull, push, build and login as people type them: against registries of both kinds, and engines that are killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine

pytestmark = pytest.mark.root
Start = Callable[..., str]

HELPER = """#!/bin/sh
d={folder}
case $1 in
store) tr -d '\\n' > $d/held;;
get) read host; test -s $d/held && cat $d/held || {{ echo "credentials not found in native keychain"; exit 1; }};;
erase) rm -f $d/held;;
list) echo '{{}}';;
esac
"""
THEIRS = "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}\nhttp: {{addr: 127.0.0.1:5777}}\nlog: {{level: error}}\n"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Start]:
    """Starts the registry's command with flags; its host:port. "theirs": Debian's docker-registry."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*flags: str) -> str:
        if flags == ("theirs",):
            program = shutil.which("docker-registry")
            if program is None:
                pytest.skip("docker-registry is absent")
            (tmp_path / "config.yml").write_text(THEIRS.format(folder=tmp_path / "theirs"))
            running.append(subprocess.Popen([program, "serve", tmp_path / "config.yml"], stderr=subprocess.DEVNULL))
            for _ in range(200):
                done = subprocess.run(["curl", "-sf", "http://127.0.0.1:5777/v2/"], capture_output=True, check=False)
                if done.returncode == 0:
                    return "127.0.0.1:5777"
                time.sleep(0.05)
            raise AssertionError("docker-registry did not start")
        folder = tmp_path / f"registry{len(running)}"
        command = [sys.executable, "-m", "longshore", "registry", "--root", str(folder), "--port", "0", *flags]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE))
        stderr = running[-1].stderr
        assert stderr is not None
        while line := stderr.readline():
            if found := re.search(rb"registry on (\S+)", line):
                return found[1].decode()
        raise AssertionError("the registry did not start")

    yield start
    for process in running:
        process.terminate()
        process.wait(10)


def image(engine: DockerEngine, name: str, *, layers: int = 2, size: int = 0) -> str:
    """An image built of a few layers; its id."""
    lines = ["FROM busybox", *(f"RUN head -c {size} /dev/urandom > /r{n}; echo {n} > /f{n}" for n in range(layers))]
    return build(engine, name, "\n".join(lines)).strip()


def build(engine: DockerEngine, name: str, text: str) -> str:
    environment = {**os.environ, "DOCKER_BUILDKIT": "0", "DOCKER_HOST": f"unix://{engine.socket}"}
    command = ["docker", "build", "-q", "--network=none", "-t", name, "-"]
    return subprocess.run(command, input=text, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def htpasswd(tmp_path: Path) -> Path:
    made = subprocess.run(["openssl", "passwd", "-6", "pass"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "htpasswd").write_text(f"user:{made}")
    return tmp_path / "htpasswd"


@pytest.mark.parametrize("flags", [[], ["--tokens"]])
def test_login_by_a_credential_helper(
    engine: DockerEngine,
    registry: Start,
    htpasswd: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
) -> None:
    host = registry("--htpasswd", str(htpasswd), *flags)
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.parent.mkdir()
    helper.write_text(HELPER.format(folder=tmp_path))
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    config = engine.base / "config"
    config.mkdir(exist_ok=True)
    (config / "config.json").write_text(json.dumps({"credHelpers": {host: "test"}}))
    name = f"{host}/app:1"
    engine.docker("tag", "busybox", name)
    # Without a login: an error at once (the command would ask for a name if it were another one).
    refused = engine.docker("pull", f"{host}/none:1", check=False, timeout=20)
    assert refused.returncode == 1 and "Error response from daemon" in refused.stderr
    assert engine.docker("push", name, check=False).returncode == 1
    wrong = engine.docker("login", "-u", "user", "--password-stdin", host, input="no", check=False)
    assert "401 Unauthorized" in wrong.stderr or "unauthorized" in wrong.stderr
    assert "Login Succeeded" in engine.docker("login", "-u", "user", "--password-stdin", host, input="pass").stdout
    # A token server gives what stands for the password; neither lies in the configuration.
    held = json.loads((tmp_path / "held").read_text())
    assert held["Username"] == ("<token>" if flags else "user") and (held["Secret"] == "pass") is not bool(flags)
    assert held["Secret"] not in (config / "config.json").read_text()
    pushed = engine.docker("push", name).stdout
    digest = re.search(r"digest: (sha256:\w+)", pushed)
    assert digest is not None
    engine.docker("rmi", name)
    assert digest[1] in engine.docker("pull", name).stdout
    engine.docker("rmi", name)
    engine.docker("logout", host)
    assert not (tmp_path / "held").exists()
    assert engine.docker("pull", name, check=False, timeout=20).returncode == 1


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_images_go_and_come_as_they_were(engine: DockerEngine, registry: Start, kind: str) -> None:
    host = registry(*(["theirs"] if kind == "theirs" else []))
    made = image(engine, f"{host}/a/app:1", layers=3, size=100000)
    first = engine.docker("push", f"{host}/a/app:1").stdout
    assert first.count("Pushed") == 4
    again = engine.docker("push", f"{host}/a/app:1").stdout
    assert again.count("Layer already exists") == 4 and "Pushed" not in again
    engine.docker("tag", f"{host}/a/app:1", f"{host}/b/app:2")
    assert engine.docker("push", f"{host}/b/app:2").stdout.count("Mounted from a/app") == 4
    engine.docker("rmi", f"{host}/a/app:1", f"{host}/b/app:2")
    pulled = engine.docker("pull", f"{host}/b/app:2").stdout
    assert engine.docker("image", "inspect", f"{host}/b/app:2", "-f", "{{.Id}}").stdout.strip() == made
    digest = re.search(r"Digest: (sha256:\w+)", pulled)
    assert digest is not None and digest[1] in first
    assert engine.docker("pull", f"{host}/b/app@{digest[1]}").returncode == 0
    assert engine.docker("run", "--rm", "--network=none", f"{host}/b/app:2", "cat", "/f2").stdout == "2\n"
    assert engine.docker("pull", f"{host}/b/app:none", check=False).stderr.strip().endswith("manifest unknown")
    if shutil.which("skopeo"):
        flags = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        copied = ["skopeo", "copy", *flags, f"docker://{host}/b/app:2", f"docker://{host}/c/app:3"]
        subprocess.run(copied, check=True, capture_output=True)
        assert digest[1] in engine.docker("pull", f"{host}/c/app:3").stdout
    engine.docker("rmi", "-f", made)


def test_an_engine_that_is_killed_at_any_moment(engine: DockerEngine, registry: Start) -> None:
    host = registry()
    chance = random.Random(11)
    made = image(engine, f"{host}/big:1", layers=4, size=3_000_000)
    engine.docker("push", f"{host}/big:1")
    wanted = engine.docker("run", "--rm", "--network=none", f"{host}/big:1", "sha256sum", "/r0", "/r3").stdout
    engine.docker("rmi", f"{host}/big:1", "-f")
    for what in ("pull", "pull", "build", "push", "pull"):
        if what == "build":
            command = ["build", "-q", "--network=none", "-t", "half", "-"]
        elif what == "push":
            engine.docker("pull", "-q", f"{host}/big:1")
            engine.docker("tag", f"{host}/big:1", f"{host}/other{chance.random()}:1")
            command = ["push", "-a", f"{host}/big"]
        else:
            command = ["pull", f"{host}/big:1"]
        text = (
            "FROM busybox\nRUN head -c 9000000 /dev/urandom > /x\nRUN cp /x /y; sleep 1\n" if what == "build" else None
        )
        process = subprocess.Popen(
            ["docker", "-H", f"unix://{engine.socket}", *command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "DOCKER_BUILDKIT": "0"}, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        if text:
            process.stdin.write(text)
        process.stdin.close()
        time.sleep(chance.uniform(0.05, 0.4))
        engine.kill()
        process.wait(20)
        engine.start()
        store = next(engine.base.rglob("images.db")).parent
        # Nothing of what was under way is left but what a pull goes on with.
        assert not (store / "builds").exists() or list((store / "builds").iterdir()) == []
        assert [path.name for path in (store / "overlay2").iterdir() if path.name.startswith("tmp-")] == []
        left = subprocess.run(
            ["runc", "--root", str(next(engine.base.rglob("build"), "/none")), "list", "-q"],
            capture_output=True,
            check=False,
        )
        assert left.stdout == b""
    engine.docker("pull", f"{host}/big:1")
    assert engine.docker("image", "inspect", f"{host}/big:1", "-f", "{{.Id}}").stdout.strip() == made
    assert engine.docker("run", "--rm", "--network=none", f"{host}/big:1", "sha256sum", "/r0", "/r3").stdout == wanted
    engine.docker("push", f"{host}/big:1")
    assert "half" in engine.docker("images").stdout or build(engine, "half", "FROM busybox\nRUN echo x > /x\n")
