"""Pod networks: pod to pod, hostPort, the unreachable route, an administrator's CNI configuration."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

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


async def test_host_ports_survive_the_engine(engine: Engine) -> None:
    server = await engine.run_pod("server", port_mappings=[cri.PortMapping(host_port=18090, container_port=80)])
    await engine.run(server, "main", SERVE)
    assert b"page" in await fetch("127.0.0.1", 18090)
    await engine.crash()
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    await engine.start()
    assert b"page" in await fetch("127.0.0.1", 18090)


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
