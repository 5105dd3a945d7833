"""Journeys of a person at the docker command, unmodified, against the engine."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def test_run_carries_streams_and_exit_code(engine: DockerEngine) -> None:
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert engine.docker("run", "-i", "--rm", "busybox", "cat", input="fed\n").stdout == "fed\n"
    big = engine.docker("run", "--rm", "busybox", "sh", "-c", "seq 200000").stdout
    assert big == "".join(f"{n}\n" for n in range(1, 200001))
    data = bytes(range(256)) * 12000
    counted = engine.docker("run", "-i", "--rm", "busybox", "md5sum", input=data).stdout.split()[0]
    assert counted == hashlib.md5(data).hexdigest()
    assert engine.docker("ps", "-aq").stdout == ""


def test_missing_command_and_image_say_so(engine: DockerEngine) -> None:
    done = engine.docker("run", "--rm", "busybox", "nosuch", check=False)
    assert done.returncode == 127 and "executable file not found in $PATH" in done.stderr
    done = engine.docker("run", "--rm", "busybox", "/etc/passwd", check=False)
    assert done.returncode == 126 and "permission denied" in done.stderr
    done = engine.docker("run", "--rm", "--pull=never", "nosuch:1", check=False)
    assert done.returncode == 125 and "No such image: nosuch:1" in done.stderr


def test_a_terminal_resizes_detaches_and_attaches_again(engine: DockerEngine) -> None:
    primary, secondary = pty.openpty()
    command = ["docker", "-H", f"unix://{engine.socket}", "run", "-it", "--name", "term", "busybox", "sh"]
    client = subprocess.Popen(
        command, stdin=secondary, stdout=secondary, stderr=secondary, close_fds=True, start_new_session=True
    )
    os.close(secondary)
    seen = b""

    def expect(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 15
        while text not in seen and time.monotonic() < deadline:
            if select.select([primary], [], [], 0.2)[0]:
                try:
                    seen += os.read(primary, 4096)
                except OSError:
                    break
        assert text in seen, seen

    expect(b"#")
    os.write(primary, b"echo $((6*7)); tty\n")
    expect(b"42")
    expect(b"/dev/pts/0")
    os.write(primary, b"\x10\x11")
    assert client.wait(10) == 0
    os.close(primary)
    assert engine.docker("inspect", "-f", "{{.State.Status}}", "term").stdout.strip() == "running"
    done = engine.docker("exec", "term", "sh", "-c", "echo inside; exit 5", check=False)
    assert (done.returncode, done.stdout) == (5, "inside\n")
    assert "42" in engine.docker("logs", "term").stdout


def test_logs_bounds_and_follow(engine: DockerEngine) -> None:
    engine.docker("run", "--name", "log", "busybox", "sh", "-c", "echo a; echo b >&2; printf c")
    done = engine.docker("logs", "log")
    assert done.stdout == "a\nc" and done.stderr == "b\n"
    assert engine.docker("logs", "--tail", "1", "log").stdout == "c"
    stamped = engine.docker("logs", "-t", "--tail", "all", "log").stdout
    assert stamped.splitlines()[0].endswith("Z a")
    engine.docker("run", "-d", "--name", "flow", "busybox", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done")
    assert engine.docker("logs", "-f", "flow").stdout == "1\n2\n3\n"


def test_stop_kill_restart_and_wait(engine: DockerEngine) -> None:
    engine.docker(
        "run",
        "-d",
        "--name",
        "stops",
        "busybox",
        "sh",
        "-c",
        'trap "exit 5" TERM; echo up; while :; do sleep 0.05; done',
    )
    # The shell listens to signals from its first line on.
    for _ in range(100):
        if engine.docker("logs", "stops").stdout:
            break
    engine.docker("stop", "-t", "5", "stops")
    assert engine.docker("inspect", "-f", "{{.State.ExitCode}} {{.State.Status}}", "stops").stdout.split() == [
        "5",
        "exited",
    ]
    engine.docker("start", "stops")
    engine.docker("pause", "stops")
    assert "(Paused)" in engine.docker("ps").stdout
    engine.docker("unpause", "stops")
    engine.docker("kill", "stops")
    assert engine.docker("wait", "stops").stdout.strip() == "137"
    engine.docker("restart", "-t", "0", "stops")
    assert engine.docker("inspect", "-f", "{{.State.Running}}", "stops").stdout.strip() == "true"


def test_copying_and_changes(engine: DockerEngine, tmp_path: Path) -> None:
    engine.docker("run", "-d", "--name", "copy", "busybox", "sleep", "1000")
    (tmp_path / "f").write_text("content")
    engine.docker("cp", str(tmp_path / "f"), "copy:/tmp/g")
    assert engine.docker("exec", "copy", "cat", "/tmp/g").stdout == "content"
    engine.docker("exec", "copy", "ln", "-s", "/../../../../../../etc/passwd", "/tmp/out")
    engine.docker("cp", "-L", "copy:/tmp/out", str(tmp_path / "got"))
    assert (tmp_path / "got").read_text().startswith("root:x:0:0:root:/root:/bin/sh\nuser")
    assert engine.docker("diff", "copy").stdout.split() == ["C", "/tmp", "A", "/tmp/g", "A", "/tmp/out"]
    engine.docker("commit", "-c", 'CMD ["cat","/tmp/g"]', "copy", "kept")
    assert engine.docker("run", "--rm", "kept").stdout == "content"
    engine.docker("rmi", "kept")


def test_volumes_are_filled_kept_and_removed(engine: DockerEngine) -> None:
    engine.docker("run", "--rm", "-v", "vol:/etc", "busybox", "sh", "-c", "echo new > /etc/new")
    assert (
        engine.docker("run", "--rm", "-v", "vol:/x:ro", "busybox", "sh", "-c", "cat /x/new; ls /x/passwd").stdout
        == "new\n/x/passwd\n"
    )
    done = engine.docker("run", "--rm", "-v", "vol:/x:ro", "busybox", "touch", "/x/y", check=False)
    assert done.returncode != 0 and "Read-only" in done.stderr
    engine.docker("volume", "rm", "vol")
    before = engine.docker("volume", "ls", "-q").stdout
    engine.docker("run", "--rm", "-v", "/anon", "busybox", "touch", "/anon/x")
    assert engine.docker("volume", "ls", "-q").stdout == before


def test_networks_names_and_ports(engine: DockerEngine) -> None:
    engine.docker("network", "create", "app")
    web = "mkdir -p /w; echo hello > /w/index.html; httpd -f -h /w"
    engine.docker(
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "app",
        "--network-alias",
        "site",
        "-p",
        "18080:80",
        "busybox",
        "sh",
        "-c",
        web,
    )
    fetch = "for i in 1 2 3 4 5 6 7 8 9; do wget -qO- http://{0}/ && break; sleep 0.1; done"
    for name in ("web", "site", "web.app"):
        assert (
            engine.docker("run", "--rm", "--network", "app", "busybox", "sh", "-c", fetch.format(name)).stdout
            == "hello\n"
        )
    form = "{{(index .IPAM.Config 0).Gateway}}"
    gateway = engine.docker("network", "inspect", "-f", form, "bridge").stdout.strip()
    for address in ("127.0.0.1", gateway):
        got = subprocess.run(
            [BUSYBOX_WGET, "wget", "-qO-", f"http://{address}:18080/"], capture_output=True, text=True, timeout=10
        )
        assert got.stdout == "hello\n", address
    # Hairpin: through the host's port, from another network and from the container itself.
    assert engine.docker("run", "--rm", "busybox", "wget", "-qO-", f"http://{gateway}:18080/").stdout == "hello\n"
    assert engine.docker("exec", "web", "wget", "-qO-", f"http://{gateway}:18080/").stdout == "hello\n"
    # Other networks have no way in.
    address = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.app.IPAddress}}", "web").stdout.strip()
    done = engine.docker("run", "--rm", "busybox", "wget", "-T", "1", "-qO-", f"http://{address}/", check=False)
    assert done.returncode != 0
    done = engine.docker("run", "--rm", "-p", "18080:80", "busybox", "true", check=False)
    assert done.returncode == 125 and "port is already allocated" in done.stderr
    engine.docker("run", "-d", "--name", "late", "busybox", "sleep", "1000")
    engine.docker("network", "connect", "app", "late")
    assert engine.docker("exec", "late", "sh", "-c", fetch.format(address)).stdout == "hello\n"
    engine.docker("network", "disconnect", "app", "late")
    assert "eth1" not in engine.docker("exec", "late", "ip", "link").stdout
    engine.docker("rm", "-f", "web", "late")
    engine.docker("network", "rm", "app")


BUSYBOX_WGET = "/bin/busybox"


def test_limits_identity_and_isolation(engine: DockerEngine) -> None:
    out = engine.docker("run", "--rm", "--user", "user", "-w", "/made/here", "-e", "A=b", "-h", "box", "busybox", "sh", "-c", "id; pwd; echo $A $HOME; hostname").stdout  # fmt: skip
    assert out.splitlines() == ["uid=1000(user) gid=1000(user) groups=1000(user)", "/made/here", "b /home", "box"]
    caps = engine.docker("run", "--rm", "busybox", "grep", "CapEff", "/proc/self/status").stdout.split()[1]
    assert int(caps, 16) == 0xA80425FB
    assert (
        engine.docker(
            "run", "--rm", "--cap-drop", "ALL", "busybox", "grep", "CapEff", "/proc/self/status"
        ).stdout.split()[1]
        == "0" * 16
    )
    assert engine.docker("run", "--rm", "busybox", "grep", "-c", "^Seccomp:.2", "/proc/self/status").stdout == "1\n"
    assert (
        engine.docker("run", "--rm", "busybox", "sh", "-c", "mount -t tmpfs x /tmp 2>&1; true")
        .stdout.strip()
        .endswith(("denied (are you root?)", "not permitted"))
    )
    done = engine.docker(
        "run",
        "--rm",
        "-m",
        "16m",
        "--memory-swap",
        "16m",
        "--name",
        "oom",
        "busybox",
        "sh",
        "-c",
        "x=a; while :; do x=$x$x; done",
        check=False,
    )
    assert done.returncode == 137
    assert (
        engine.docker("run", "--rm", "--read-only", "busybox", "sh", "-c", "touch /x 2>&1; true")
        .stdout.strip()
        .endswith("Read-only file system")
    )
    fds = engine.docker("run", "--rm", "busybox", "sh", "-c", "ls /proc/self/fd").stdout.split()
    assert set(fds) <= {"0", "1", "2", "3"}


def test_restart_policy_and_health(engine: DockerEngine) -> None:
    engine.docker("run", "-d", "--name", "again1", "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 3")
    engine.until("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "again1", shows="2 exited")
    engine.docker(
        "run",
        "-d",
        "--name",
        "well",
        "--health-cmd",
        "test -e /ok",
        "--health-interval",
        "200ms",
        "--health-retries",
        "2",
        "busybox",
        "sleep",
        "1000",
    )
    engine.until("ps", shows="(unhealthy)")
    engine.docker("exec", "well", "touch", "/ok")
    engine.until("ps", shows="(healthy)")


def test_build_save_load_and_history(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY f /f\nRUN echo $(cat /f)2 > /g\nENV A=1\nCMD cat /g\n")
    (tmp_path / "f").write_text("4")
    engine.docker("build", "-t", "built", str(tmp_path))
    assert engine.docker("run", "--rm", "built").stdout == "42\n"
    assert "Using cache" in engine.docker("build", "-t", "built", str(tmp_path)).stdout
    other = tmp_path.parent / "Dockerfile.beside"  # outside of the context: the client adds it to the archive
    other.write_text("FROM busybox\nCOPY f /h\nCMD cat /h\n")
    engine.docker("build", "-t", "beside", "-f", str(other), str(tmp_path))
    assert engine.docker("run", "--rm", "beside").stdout == "4"
    engine.docker("rmi", "beside")
    engine.docker("save", "-o", str(tmp_path / "image.tar"), "built")
    engine.docker("rmi", "built")
    engine.docker("load", "-i", str(tmp_path / "image.tar"))
    assert engine.docker("run", "--rm", "built").stdout == "42\n"
    engine.docker("rmi", "built")


def test_containers_outlive_the_engine(engine: DockerEngine) -> None:
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    engine.docker("run", "-d", "--name", "on", "-p", "18081:80", "busybox", "sh", "-c", script)
    engine.docker("run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 0.5; echo bye; exit 4")
    engine.docker("run", "-d", "--rm", "--name", "goes", "busybox", "sleep", "0.5")
    engine.docker("run", "-d", "--name", "again", "--restart", "always", "busybox", "sh", "-c", "sleep 0.5; exit 1")
    engine.docker("network", "create", "kept")
    engine.docker("run", "-d", "--name", "named", "--network", "kept", "busybox", "sleep", "1000")
    pid = engine.docker("inspect", "-f", "{{.State.Pid}}", "on").stdout
    engine.kill()
    time.sleep(1)
    engine.start()
    assert engine.docker("inspect", "-f", "{{.State.Pid}}", "on").stdout == pid
    assert engine.docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ends").stdout.split() == [
        "exited",
        "4",
    ]
    assert engine.docker("logs", "ends").stdout == "bye\n"
    assert "goes" not in engine.docker("ps", "-a").stdout
    engine.until("inspect", "-f", "{{.State.Status}}", "again", shows="running")
    lines = engine.docker("logs", "on").stdout.splitlines()
    assert lines == [f"line {n}" for n in range(1, len(lines) + 1)] and len(lines) > 15
    assert engine.docker("exec", "on", "echo", "still").stdout == "still\n"
    assert "18081" in engine.docker("port", "on").stdout
    assert engine.docker("run", "--rm", "--network", "kept", "busybox", "nslookup", "named").stdout.count("named") >= 1
    done = engine.docker("run", "--rm", "-p", "18081:80", "busybox", "true", check=False)
    assert "port is already allocated" in done.stderr
    engine.docker("stop", "-t", "0", "on")
    engine.docker("rm", "-f", "named")
    engine.docker("network", "rm", "kept")


def test_inspect_formats_and_filters(engine: DockerEngine) -> None:
    engine.docker("run", "-d", "--name", "fil", "--label", "tier=one", "busybox", "sleep", "1000")
    assert engine.docker("ps", "--filter", "label=tier=one", "--format", "{{.Names}}").stdout == "fil\n"
    assert engine.docker("ps", "--filter", "label=tier=two", "-q").stdout == ""
    shown = json.loads(engine.docker("inspect", "fil").stdout)[0]
    assert shown["HostConfig"]["NetworkMode"] == "bridge" and shown["State"]["Running"] is True
    top = engine.docker("top", "fil").stdout
    assert "sleep 1000" in top
    assert "fil" in engine.docker("stats", "--no-stream", "--format", "{{.Name}}").stdout
    since = str(int(time.time()) - 60)
    events = engine.docker(
        "events",
        "--since",
        since,
        "--until",
        str(int(time.time()) + 1),
        "--filter",
        "container=fil",
        "--format",
        "{{.Action}}",
    ).stdout.split()
    assert events[:2] == ["create", "start"] or events[:3] == ["create", "connect", "start"]


def test_logs_rotate_while_they_are_followed(engine: DockerEngine) -> None:
    options = ["--log-opt", "max-size=20k", "--log-opt", "max-file=3"]
    script = "i=0; while [ $i -lt 4000 ]; do i=$((i+1)); echo line $i; [ $((i % 100)) = 0 ] && sleep 0.05; done"
    engine.docker("run", "-d", "--name", "turns", *options, "busybox", "sh", "-c", script)
    followed = engine.docker("logs", "-f", "turns").stdout.splitlines()
    assert followed[-1] == "line 4000"
    numbers = [int(line.split()[1]) for line in followed]
    assert numbers == list(range(numbers[0], 4001))
    kept = engine.docker("logs", "turns").stdout.splitlines()
    assert kept[-1] == "line 4000" and len(kept) < 4000
    path = Path(engine.docker("inspect", "-f", "{{.LogPath}}", "turns").stdout.strip())
    assert len(list(path.parent.glob(path.name + "*"))) == 3
