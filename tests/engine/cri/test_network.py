"""Pod networks: pod to pod, hostPort, the unreachable route, an administrator's CNI configuration."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from longshore.engine.cri.network import BuiltinNetwork, NotReady
from longshore.engine.cri.records import Sandbox
from longshore.wire.cri import cri

from .conftest import Engine

pytestmark = pytest.mark.root
SERVE = ["sh", "-c", "mkdir /w; echo page > /w/x; httpd -f -p 80 -h /w"]


async def fetch(host: str, port: int) -> bytes:
    """GET /x, tried until the server in the pod listens."""
    async with asyncio.timeout(10):
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
                continue
            writer.write(b"GET /x HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer


async def address(engine: Engine, pod: str) -> str:
    return str((await engine.call("PodSandboxStatus", pod_sandbox_id=pod)).status.network.ip)


async def ask_from(engine: Engine, container: str, host: str, port: int) -> str:
    script = f"printf 'GET /x HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {host} {port}"
    return await engine.sh(container, script)


async def test_reachability(engine: Engine) -> None:
    ports = [
        cri.PortMapping(host_port=18080, container_port=80),
        cri.PortMapping(host_port=18081, container_port=80, host_ip="127.0.0.1"),
    ]
    server = await engine.run_pod("server", port_mappings=ports)
    main = await engine.run(server, "main", SERVE)
    client = await engine.run_pod("client")
    shell = await engine.run(client, "sh", ["sleep", "1000"])
    ip = await address(engine, server[0])
    assert b"page" in await fetch(ip, 80)
    for port in (18080, 18081):
        assert b"page" in await fetch("127.0.0.1", port)
    assert b"page" in await fetch("10.88.0.1", 18080)
    assert "page" in await ask_from(engine, shell, ip, 80)
    assert "page" in await ask_from(engine, shell, "10.88.0.1", 18080)
    # a pod reaches itself through its own host port
    assert "page" in await ask_from(engine, main, "10.88.0.1", 18080)
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    assert "unreachable 10.88.0.0/24" in routes and f"{ip} dev pod" in routes
    await engine.call("RemovePodSandbox", pod_sandbox_id=server[0])
    with pytest.raises(OSError):
        await asyncio.wait_for(asyncio.open_connection(ip, 80), 5)
    with pytest.raises(OSError):
        await asyncio.wait_for(asyncio.open_connection("127.0.0.1", 18080), 5)
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    assert sum(line.startswith("pod") and not line.startswith("pods0") for line in links.splitlines()) == 1


async def test_pods_send_no_more_than_the_nodes_way_out_carries(engine: Engine) -> None:
    for command in (
        "ip link add dev wayout0 mtu 1400 type veth peer name wayout1",
        "ip address add 10.66.0.2/24 dev wayout0",
        "ip link set wayout1 up",
        "ip link set wayout0 up",
        "ip route add default via 10.66.0.1",
    ):
        subprocess.run(command.split(), check=True)
    try:
        pod = await engine.run_pod("narrow")
        shell = await engine.run(pod, "sh", ["sleep", "1000"])
        assert "mtu 1400" in await engine.sh(shell, "ip link show eth0")
    finally:
        subprocess.run(["ip", "link", "delete", "wayout0"], check=True)


async def test_host_ports_survive_the_engine(engine: Engine) -> None:
    server = await engine.run_pod("server", port_mappings=[cri.PortMapping(host_port=18090, container_port=80)])
    await engine.run(server, "main", SERVE)
    assert b"page" in await fetch("127.0.0.1", 18090)
    await engine.crash()
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    await engine.start()
    assert b"page" in await fetch("127.0.0.1", 18090)


async def test_host_ports_come_back_after_a_flush(engine: Engine) -> None:
    server = await engine.run_pod("server", port_mappings=[cri.PortMapping(host_port=18090, container_port=80)])
    await engine.run(server, "main", SERVE)
    assert b"page" in await fetch("127.0.0.1", 18090)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert b"page" in await fetch("127.0.0.1", 18090)


PLUGIN = """#!/bin/sh
# A CNI 1.1 plugin that writes down how it is called.
config=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $config" >> LOG
case $CNI_COMMAND in
STATUS) [ ! -e DOWN ] || { echo '{"cniVersion": "1.1.0", "code": 50, "msg": "not yet"}'; exit 1; };;
ADD) echo '{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": "10.99.8.2/24", "interface": 0}]}';;
esac
"""


async def test_cni_1_1_status_garbage_and_bandwidth(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, folder, told = engine.root / "bin", engine.root / "cni", engine.root / "told"
    programs.mkdir()
    folder.mkdir()
    program = programs / "recorder"
    program.write_text(PLUGIN.replace("LOG", str(told)).replace("DOWN", str(engine.root / "down")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin")
    plugin = {"type": "recorder", "capabilities": {"bandwidth": True, "portMappings": True}}
    conf = {"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0", "9.0.0"], "name": "new", "plugins": [plugin]}
    (folder / "10-new.conflist").write_text(json.dumps(conf))

    async def ready() -> tuple[bool, str]:
        (found,) = [c for c in (await engine.call("Status")).status.conditions if c.type == "NetworkReady"]
        return found.status, found.message

    assert await ready() == (True, "")
    (engine.root / "down").touch()
    assert await ready() == (False, "Network plugin returns error: plugin type='recorder' failed (status): not yet")
    (engine.root / "down").unlink()
    limits = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "5M"}
    pod = await engine.run_pod("new", annotations=limits)
    assert await address(engine, pod[0]) == "10.99.8.2"
    await engine.crash()
    await engine.start()
    calls = [line.split(" ", 2) for line in told.read_text().splitlines()]
    (added,) = [json.loads(config) for command, _, config in calls if command == "ADD"]
    assert added["cniVersion"] == "1.1.0" and "portMappings" not in added["runtimeConfig"]
    most = 2**32 - 1
    wanted = {"ingressRate": 10**7, "ingressBurst": most, "egressRate": 5 * 10**6, "egressBurst": most}
    assert added["runtimeConfig"]["bandwidth"] == wanted
    collected = [json.loads(config) for command, _, config in calls if command == "GC"][-1]
    assert collected["cni.dev/valid-attachments"] == [{"containerID": pod[0], "ifname": "eth0"}]
    await engine.call("RemovePodSandbox", pod_sandbox_id=pod[0])
    assert told.read_text().splitlines()[-1].startswith(f"DEL {pod[0]} ")


@pytest.mark.skipif(
    not Path("/usr/lib/cni/portmap").exists() or shutil.which("iptables") is None,
    reason="containernetworking-plugins or iptables are not installed",
)
async def test_an_administrators_chain_of_plugins(engine: Engine) -> None:
    """Debian's bridge, portmap, bandwidth and tuning, as a distribution's configuration has them."""
    folder = engine.root / "cni"
    folder.mkdir()
    conf = {
        "cniVersion": "1.0.0", "name": "chain", "plugins": [
            {"type": "bridge", "bridge": "cnitest1", "isGateway": True, "ipMasq": True, "hairpinMode": True, "mtu": 1400,
             "ipam": {"type": "host-local", "dataDir": str(engine.root / "ipam"),
                      "ranges": [[{"subnet": "10.99.9.0/24"}], [{"subnet": "fd00:99:9::/64"}]],
                      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_notify": "1"}},
        ],
    }  # fmt: skip
    (folder / "10-chain.conflist").write_text(json.dumps(conf))
    ports = [cri.PortMapping(host_port=18095, container_port=80)]
    limits = {"kubernetes.io/ingress-bandwidth": "50M"}
    pod = await engine.run_pod("chain", port_mappings=ports, annotations=limits)
    main = await engine.run(pod, "main", SERVE)
    status = (await engine.call("PodSandboxStatus", pod_sandbox_id=pod[0])).status.network
    assert status.ip.startswith("10.99.9.") and next(one.ip for one in status.additional_ips).startswith("fd00:99:9:")
    assert b"page" in await fetch(status.ip, 80)
    assert b"page" in await fetch("10.99.9.1", 18095)
    assert "mtu 1400" in await engine.sh(main, "ip link show eth0")
    assert "1" in await engine.sh(main, "cat /proc/sys/net/ipv4/conf/eth0/arp_notify")
    rules = subprocess.run(["tc", "qdisc"], capture_output=True, text=True, check=True).stdout
    assert "tbf" in rules and "50Mbit" in rules
    await engine.call("RemovePodSandbox", pod_sandbox_id=pod[0])
    with pytest.raises(OSError):
        await asyncio.wait_for(asyncio.open_connection("10.99.9.1", 18095), 5)
    assert list((engine.root / "ipam" / "chain").glob("10.99.9.*")) == []


@pytest.mark.skipif(not Path("/usr/lib/cni/bridge").exists(), reason="containernetworking-plugins are not installed")
async def test_cni(engine: Engine) -> None:
    folder = engine.root / "cni"
    folder.mkdir()
    conf = {
        "cniVersion": "1.0.0", "name": "admin", "plugins": [
            {"type": "bridge", "bridge": "cnitest0", "isGateway": True,
             "ipam": {"type": "host-local", "dataDir": str(engine.root / "ipam"),
                      "ranges": [[{"subnet": "10.99.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "tuning", "capabilities": {"mac": True}},
        ],
    }  # fmt: skip
    (folder / "10-admin.conflist").write_text(json.dumps(conf))
    pod = await engine.run_pod("cni")
    await engine.run(pod, "main", SERVE)
    ip = await address(engine, pod[0])
    assert ip.startswith("10.99.7.") and b"page" in await fetch(ip, 80)
    await engine.call("StopPodSandbox", pod_sandbox_id=pod[0])
    leases = list((engine.root / "ipam" / "admin").glob("10.99.7.*"))
    assert leases == []
    await engine.call("RemovePodSandbox", pod_sandbox_id=pod[0])
    (folder / "10-admin.conflist").write_text("{")
    status = await engine.call("Status")
    assert not next(c.status for c in status.status.conditions if c.type == "NetworkReady")
    shutil.rmtree(folder)


def test_finished_pods_hold_no_addresses(tmp_path: Path) -> None:
    """A node with more finished pods than its range has addresses still starts others."""
    network = BuiltinNetwork(tmp_path / "network.json")
    network.configure("10.9.0.0/29")
    sandboxes: list[Sandbox] = []
    for number in range(12):
        sandbox = Sandbox(f"{number:064x}", None, created_at=number)
        sandbox.ips, sandbox.network = network.choose(sandboxes), {"kind": "builtin"}
        sandboxes.append(sandbox)
        if number > 3:
            sandboxes[number - 3].network["gone"] = True  # as its StopPodSandbox does
    live = [sandbox.ips[0] for sandbox in sandboxes if "gone" not in sandbox.network]
    assert len(set(live)) == len(live) == 4
    sandboxes.append(Sandbox("f" * 64, None, ips=network.choose(sandboxes)))
    with pytest.raises(NotReady, match=r"no free address in pod range 10\.9\.0\.0/29"):
        network.choose(sandboxes)
