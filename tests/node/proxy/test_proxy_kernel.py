"""Services in the kernel: connections of pods, of the node and from outside through the proxy's tables."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.node.proxy.proxy_world import (
    NODE,
    NODE_IP,
    POD_CIDR,
    SERVICE_CIDR,
    World,
    elsewhere,
    endpoint_slice,
    service,
)

from longshore.machinery import netns, process
from longshore.machinery.conntrack import Conntrack
from longshore.node.proxy import node as node_setup
from longshore.node.proxy import server
from longshore.node.proxy.proxier import Proxier

pytestmark = pytest.mark.root


class Scene:
    def __init__(self, world: World, proxier: Proxier, stop: Callable[[], object]) -> None:
        self.world = world
        self.stop = stop
        self.proxier = proxier

    async def settle(self) -> None:
        """Everything told so far is in force."""
        await asyncio.wait_for(self.proxier.idle.wait(), 10)

    async def put(self, *objects: dict) -> None:  # type: ignore[type-arg]
        for obj in objects:
            (self.proxier.slice if "addressType" in obj else self.proxier.service)(obj)
        await self.settle()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    world = World(tmp_path)
    node_setup.prepare(SERVICE_CIDR.split(","), source=NODE_IP)
    health: dict = {}  # type: ignore[type-arg]
    proxier = Proxier(
        NODE,
        server.dialects(SERVICE_CIDR, POD_CIDR),
        node_local=["default/dns"],
        health_changed=lambda h: health.update(h),
    )
    proxier.seen_health = health  # type: ignore[attr-defined]
    task = asyncio.create_task(proxier.run())
    await asyncio.wait_for(proxier.synced.wait(), 10)
    yield Scene(world, proxier, task.cancel)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.clean_up()
    await world.close()


async def test_cluster_ip_spreads_over_ready_endpoints_and_keeps_the_source(scene: Scene) -> None:
    world = scene.world
    pods = [world.pod(number) for number in (11, 12, 13)]
    for number in (11, 12, 13):
        await world.serve(f"pod{number}", 8080)
    world.pod(20)
    await scene.put(service("web"), endpoint_slice("web", pods))
    said = Counter([await world.ask("pod20", "10.96.0.50", 80) for _ in range(60)])
    assert set(said) == {f"pod{n} 10.244.0.20" for n in (11, 12, 13)}
    assert min(said.values()) > 5
    # The node itself, and a machine outside that routes through the node, come with the node's address.
    assert (await world.ask("", "10.96.0.50", 80)).split()[1] == "10.244.0.1"
    assert (await world.ask("client", "10.96.0.50", 80)).split()[1] == "10.244.0.1"
    # One fewer, one more.
    await scene.put(endpoint_slice("web", pods[:1]))
    assert {await world.ask("pod20", "10.96.0.50", 80) for _ in range(8)} == {"pod11 10.244.0.20"}
    # A pod that reaches itself through its Service.
    assert await world.ask("pod11", "10.96.0.50", 80) == "pod11 10.244.0.1"
    not_ready = {"addresses": [pods[1]], "conditions": {"ready": False}, "nodeName": NODE}
    await scene.put(endpoint_slice("web", [not_ready, pods[2]]))
    assert {await world.ask("pod20", "10.96.0.50", 80) for _ in range(8)} == {"pod13 10.244.0.20"}


async def test_without_endpoints_connections_are_refused_at_once(scene: Scene) -> None:
    world = scene.world
    world.pod(20)
    await scene.put(service("web", type="NodePort", ports=[{"port": 80, "protocol": "TCP", "nodePort": 30080}]))
    for space in ("pod20", "", "client"):
        with pytest.raises(ConnectionRefusedError):
            await world.ask(space, "10.96.0.50", 80)
        with pytest.raises(ConnectionRefusedError):
            await world.ask(space, NODE_IP, 30080)
    # A port that the Service does not have, and an address that nobody has.
    with pytest.raises(ConnectionRefusedError):
        await world.ask("pod20", "10.96.0.50", 81)
    with pytest.raises(TimeoutError):
        await world.ask("pod20", "10.96.7.7", 80, timeout=0.3)


async def test_node_ports_external_ips_and_load_balancers(scene: Scene) -> None:
    world = scene.world
    address = world.pod(11)
    await world.serve("pod11", 8080)
    await scene.put(
        service(
            "web",
            type="LoadBalancer",
            ports=[{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
            externalIPs=["203.0.113.5"],
            status={"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}, {"ip": "203.0.113.10", "ipMode": "Proxy"}]}},
        ),
        endpoint_slice("web", [address]),
    )
    for space in ("client", "", "pod11"):
        assert (await world.ask(space, NODE_IP, 30080)).startswith("pod11 10.244.0.1")
        assert (await world.ask(space, "203.0.113.5", 80)).startswith("pod11")
        assert (await world.ask(space, "203.0.113.9", 80)).startswith("pod11")
    assert await world.ask("", "127.0.0.1", 30080) == "pod11 10.244.0.1"
    with pytest.raises(OSError):
        await world.ask("client", "203.0.113.10", 80, timeout=0.3)
    await scene.put(
        service(
            "web",
            type="LoadBalancer",
            ports=[{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30081}],
            loadBalancerSourceRanges=["198.51.100.0/24", "192.168.77.128/25"],
            status={"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}},
        )
    )
    with pytest.raises(TimeoutError):
        await world.ask("client", "203.0.113.9", 80, timeout=0.3)
    assert (await world.ask("client", NODE_IP, 30081)).startswith("pod11")
    with pytest.raises(OSError):
        await world.ask("client", NODE_IP, 30080, timeout=0.3)


async def test_external_policy_local_keeps_the_client_and_drops_without_local_endpoints(scene: Scene) -> None:
    world = scene.world
    here, there = world.pod(11), world.pod(12)
    await world.serve("pod11", 8080)
    await world.serve("pod12", 8080)
    web = service(
        "web",
        type="LoadBalancer",
        ports=[{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
        externalTrafficPolicy="Local",
        healthCheckNodePort=32000,
        status={"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}},
    )
    await scene.put(web, endpoint_slice("web", [here, elsewhere(there)]))
    for address, port in ((NODE_IP, 30080), ("203.0.113.9", 80)):
        assert {await world.ask("client", address, port) for _ in range(8)} == {"pod11 192.168.77.2"}
        # The node and its pods reach all endpoints.
        assert {(await world.ask("", address, port)).split()[0] for _ in range(16)} == {"pod11", "pod12"}
    assert scene.proxier.seen_health == {32000: ("default", "web", 1)}  # type: ignore[attr-defined]
    await scene.put(endpoint_slice("web", [elsewhere(there)]))
    with pytest.raises(TimeoutError):
        await world.ask("client", NODE_IP, 30080, timeout=0.3)
    assert (await world.ask("", NODE_IP, 30080)).startswith("pod12")
    assert scene.proxier.seen_health == {32000: ("default", "web", 0)}  # type: ignore[attr-defined]


async def test_internal_policy_local_and_terminating_endpoints(scene: Scene) -> None:
    world = scene.world
    here, there = world.pod(11), world.pod(12)
    await world.serve("pod11", 8080)
    await world.serve("pod12", 8080)
    web = service("web", internalTrafficPolicy="Local")
    await scene.put(web, endpoint_slice("web", [here, elsewhere(there)]))
    assert {(await world.ask("", "10.96.0.50", 80)).split()[0] for _ in range(10)} == {"pod11"}
    going = {
        "addresses": [here],
        "conditions": {"ready": False, "serving": True, "terminating": True},
        "nodeName": NODE,
    }
    await scene.put(endpoint_slice("web", [going, elsewhere(there)]))
    assert (await world.ask("", "10.96.0.50", 80)).startswith("pod11")
    await scene.put(endpoint_slice("web", [elsewhere(there)]))
    with pytest.raises(OSError):
        await world.ask("pod12", "10.96.0.50", 80, timeout=0.3)


@pytest.mark.parametrize("family", [4, 6])
async def test_session_affinity_holds_across_addresses_and_ends_with_its_endpoint(scene: Scene, family: int) -> None:
    world = scene.world
    numbers = (11, 12, 13, 14)
    pods = [world.pod(n) for n in numbers]
    if family == 6:
        pods = [f"fd00:244::{n}" for n in numbers]
    for number in numbers:
        await world.serve(f"pod{number}", 8080)
        await world.serve(f"pod{number}", 8081)
    for number in (21, 22, 23, 24):
        world.pod(number)
    ip = "10.96.0.50" if family == 4 else "fd00:96::50"
    web = service(
        "web",
        ip,
        type="NodePort",
        ports=[{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 600}},
    )
    # Two target ports: a Service whose pods name their port differently.
    await scene.put(
        web,
        endpoint_slice("web", pods[:2], family=family),
        endpoint_slice("web", pods[2:], 8081, family=family, slice_name="second"),
    )
    chosen = {}
    for number in (21, 22, 23, 24):
        said = {await world.ask(f"pod{number}", ip, 80) for _ in range(10)}
        assert len(said) == 1
        chosen[number] = said.pop().split()[0]
    if family == 4:
        first = {await world.ask("client", NODE_IP, 30080) for _ in range(10)}
        assert len(first) == 1
    # Clients stay bound when the tables are restored.
    scene.proxier.repair()
    await scene.settle()
    for number in (21, 22, 23, 24):
        assert {(await world.ask(f"pod{number}", ip, 80)).split()[0] for _ in range(4)} == {chosen[number]}
    gone = chosen[21]
    left = [p for n, p in zip(numbers, pods, strict=True) if f"pod{n}" != gone]
    await scene.put(
        endpoint_slice("web", [p for p in left if p in pods[:2]], family=family),
        endpoint_slice("web", [p for p in left if p in pods[2:]], 8081, family=family, slice_name="second"),
    )
    after = {await world.ask("pod21", ip, 80) for _ in range(10)}
    assert len(after) == 1 and after.pop().split()[0] != gone
    for number in (22, 23, 24):
        if chosen[number] != gone:
            assert (await world.ask(f"pod{number}", ip, 80)).split()[0] == chosen[number]
    scene.proxier.service_gone(web)
    await scene.settle()
    assert scene.proxier._nft is not None
    assert "affinity" not in scene.proxier._nft.run("list ruleset")


async def test_udp_flows_follow_the_endpoints(scene: Scene) -> None:
    world = scene.world
    pods = [world.pod(n) for n in (11, 12)]
    for number in (11, 12):
        await world.serve_udp(f"pod{number}", 5353)
    world.pod(20)
    dns = service("udp", "10.96.0.53", ports=[{"name": "dns", "port": 53, "protocol": "UDP"}])
    loop = asyncio.get_running_loop()
    with netns.make_socket(world.spaces["pod20"], socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("10.96.0.53", 53))

        async def ask() -> str:
            for _ in range(50):
                try:
                    await loop.sock_sendall(sock, b"?")
                    return (await asyncio.wait_for(loop.sock_recv(sock, 100), 1)).decode()
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
            raise AssertionError("refused for a second")

        await scene.put(dns, endpoint_slice("udp", pods[:1], 5353, port_name="dns", protocol="UDP"))
        assert await ask() == "pod11"
        # The same flow (one socket) goes to the new endpoint, and is refused when there is none.
        await scene.put(endpoint_slice("udp", pods[1:], 5353, port_name="dns", protocol="UDP"))
        assert await ask() == "pod12"
        scene.proxier.service_gone(dns)
        await scene.settle()
        with Conntrack() as conntrack:
            assert not [f for f in conntrack.flows(4, "udp") if f.destination == "10.96.0.53"]


async def test_dual_stack(scene: Scene) -> None:
    world = scene.world
    world.pod(11)
    await world.serve("pod11", 8080)
    world.pod(20)
    await scene.put(
        service("web", clusterIPs=["10.96.0.50", "fd00:96::50"]),
        endpoint_slice("web", ["10.244.0.11"]),
        endpoint_slice("web", ["fd00:244::11"], family=6),
    )
    assert await world.ask("pod20", "10.96.0.50", 80) == "pod11 10.244.0.20"
    assert await world.ask("pod20", "fd00:96::50", 80) == "pod11 fd00:244::20"
    assert (await world.ask("", "fd00:96::50", 80)).startswith("pod11")
    assert await world.ask("pod11", "fd00:96::50", 80) == "pod11 fd00:244::1"


async def test_an_api_server_on_the_node_itself(scene: Scene) -> None:
    world = scene.world
    world.pod(20)
    await world.serve("", 6443, says="apiserver")
    api = service("kubernetes", "10.96.0.1", ports=[{"name": "https", "port": 443, "protocol": "TCP"}])
    slice_ = endpoint_slice(
        "kubernetes", [{"addresses": [NODE_IP], "conditions": {"ready": True}}], 6443, port_name="https"
    )
    await scene.put(api, slice_)
    assert await world.ask("pod20", "10.96.0.1", 443) == "apiserver 10.244.0.20"
    assert (await world.ask("", "10.96.0.1", 443)).startswith("apiserver")


async def test_rules_are_restored_after_a_flush_and_connections_go_on(scene: Scene) -> None:
    world = scene.world
    address = world.pod(11)
    await world.serve("pod11", 8080)
    await scene.put(service("web"), endpoint_slice("web", [address]))
    for command in (
        ["flush", "ruleset"],
        ["delete", "table", "ip", "longshore-proxy"],
        ["flush", "chain", "ip", "longshore-proxy", "services"],
    ):
        scene.proxier.idle.clear()
        await process.run(["nft", *command])
        await scene.settle()
        assert (await world.ask("", "10.96.0.50", 80)).startswith("pod11")
    # Notices that are lost lead to a look, not to an endless rebuild.
    before = scene.proxier._metrics.full._sum.get()
    scene.proxier._suspect()
    await scene.settle()
    assert scene.proxier._metrics.full._sum.get() == before


async def test_a_start_replaces_what_an_earlier_proxy_left(scene: Scene) -> None:
    world = scene.world
    address = world.pod(11)
    await world.serve("pod11", 8080)
    await process.run(["nft", "add", "chain", "ip", "longshore-proxy", "old-chain"])
    other = Proxier(NODE, server.dialects(SERVICE_CIDR, POD_CIDR))
    other.service(service("web", "10.96.0.99"))
    other.slice(endpoint_slice("web", [address]))
    scene.stop()
    task = asyncio.create_task(other.run())
    await asyncio.wait_for(other.synced.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    listed = (await process.run(["nft", "list", "ruleset"])).stdout.decode()
    assert "old-chain" not in listed and "10.96.0.99" in listed


async def test_two_services_that_want_one_address(scene: Scene) -> None:
    world = scene.world
    first, second = world.pod(11), world.pod(12)
    await world.serve("pod11", 8080)
    await world.serve("pod12", 8080)
    a = service("a", "10.96.0.51", externalIPs=["203.0.113.5"])
    b = service("b", "10.96.0.52", externalIPs=["203.0.113.5"])
    await scene.put(a, endpoint_slice("a", [first]))
    await scene.put(b, endpoint_slice("b", [second]))
    assert (await world.ask("client", "203.0.113.5", 80)).startswith("pod11")
    scene.proxier.service_gone(a)
    await scene.settle()
    assert (await world.ask("client", "203.0.113.5", 80)).startswith("pod12")


async def test_services_that_are_not_the_proxys(scene: Scene) -> None:
    nft = scene.proxier._nft
    assert nft is not None
    before = nft.run("list ruleset")
    headless = service("headless", "None")
    external = service("external", "", type="ExternalName", externalName="example.com")
    other = service("other")
    other["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "else"}
    node_local = service("dns", "10.96.0.10")
    labelled = service("labelled", "10.96.0.77")
    labelled["metadata"]["labels"] = {"service.kubernetes.io/headless": ""}
    await scene.put(headless, external, other, node_local, labelled)
    assert nft.run("list ruleset") == before
