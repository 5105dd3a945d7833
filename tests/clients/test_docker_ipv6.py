"""IPv6: networks, masquerading and published ports, with a neighbour in a namespace of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.docker_engine import DockerEngine

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="the kernel has no IPv6"),
]
_SERVER = "while :; do echo served-$$ | nc -l -p 80; done"


def sh(command: str, check: bool = True) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def fetch(address: str, port: int, within: str = "") -> str:
    """What a server says at once."""
    for _ in range(100):
        out = sh(f"{within} busybox nc -w 3 {address} {port} </dev/null", check=False)
        if out:
            return out
        time.sleep(0.05)
    return ""


@pytest.fixture(scope="module")
def neighbour() -> Iterator[str]:
    """A host beside this one, 2001:db8:1::2; gives the words that run a command there."""
    keeper = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    for _ in range(100):
        if os.readlink(f"/proc/{keeper.pid}/ns/net") != os.readlink("/proc/self/ns/net"):
            break
        time.sleep(0.02)
    inside = f"nsenter --net=/proc/{keeper.pid}/ns/net"
    sh(
        f"ip link add six type veth peer name far netns {keeper.pid} && ip addr add 2001:db8:1::1/64 dev six nodad && "
        f"ip link set six up && {inside} ip addr add 2001:db8:1::2/64 dev far nodad && {inside} ip link set far up && "
        f"{inside} ip link set lo up"
    )
    yield inside
    keeper.kill()
    keeper.wait()


def test_a_port_is_published_over_both_families(engine: DockerEngine, neighbour: str) -> None:
    engine.docker("network", "create", "--ipv6", "--subnet", "fd12:3456::/64", "dual")
    engine.docker("run", "-d", "--name", "web", "--network", "dual", "-p", "8086:80", "busybox", "sh", "-c", _SERVER)
    shown = engine.docker("port", "web").stdout.split("\n")
    assert {"80/tcp -> 0.0.0.0:8086", "80/tcp -> [::]:8086"} <= set(shown)
    assert fetch("127.0.0.1", 8086).startswith("served")
    assert fetch("2001:db8:1::1", 8086).startswith("served")
    assert fetch("::1", 8086).startswith("served")
    assert fetch("2001:db8:1::1", 8086, neighbour).startswith("served")
    # What is not published cannot be reached by a neighbour who knows the way.
    sh(f"{neighbour} ip -6 route add fd12:3456::/64 via 2001:db8:1::1")
    address = engine.docker(
        "inspect", "web", "-f", "{{.NetworkSettings.Networks.dual.GlobalIPv6Address}}"
    ).stdout.strip()
    assert sh(f"{neighbour} busybox nc -w 1 {address} 80 </dev/null", check=False) == ""
    engine.docker("rm", "-f", "web")
    assert sh(f"{neighbour} busybox nc -w 1 2001:db8:1::1 8086 </dev/null", check=False) == ""
    engine.docker("network", "rm", "dual")


def test_ipv6_reaches_a_container_that_has_none(engine: DockerEngine, neighbour: str) -> None:
    publish = ["-p", "8088:80", "-p", "[::1]:8089:80"]
    engine.docker("run", "-d", "--name", "four", *publish, "busybox", "sh", "-c", _SERVER)
    ways = [("::1", 8088, ""), ("2001:db8:1::1", 8088, ""), ("2001:db8:1::1", 8088, neighbour), ("::1", 8089, "")]
    for address, port, within in ways:
        assert fetch(address, port, within).startswith("served"), (address, port)
    engine.kill()
    engine.start()
    for address, port, within in ways:
        assert fetch(address, port, within).startswith("served"), (address, port)
    engine.docker("rm", "-f", "four")
    assert sh("busybox nc -w 1 ::1 8088 </dev/null", check=False) == ""


def test_what_leaves_is_masqueraded_unless_told_otherwise(engine: DockerEngine, neighbour: str) -> None:
    for name, options in (("out", ()), ("plain", ("-o", "com.docker.network.bridge.enable_ip_masquerade=false"))):
        engine.docker("network", "create", "--ipv6", *options, name)
        done = engine.docker("run", "--rm", "--network", name, "busybox", "ping", "-6", "-c1", "-W1", "2001:db8:1::2", check=False)  # fmt: skip
        # Without masquerading the neighbour does not know the way back.
        assert (done.returncode == 0) == (name == "out"), done.stdout + done.stderr
        engine.docker("network", "rm", name)


def test_published_ports_survive_a_killed_engine(engine: DockerEngine, neighbour: str) -> None:
    engine.docker("network", "create", "--ipv6", "kept")
    engine.docker(
        "run", "-d", "--name", "web", "--network", "kept", "-p", "[::]:8087:80", "busybox", "sh", "-c", _SERVER
    )
    assert fetch("2001:db8:1::1", 8087, neighbour).startswith("served")
    engine.kill()
    engine.start()
    assert fetch("2001:db8:1::1", 8087, neighbour).startswith("served")
    engine.docker("rm", "-f", "web")
    engine.docker("network", "rm", "kept")
