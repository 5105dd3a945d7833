"""daemon.json in a running engine: what it changes, what SIGHUP changes, and devices by CDI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from tests.support.docker_engine import DockerEngine, running_engine

pytestmark = pytest.mark.root

SPEC = """
cdiVersion: 0.6.0
kind: vendor.com/thing
devices:
- name: one
  containerEdits:
    env: [THING=one]
    deviceNodes: [{path: /dev/thing, hostPath: /dev/null}]
    mounts: [{hostPath: FOLDER, containerPath: /thing, options: [ro, rbind]}]
    additionalGids: [4711]
    hooks: [{hookName: createRuntime, path: /bin/sh, args: [sh, -c, "touch FOLDER/hooked"]}]
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    base = tmp_path_factory.mktemp("settings")
    (base / "cdi").mkdir()
    (base / "given").mkdir()
    (base / "cdi" / "thing.yaml").write_text(SPEC.replace("FOLDER", str(base / "given")))
    (base / "cdi" / "broken.json").write_text("{")
    script = base / "runtime"
    script.write_text(
        f'#!/bin/sh\nexpr "$*" : ".*--quiet-flag.* create " >/dev/null && echo "$1" >> {base}/ran\nshift\nexec runc "$@"\n'
    )
    script.chmod(0o755)
    settings = {
        "cdi-spec-dirs": [str(base / "cdi")],
        "labels": ["a=b"],
        "runtimes": {"mine": {"path": str(script), "runtimeArgs": ["--quiet-flag"]}},
    }
    (base / "daemon.json").write_text(json.dumps(settings))
    yield from running_engine(base)


def info(engine: DockerEngine) -> dict[str, object]:
    return dict(json.loads(engine.docker("info", "-f", "{{json .}}").stdout))


def test_devices_of_specifications(engine: DockerEngine) -> None:
    shown = info(engine)
    assert shown["CDISpecDirs"] == [str(engine.base / "cdi")]
    assert shown["DiscoveredDevices"] == [{"Source": "cdi", "ID": "vendor.com/thing=one"}]
    assert any("broken.json" in text for text in shown["Warnings"])  # type: ignore[attr-defined]
    script = "echo $THING; ls -l /dev/thing; ls /thing; id -G; echo x > /dev/thing; touch /thing/no 2>/dev/null || echo refused"
    out = engine.docker("run", "--rm", "--device", "vendor.com/thing=one", "busybox", "sh", "-c", script).stdout
    assert out.startswith("one\n") and "1,   3" in out and "hooked" in out and "4711" in out and "refused" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--device", "vendor.com/thing=two"), "CDI device injection failed: unresolvable CDI devices vendor.com/thing=two"),
        (("--gpus", "all"), 'could not select device driver "" with capabilities: [[gpu]]'),
        (("--storage-opt", "size=1G"), "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"),
        (("--runtime", "nobody"), "unknown or invalid runtime name: nobody"),
    ],
)  # fmt: skip
def test_what_is_not_there(engine: DockerEngine, words: tuple[str, ...], text: str) -> None:
    done = engine.docker("run", "--rm", *words, "busybox", "true", check=False)
    assert done.returncode in (125, 128) and text in done.stderr


def test_a_runtime_with_arguments(engine: DockerEngine) -> None:
    runtimes = info(engine)["Runtimes"]
    assert runtimes["mine"] == {"path": str(engine.base / "runtime"), "runtimeArgs": ["--quiet-flag"]}  # type: ignore[index]
    engine.docker("run", "--rm", "--runtime", "mine", "busybox", "true")
    assert (engine.base / "ran").read_text().startswith("--quiet-flag\n")


def test_settings_change_while_the_engine_runs(engine: DockerEngine) -> None:
    file = engine.base / "daemon.json"
    before = json.loads(file.read_text())
    engine.docker("run", "-d", "--name", "stays", "busybox", "sleep", "1000")
    changed = {**before, "labels": ["c=d"], "debug": True, "max-concurrent-downloads": 1, "insecure-registries": ["box:1"],
               "registry-mirrors": ["http://127.0.0.1:9"], "features": {"cdi": False}, "default-shm-size": "1m",
               "runtimes": {"other": {"path": "runc"}}, "default-runtime": "other"}  # fmt: skip
    file.write_text(json.dumps(changed))
    os.kill(engine.pid, signal.SIGHUP)
    since = ("events", "--since", "0", "--until", "2100-01-01T00:00:00Z", "--filter", "type=daemon")
    watcher = subprocess.Popen(["docker", "-H", f"unix://{engine.socket}", *since], stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    told = watcher.stdout.readline()
    watcher.kill()
    watcher.wait()
    watcher.stdout.close()
    assert f"daemon reload {info(engine)['ID']} (" in told
    for text in (
        "debug=true, ", 'labels=["c=d"], ', "max-concurrent-downloads=1, ", "max-concurrent-uploads=5, ", "features=map[cdi:false], ",
        'insecure-registries=["box:1"], ', 'registry-mirrors=["http://127.0.0.1:9"], ', "runtimes=other:runc, ", "default-runtime=other, ",
        "default-shm-size=1048576, ", "live-restore=true, ", "shutdown-timeout=15)", "max-download-attempts=5, ", "name=",
    ):  # fmt: skip
        assert text in told
    shown = info(engine)
    assert shown["Labels"] == ["c=d"] and shown["Debug"] is True and shown["CDISpecDirs"] == []
    assert shown["DefaultRuntime"] == "other" and "mine" not in shown["Runtimes"]  # type: ignore[operator]
    done = engine.docker("run", "--rm", "--device", "vendor.com/thing=one", "busybox", "true", check=False)
    assert 'could not select device driver "cdi" with capabilities: []' in done.stderr
    assert "1024" in engine.docker("run", "--rm", "busybox", "df", "-k", "/dev/shm").stdout
    # A file that dockerd would refuse changes nothing.
    file.write_text('{"labels": ["e=f"], "default-runtime": "nobody"}')
    os.kill(engine.pid, signal.SIGHUP)
    file_log = engine.base / "log"
    engine.until("info", "-f", "{{.Labels}}", shows="c=d")
    for _ in range(100):
        if "specified default runtime 'nobody' does not exist" in file_log.read_text():
            break
        engine.docker("version")
    assert "Error reloading configuration: specified default runtime 'nobody' does not exist" in file_log.read_text()
    assert engine.docker("exec", "stays", "echo", "on").stdout == "on\n"
    engine.docker("rm", "-f", "stays")
    file.write_text(json.dumps({**before, "default-runtime": "runc", "features": {}}))
    os.kill(engine.pid, signal.SIGHUP)
    engine.until("info", "-f", "{{.DefaultRuntime}}", shows="runc")


def restarted(engine: DockerEngine) -> None:
    assert engine._process is not None
    engine._process.terminate()
    engine._process.wait(30)
    engine.start()


def test_without_live_restore_containers_end_with_the_engine(engine: DockerEngine) -> None:
    file = engine.base / "daemon.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, "live-restore": False}))
    os.kill(engine.pid, signal.SIGHUP)
    engine.until("info", "-f", "{{.LiveRestoreEnabled}}", shows="false")
    trap = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
    engine.docker("run", "-d", "--name", "ends", "busybox", "sh", "-c", trap)
    engine.docker("run", "-d", "--name", "comes", "--restart", "unless-stopped", "busybox", "sh", "-c", trap)
    restarted(engine)
    assert engine.docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ends").stdout == "exited 7\n"
    engine.until("inspect", "-f", "{{.State.Status}}", "comes", shows="running")
    # What an engine that was killed could not end, the next one does.
    engine.docker("start", "ends")
    engine.kill()
    engine.start()
    assert engine.docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ends").stdout == "exited 137\n"
    engine.until("inspect", "-f", "{{.State.Status}}", "comes", shows="running")
    file.write_text(json.dumps({**before, "live-restore": True}))
    restarted(engine)
    engine.docker("rm", "-f", "ends", "comes")


def test_what_others_link_to_starts_first(engine: DockerEngine) -> None:
    """After a machine's start: a container whose name comes first needs one that comes last."""
    engine.docker("run", "-d", "--name", "last", "--restart", "always", "busybox", "sleep", "1000")
    engine.docker(
        "run", "-d", "--name", "first", "--restart", "always", "--link", "last:other", "busybox", "sleep", "1000"
    )
    engine.docker(
        "run",
        "-d",
        "--name",
        "inside",
        "--restart",
        "always",
        "--network",
        "container:first",
        "busybox",
        "sleep",
        "1000",
    )
    pids = engine.docker("inspect", "-f", "{{.State.Pid}}", "first", "last", "inside").stdout.split()
    engine.kill()
    for pid in map(int, pids):
        os.kill(pid, signal.SIGKILL)
    engine.start()
    for name in ("last", "first", "inside"):
        engine.until("inspect", "-f", "{{.State.Running}}", name, shows="true")
    assert "could not be started again" not in (engine.base / "log").read_text()
    engine.docker("rm", "-f", "inside", "first", "last")


def test_no_default_network_or_another_bridge(engine: DockerEngine) -> None:
    file = engine.base / "daemon.json"
    before = json.loads(file.read_text())
    bridge = engine.docker("network", "inspect", "-f", '{{index .Options "com.docker.network.bridge.name"}}', "bridge").stdout.strip()  # fmt: skip
    file.write_text(json.dumps({**before, "bridge": "none"}))
    restarted(engine)
    assert subprocess.run(["ip", "link", "show", bridge], capture_output=True).returncode
    assert "bridge" not in engine.docker("network", "ls", "--format", "{{.Name}}").stdout.split()
    assert engine.docker("run", "--rm", "busybox", "ls", "/sys/class/net").stdout == "lo\n"
    subprocess.run(["ip", "link", "add", "own0", "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "address", "add", "10.77.0.1/24", "dev", "own0"], check=True)
        file.write_text(json.dumps({**before, "bridge": "own0", "fixed-cidr": "10.77.0.128/25"}))
        restarted(engine)
        shown = engine.docker("run", "--rm", "busybox", "sh", "-c", "ip -4 address show eth0; ip route").stdout
        assert "10.77.0.129/24" in shown.replace("128/24", "129/24") and "default via 10.77.0.1 " in shown
        restarted(engine)
        assert engine.docker("run", "--rm", "busybox", "ping", "-c", "1", "10.77.0.1").returncode == 0
    finally:
        file.write_text(json.dumps(before))
        restarted(engine)
        still = subprocess.run(["ip", "link", "show", "own0"], capture_output=True).returncode == 0
        subprocess.run(["ip", "link", "delete", "own0"], check=False)
    assert still
    assert engine.docker("run", "--rm", "busybox", "ls", "/sys/class/net").stdout == "eth0\nlo\n"
    assert subprocess.run(["ip", "link", "show", "own0"], capture_output=True).returncode, "its own bridge again"
