"""What docker-py's and moby's own tests found wrong once, in few words."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.docker_engine import DockerEngine

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def ask(engine: DockerEngine, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("engine")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(engine.socket))
    data = json.dumps(body) if body is not None else None
    connection.request(method, path, body=data, headers={"Content-Type": "application/json"} if data else {})
    answer = connection.getresponse()
    raw = answer.read()
    return answer.status, json.loads(raw) if raw.strip() else None


def shown(engine: DockerEngine, name: str, template: str) -> str:
    return engine.docker("inspect", "-f", template, name).stdout.strip()


def routes(engine: DockerEngine, name: str) -> str:
    return engine.docker("exec", name, "ip", "route").stdout


def test_links_name_reach_and_follow(engine: DockerEngine) -> None:
    engine.docker(
        "run", "-d", "--name", "data", "--expose", "80", "--expose", "81", "-e", "KEY=v", "busybox", "sleep", "1000"
    )
    engine.docker("run", "-d", "--name", "user", "--link", "data:my-db", "busybox", "sleep", "1000")
    env = engine.docker("exec", "user", "env").stdout.splitlines()
    address = shown(engine, "data", "{{.NetworkSettings.IPAddress}}")
    assert {"MY_DB_NAME=/user/my-db", f"MY_DB_PORT=tcp://{address}:80", "MY_DB_ENV_KEY=v", "MY_DB_PORT_80_TCP_PORT_END=81"} <= set(env)  # fmt: skip
    assert shown(engine, "user", "{{json .HostConfig.Links}}") == '["/data:/user/my-db"]'
    assert "user/my-db" in engine.docker("ps", "--no-trunc", "--format", "{{.Names}}").stdout
    engine.docker("rename", "data", "renamed")
    assert shown(engine, "user/my-db", "{{.Name}}") == "/renamed"
    engine.docker("stop", "-t", "0", "renamed")
    engine.docker("run", "-d", "--name", "inbetween", "busybox", "sleep", "1000")
    engine.docker("start", "renamed")
    moved = shown(engine, "renamed", "{{.NetworkSettings.IPAddress}}")
    assert moved in engine.docker("exec", "user", "grep", "my-db", "/etc/hosts").stdout
    engine.docker("rm", "--link", "user/my-db")
    assert shown(engine, "user", "{{json .HostConfig.Links}}") == "null"
    engine.docker("stop", "-t", "0", "renamed")
    done = engine.docker("run", "--link", "renamed:x", "busybox", "true", check=False)
    assert "Cannot link to a non running container: /renamed AS" in done.stderr


def test_the_default_route_and_ports_follow_the_priorities(engine: DockerEngine) -> None:
    for number in (1, 2):
        engine.docker("network", "create", "--subnet", f"10.77.{number}.0/24", f"net{number}")
    engine.docker("network", "create", "--internal", "closed")
    engine.docker(
        "run", "-d", "--name", "web", "--network", "net1", "-p", "18080:80", "busybox", "httpd", "-f", "-h", "/etc"
    )
    assert "default via 10.77.1.1" in routes(engine, "web")
    engine.docker("network", "connect", "--gw-priority", "5", "net2", "web")
    assert "default via 10.77.2.1" in routes(engine, "web")
    engine.docker("network", "disconnect", "net1", "web")
    with socket.create_connection(("127.0.0.1", 18080), 5) as client:
        client.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
        assert b"200 OK" in client.recv(4096)
    engine.docker("network", "connect", "net1", "web")
    engine.docker("network", "disconnect", "net2", "web")
    assert "default via 10.77.1.1" in routes(engine, "web")
    engine.docker("network", "connect", "closed", "web")
    engine.docker("network", "disconnect", "net1", "web")
    assert "default" not in routes(engine, "web") and shown(engine, "web", "{{json .NetworkSettings.Ports}}") == "{}"


def test_gateway_modes_and_interfaces(engine: DockerEngine) -> None:
    mode = "com.docker.network.bridge.gateway_mode_ipv4"
    engine.docker("network", "create", "-o", f"{mode}=routed", "--subnet", "10.78.1.0/24", "routed")
    engine.docker("network", "create", "--subnet", "10.78.2.0/24", "nat")
    engine.docker(
        "run", "-d", "--name", "open", "--network", "routed", "--ip", "10.78.1.9", "-p", "80", "busybox", "httpd", "-f"
    )
    assert json.loads(shown(engine, "open", "{{json .NetworkSettings.Ports}}"))["80/tcp"][0] == {"HostIp": "0.0.0.0", "HostPort": ""}  # fmt: skip
    engine.docker("run", "-d", "--name", "shut", "--network", "nat", "--ip", "10.78.2.9", "busybox", "httpd", "-f")
    engine.docker("run", "--rm", "--network", "nat", "busybox", "nc", "-w", "3", "10.78.1.9", "80", input="\n")
    for target, port in (("10.78.1.9", "81"), ("10.78.2.9", "80")):
        other = "nat" if target.startswith("10.78.1") else "routed"
        done = engine.docker("run", "--rm", "--network", other, "busybox", "nc", "-w", "1", target, port, input="\n", check=False)  # fmt: skip
        assert done.returncode != 0
    done = engine.docker("network", "create", "-o", f"{mode}=isolated", "wrong", check=False)
    assert "gateway mode 'isolated' can only be used for an internal network" in done.stderr
    assert "inet6" not in engine.docker("exec", "open", "ip", "addr", "show", "eth0").stdout
    sysctl = "name=nat,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.forwarding=0"
    out = engine.docker("run", "--rm", "--network", sysctl, "busybox", "cat", "/proc/sys/net/ipv4/conf/eth0/forwarding")
    assert out.stdout == "0\n"


def test_defaults_that_need_no_capability(engine: DockerEngine) -> None:
    script = "cat /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/domainname"
    out = engine.docker("run", "--rm", "-u", "1000", "--domainname", "shop.test", "busybox", "sh", "-c", script).stdout
    assert out.split() == ["0", "2147483647", "0", "shop.test"]
    hosts = engine.docker("run", "--rm", "-h", "box.shop.test", "busybox", "cat", "/etc/hosts").stdout
    assert hosts.splitlines()[-1].endswith("box.shop.test box")


def test_read_only_means_all_below(engine: DockerEngine, tmp_path: Path) -> None:
    from longshore.machinery import mounts

    for folder in ("a/below", "b"):
        (tmp_path / folder).mkdir(parents=True)
    mounts.bind(tmp_path / "b", tmp_path / "a" / "below")
    try:
        write = ("busybox", "sh", "-c", "echo x > /m/below/f")
        assert engine.docker("run", "--rm", "-v", f"{tmp_path / 'a'}:/m:ro", *write, check=False).returncode != 0
        option = f"type=bind,src={tmp_path / 'a'},dst=/m,readonly,bind-recursive=writable"
        engine.docker("run", "--rm", "--mount", option, *write)
    finally:
        mounts.unmount(tmp_path / "a" / "below")
    done = engine.docker("run", "--rm", "-v", f"{engine.base}:/m:private", "busybox", "true", check=False)
    assert 'must use either propagation mode "rslave" or "rshared"' in done.stderr
    done = engine.docker("run", "--rm", "--read-only", "busybox", "touch", "/etc/hosts", check=False)
    assert "Read-only file system" in done.stderr


def test_a_stop_during_a_restart_stops(engine: DockerEngine) -> None:
    engine.docker("run", "-d", "--name", "again", "--restart", "always", "busybox", "sh", "-c", "sleep 0.05; exit 1")
    engine.until("inspect", "-f", "{{.RestartCount}}", "again", shows="1")
    seen = {shown(engine, "again", "{{.State.Status}}") for _ in range(5)}
    assert seen <= {"running", "restarting"}
    engine.docker("stop", "-t", "1", "again")
    time.sleep(0.3)
    assert shown(engine, "again", "{{.State.Status}}") == "exited"


def test_volumes_and_memory_in_the_events(engine: DockerEngine) -> None:
    since = str(int(time.time()))
    hog = "a=x; while :; do a=$a$a; done"
    engine.docker("run", "-d", "--name", "hog", "-m", "16m", "-v", "kept:/d:ro", "busybox", "sh", "-c", f"sh -c '{hog}'; sleep 1000")  # fmt: skip
    engine.until("inspect", "-f", "{{.State.Running}} {{.State.OOMKilled}}", "hog", shows="true true")
    engine.docker("rm", "-f", "hog")
    engine.docker("volume", "rm", "kept")
    form = "{{.Type}} {{.Action}} {{.Actor.Attributes}}"
    past = engine.docker(
        "events", "--since", since, "--until", str(int(time.time()) + 1), "--format", form
    ).stdout.splitlines()
    volumes = [line.partition(" ")[2] for line in past if line.startswith("volume ")]
    assert [line.split()[0] for line in volumes] == ["create", "mount", "unmount", "destroy"]
    assert "destination:/d driver:local propagation: read/write:false" in volumes[1]
    assert sum(line.startswith("container oom ") for line in past) == 1


def test_an_engine_that_comes_back_knows_the_volumes_in_use(engine: DockerEngine) -> None:
    options = ["--opt", "type=tmpfs", "--opt", "device=tmpfs"]
    engine.docker("volume", "create", *options, "memory")
    engine.docker("run", "-d", "--name", "first", "-v", "memory:/d", "busybox", "sh", "-c", "echo here > /d/f; sleep 1000")  # fmt: skip
    engine.until("exec", "first", "cat", "/d/f", shows="here")
    engine.kill()
    engine.start()
    for _ in range(2):
        assert engine.docker("run", "--rm", "-v", "memory:/d", "busybox", "cat", "/d/f").stdout == "here\n"


def test_small_truths(engine: DockerEngine) -> None:
    engine.docker("run", "-d", "-t", "--name", "tty", "--pids-limit", "20", "busybox", "sleep", "1000")
    assert "TERM=" not in engine.docker("exec", "tty", "env").stdout
    id = shown(engine, "tty", "{{.Id}}")
    assert ask(engine, "POST", f"/v1.51/containers/{id}/update", {"PidsLimit": -2})[0] == 200
    assert shown(engine, "tty", "{{.HostConfig.PidsLimit}}") == "0"
    assert ask(engine, "POST", f"/v1.24/containers/{id}/update", {"PidsLimit": 7})[0] == 200
    assert shown(engine, "tty", "{{.HostConfig.PidsLimit}}") == "0"
    _, made = ask(engine, "POST", f"/v1.51/containers/{id}/exec", {"Cmd": ["true"]})
    engine.docker("pause", "tty")
    done = engine.docker("exec", id, "true", check=False)
    assert f"Container {id} is paused, unpause the container before exec" in done.stderr
    engine.docker("unpause", "tty")
    engine.docker("kill", "tty")
    assert ask(engine, "POST", f"/v1.51/exec/{made['Id']}/start", {"Detach": True})[0] == 404
    past = engine.docker("events", "--until", str(int(time.time()) + 1), "--filter", f"container={id}").stdout
    assert " exec_create: true " in past and " kill " in past
    engine.docker("run", "-d", "--name", "later", "busybox", "sleep", "1000")
    engine.docker("run", "--name", "ended", "busybox", "true")
    names = ["ps", "--format", "{{.Names}}", "--filter"]
    assert engine.docker(*names, "since=tty").stdout.split() == ["later"]
    assert engine.docker(*names, "since=tty", "-a").stdout.split() == ["ended", "later"]
    links = ["--link", "later:x", "--link", "ended:x"]
    engine.docker("create", "--name", "linked", *links, "busybox", "true")
    assert shown(engine, "linked", "{{.HostConfig.Links}}") == "[/later:/linked/x]"
    limit = ["--blkio-weight-device", "/dev/null:100", "--device-read-bps", "/dev/nosuch:1mb"]
    done = engine.docker("run", *limit, "busybox", "true", check=False)
    assert "stat /dev/nosuch: no such file or directory" in done.stderr
    done = engine.docker("run", "--net=container", "busybox", "true", check=False)
    assert "invalid container format container:<name|id>" in done.stderr
    done = engine.docker("run", "-v", "kept:/d:shared", "busybox", "true", check=False)
    assert "field BindOptions must not be specified" in done.stderr
    engine.docker("network", "create", "near")
    alone = ["run", "--rm", "--network", "near", "--link-local-ip", "169.254.7.7", "busybox", "ip", "addr"]
    assert "169.254.7.7/16" in engine.docker(*alone).stdout
    done = engine.docker("network", "prune", "-f", "--filter", "until=1h", "--filter", "until=2h", check=False)
    assert "more than one until filter specified" in done.stderr
    cgroups = ["run", "--rm", "--security-opt", "writable-cgroups=true", "busybox", "mount"]
    assert not any("cgroup" in line and "(ro," in line for line in engine.docker(*cgroups).stdout.splitlines() if "tmpfs" not in line)  # fmt: skip
    endpoints = {"EndpointsConfig": {"one": {}, "two": {}}}
    body = {"Image": "busybox", "NetworkingConfig": endpoints}
    status, answer = ask(engine, "POST", "/v1.43/containers/create", body)
    assert status == 400 and "multiple network endpoints" in answer["message"]
    assert ask(engine, "GET", "/v1.51/containers/tty/checkpoints")[0] == 501
    status, answer = ask(engine, "POST", f"/v1.51/containers/{id}/start?checkpoint=c")
    assert (status, answer["message"]) == (400, "checkpoint is only supported in experimental mode")
    done = engine.docker("run", "--rm", "--tmpfs", "/t", "-v", "/tmp:/t", "busybox", "true", check=False)
    assert "Duplicate mount point: /t" in done.stderr
    engine.docker("commit", "-c", "ENV PATH=/changed:/bin", "-c", "ENV MORE=1", "tty", "changed")
    assert shown(engine, "changed", "{{.Config.Env}}") == "[PATH=/changed:/bin MORE=1]"


def test_copying_by_way_of_links(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "vol").mkdir()
    (tmp_path / "vol" / "real").write_text("old")
    (tmp_path / "vol" / "link").symlink_to("real")
    (tmp_path / "vol" / "away").symlink_to("/etc")
    (tmp_path / "new").write_text("new")
    engine.docker("create", "--name", "cp", "-v", f"{tmp_path / 'vol'}:/vol", "busybox")
    engine.docker("cp", str(tmp_path / "new"), "cp:/vol/link")
    assert (tmp_path / "vol" / "real").read_text() == "new" and (tmp_path / "vol" / "link").is_symlink()
    engine.docker("cp", str(tmp_path / "new"), "cp:/vol/away/put")
    engine.docker("cp", "cp:/etc/put", str(tmp_path / "got"))
    assert (tmp_path / "got").read_text() == "new"


def test_the_default_bridge_is_docker0(engine: DockerEngine) -> None:
    name = shown(engine, "bridge", '{{index .Options "com.docker.network.bridge.name"}}').strip()
    assert name in ("docker0", "longshore0")  # the second where another engine owns the first
    assert subprocess.run(("ip", "link", "show", name), capture_output=True).returncode == 0
    done = engine.docker("network", "create", "-d", "macvlan", "-o", "macvlan_mode=odd", "mv", check=False)
    assert "'bridge' mode is the macvlan driver default" in done.stderr


def test_a_line_without_its_end_is_held_back(engine: DockerEngine) -> None:
    """dockerd's log drivers get a line when it ends, after 16 KiB of it, or when the output ends."""
    script = "echo first; printf unfinished; cat /go > /dev/null; echo ' end'; printf rest"
    engine.docker("run", "-d", "--name", "held", "busybox", "sh", "-c", f"mkfifo /go; {script}")
    engine.until("logs", "held", shows="first\n")
    time.sleep(0.2)
    for words in ((), ("--tail", "1"), ("--since", "1h")):
        assert engine.docker("logs", *words, "held").stdout == "first\n"
    follower = subprocess.Popen(["docker", "-H", f"unix://{engine.socket}", "logs", "-f", "held"], stdout=subprocess.PIPE, text=True)  # fmt: skip
    engine.docker("exec", "held", "sh", "-c", "echo > /go")
    engine.docker("wait", "held")
    assert follower.communicate(timeout=20)[0] == "first\nunfinished end\nrest"
    assert engine.docker("logs", "held").stdout == "first\nunfinished end\nrest"
    assert engine.docker("logs", "--tail", "1", "held").stdout == "rest"
    # What an earlier run has left unfinished is shown while a later one runs.
    engine.docker(
        "run", "-d", "--name", "twice", "busybox", "sh", "-c", "[ -e /x ] && exec sleep 1000; touch /x; printf left"
    )
    engine.docker("wait", "twice")
    engine.docker("start", "twice")
    assert engine.docker("logs", "twice").stdout == "left"
    engine.docker(
        "run", "-d", "--name", "long", "busybox", "sh", "-c", "head -c 20000 /dev/zero | tr '\\0' x; sleep 1000"
    )
    engine.until("logs", "long", shows="x" * 16384)


def test_mounts_go_both_ways_where_they_are_shared(engine: DockerEngine, tmp_path: Path) -> None:
    """rshared: what a container mounts is seen outside; rslave: what is mounted outside is seen in the container."""
    (tmp_path / "mnt").mkdir()
    done = engine.docker("run", "--rm", "-v", f"{tmp_path}:/v:rshared", "busybox", "true", check=False)
    assert f"path {tmp_path} is mounted on " in done.stderr and "but it is not a shared mount" in done.stderr
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    subprocess.run(["mount", "--make-shared", tmp_path], check=True)
    try:
        # The engine's process has a copy of this mount; a shared one is the same for both.
        engine.docker("run", "--rm", "--privileged", "-v", f"{tmp_path}:/v:shared", "busybox", "mount", "-t", "tmpfs", "x", "/v/mnt")  # fmt: skip
        assert str(tmp_path / "mnt") in Path("/proc/self/mountinfo").read_text()
        subprocess.run(["umount", tmp_path / "mnt"], check=True)
        engine.docker("run", "-d", "--name", "slave", "-v", f"{tmp_path}:/v:slave", "busybox", "sleep", "1000")
        subprocess.run(["mount", "-t", "tmpfs", "x", tmp_path / "mnt"], check=True)
        assert "/v/mnt" in engine.docker("exec", "slave", "cat", "/proc/self/mounts").stdout
        engine.docker("rm", "-f", "slave")
    finally:
        subprocess.run(["umount", "-l", tmp_path / "mnt"], check=False, capture_output=True)
        subprocess.run(["umount", "-l", tmp_path], check=True)
