"""Containers in user namespaces (userns-remap): whose files are whose inside and on the host, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine, running_engine

from longshore.machinery import mounts, users

FIRST = 231_072
pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("clean"),
    pytest.mark.skipif(not users.supported(), reason="this kernel has no user namespaces for overlayfs"),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerEngine]:
    # Not below pytest's folder, which every session of pytest closes to other users.
    base = Path(tempfile.mkdtemp(prefix="userns-", dir="/var/tmp"))
    base.chmod(0o711)
    files = {name: base / name for name in ("passwd", "group", "subuid", "subgid")}
    files["passwd"].write_text(Path("/etc/passwd").read_text() + "dockremap:x:977:977::/:/bin/false\n")
    files["group"].write_text(Path("/etc/group").read_text() + "dockremap:x:977:\n")
    for name in ("subuid", "subgid"):
        files[name].write_text(f"other:5000:10\ndockremap:{FIRST}:65536\n")
        Path("/etc", name).touch()
    # The tests' own mount namespace: the machine's files stay as they are.
    for name, file in files.items():
        mounts.bind(file, Path("/etc", name))
    (base / "daemon.json").write_text('{"userns-remap": "default"}')
    try:
        yield from running_engine(base)
    finally:
        for name in files:
            mounts.unmount(Path("/etc", name))
        shutil.rmtree(base, ignore_errors=True)


def owner(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return info.st_uid - FIRST, info.st_gid - FIRST


def test_root_is_nobody_on_the_host(engine: DockerEngine, tmp_path: Path) -> None:
    own = engine.base / "data" / "nodes" / "n1" / "engine" / f"{FIRST}.{FIRST}"
    shown = engine.docker("info", "-f", "{{.DockerRootDir}} {{.SecurityOptions}}").stdout
    assert str(own) in shown and "name=userns" in shown
    made, given = tmp_path / "made" / "below", tmp_path / "given"
    given.mkdir()
    os.chown(given, FIRST, FIRST)
    script = "cat /proc/self/uid_map; id -u; touch /given/f /data/f /f; ls -ln /etc/hosts; exec sleep 1000"
    engine.docker("run", "-d", "--name", "mapped", "-v", f"{made}:/made", "-v", f"{given}:/given", "-v", "vol:/data",
                  "busybox", "sh", "-c", script)  # fmt: skip
    lines = engine.until("logs", "mapped", shows="/etc/hosts").splitlines()
    assert lines[0].split() == ["0", str(FIRST), "65536"] and lines[1] == "0" and lines[2].split()[2:4] == ["0", "0"]
    assert [owner(path) for path in (made, made.parent, given / "f", own / "volumes/vol/_data/f")] == [(0, 0)] * 4
    pid = int(engine.docker("inspect", "-f", "{{.State.Pid}}", "mapped").stdout)
    assert owner(Path(f"/proc/{pid}")) == (0, 0)
    # What is stored keeps the ids that it has inside: a layer is one for all mappings.
    upper = Path(engine.docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", "mapped").stdout.strip())
    assert (upper / "f").stat().st_uid == 0
    assert upper.parent.stat().st_mode & 0o007 == 0
    assert engine.docker("exec", "-u", "1000", "mapped", "id", "-u").stdout == "1000\n"
    assert str(FIRST) in engine.docker("top", "mapped").stdout.splitlines()[1].split()[0]


def test_files_in_and_out(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    os.chown(tmp_path / "file", 5, 6)
    listing = ("exec", "files", "stat", "-c", "%n %u:%g")
    engine.docker("run", "-d", "--name", "files", "-v", "data:/data", "-w", "/new/folder", "busybox", "sleep", "1000")
    for target in ("/tmp/file", "/data/file"):
        engine.docker("cp", "-a", str(tmp_path / "file"), f"files:{target}")
    assert engine.docker(*listing, "/tmp/file", "/data/file", "/new", "/new/folder").stdout.split()[1::2] == [
        "5:6",
        "5:6",
        "0:0",
        "0:0",
    ]
    names = ("files:/tmp/file", "files:/data/file")
    for running in (True, False):
        if not running:
            engine.docker("stop", "-t", "0", "files")
            engine.docker("cp", "-a", str(tmp_path / "file"), "files:/stopped")
        for name in names:
            data = subprocess.run(
                ["docker", "-H", f"unix://{engine.socket}", "cp", name, "-"], capture_output=True, check=True
            )
            listed = subprocess.run(["tar", "tvn"], input=data.stdout, capture_output=True, check=True).stdout
            assert b" 5/6 " in listed.replace(b"5/6", b" 5/6 ")
        data = subprocess.run(
            ["docker", "-H", f"unix://{engine.socket}", "export", "files"], capture_output=True, check=True
        )
        listed = subprocess.run(["tar", "tvn"], input=data.stdout, capture_output=True, check=True).stdout.decode()
        assert "5/6" in next(line for line in listed.splitlines() if line.endswith(" tmp/file"))
        assert not any(str(FIRST) in line for line in listed.splitlines())
    engine.docker("commit", "files", "committed")
    for mode in ((), ("--userns", "host")):
        shown = engine.docker("run", "--rm", *mode, "committed", "stat", "-c", "%u:%g", "/tmp/file", "/stopped").stdout
        assert shown.split() == ["5:6", "5:6"]


def test_volumes_are_filled_and_roots_mounted_again(engine: DockerEngine) -> None:
    engine.docker("run", "--name", "maker", "busybox", "sh", "-c", "mkdir /v; touch /v/f; chown 7:8 /v/f; chown 7 /v; mknod /v/p p")  # fmt: skip
    engine.docker("commit", "maker", "filled")
    script = ("stat", "-c", "%u:%g", "/v", "/v/f", "/v/p", "/image/v/f")
    image = ("--mount", "type=image,src=filled,dst=/image")
    shown = engine.docker("run", "--rm", "-v", "copied:/v", *image, "filled", *script).stdout
    assert shown.split() == ["7:0", "7:8", "0:0", "7:8"]
    engine.docker("run", "-d", "--name", "again", "busybox", "sh", "-c", "cat /kept; echo one >> /kept; sleep 1000")
    engine.docker("restart", "-t", "0", "again")
    engine.until("logs", "again", shows="one")


def test_namespaces_are_the_container_s_own(engine: DockerEngine) -> None:
    """Its network namespace can be configured by it, others can share it, tmpfs and terminals work."""
    engine.docker("run", "-d", "--name", "first", "--cap-add", "NET_ADMIN", "--ipc", "shareable", "busybox", "sleep", "1000")  # fmt: skip
    engine.docker("exec", "first", "ip", "link", "add", "dummy1", "type", "bridge")
    shown = engine.docker("run", "--rm", "--network", "container:first", "--ipc", "container:first", "--pid", "container:first",
                          "busybox", "sh", "-c", "ls /sys/class/net; readlink /proc/self/ns/user; ls -lnd /dev/shm").stdout  # fmt: skip
    inside = engine.docker("exec", "first", "readlink", "/proc/self/ns/user").stdout.strip()
    assert "dummy1" in shown and inside in shown
    shown = engine.docker("run", "--rm", "--network", "none", "--tmpfs", "/t:uid=3", "--read-only", "--init", "busybox",
                          "sh", "-c", "stat -c %u:%g /t; touch /t/f; touch /no || true").stdout  # fmt: skip
    assert shown.split() == ["3:0"]
    words = f"docker -H unix://{engine.socket} run --rm -t busybox stat -c %u:%g /dev/console"
    tty = subprocess.run(["script", "-qec", words, "/dev/null"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)  # fmt: skip
    assert b"0:5" in tty.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--privileged",), "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode"),
        (("--network", "host"), "cannot share the host's network namespace when user namespaces are enabled"),
        (("--pid", "host"), "cannot share the host PID namespace when user namespaces are enabled"),
        (("--security-opt", "writable-cgroups=true"), "option WritableCgroups conflicts with user namespaces and rootless mode"),
    ],
)  # fmt: skip
def test_what_needs_the_host_s_namespace(engine: DockerEngine, words: tuple[str, ...], text: str) -> None:
    done = engine.docker("run", "--rm", *words, "busybox", "true", check=False)
    assert done.returncode and text in done.stderr
    if "cgroups" not in text:
        assert engine.docker("run", "--rm", *words, "--userns=host", "busybox", "id", "-u").stdout == "0\n"


def test_a_killed_engine_takes_them_over(engine: DockerEngine) -> None:
    engine.docker("run", "-d", "--name", "stays", "busybox", "sleep", "1000")
    engine.kill()
    engine.start()
    assert engine.docker("exec", "stays", "id", "-u").stdout == "0\n"
    engine.docker("rm", "-f", "stays")
    left = [m.path for m in mounts.table(engine.pid) if "/userns/" in m.path]
    assert left == [str(engine.base / "run/nodes/n1/engine/userns/user")]


def test_steps_of_a_build(engine: DockerEngine, tmp_path: Path) -> None:
    """RUN is in a user namespace as well, and what it writes is the image's own ids for every mapping."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nCOPY --chown=5:6 file /x\nRUN cat /proc/self/uid_map; stat -c %u:%g /x; touch /y; chown 7:8 /y\n"
        "USER 1000\nRUN touch /tmp/z && ! touch /no\n"
    )
    words = ["docker", "-H", f"unix://{engine.socket}", "build", "-t", "built", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "DOCKER_BUILDKIT": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert ["0", str(FIRST), "65536"] in [line.split() for line in done.stdout.splitlines()]
    assert "5:6" in done.stdout.split()
    for mode in ((), ("--userns", "host")):
        shown = engine.docker("run", "--rm", *mode, "built", "stat", "-c", "%u:%g", "/x", "/y", "/tmp/z").stdout
        assert shown.split() == ["5:6", "7:8", "1000:1000"]
    left = [m.path for m in mounts.table(engine.pid) if "/userns/" in m.path or "/builds/" in m.path]
    assert left == [str(engine.base / "run/nodes/n1/engine/userns/user")]
