"""NetworkPolicies: what they mean (against a plain reading of the specification), and packets through the kernel."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.proxy.proxy_world import World

from longshore.machinery import netns, process
from longshore.machinery.nftables import Nftables
from longshore.node.policy import server
from longshore.node.policy.enforcer import TABLE, Enforcer
from longshore.node.policy.model import Block, Group, pod_of, policy_of
from longshore.node.policy.state import PolicyState, rule_set
from longshore.node.proxy import node as node_setup

Object = dict[str, Any]
NODE = "node-1"


def pod(name: str, ip: str, labels: dict[str, str] | None = None, namespace: str = "default", **more: Any) -> Object:
    ips = more.get("ips", [ip])
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": labels or {}},
        "spec": {
            "nodeName": more.get("node", NODE),
            "hostNetwork": more.get("host", False),
            "containers": [{"ports": more.get("ports", [{"name": "web", "containerPort": 8080, "protocol": "TCP"}])}],
        },
        "status": {"podIPs": [{"ip": i} for i in ips], "phase": more.get("phase", "Running")},
    }


def policy(name: str, selector: Object | None = None, namespace: str = "default", **spec: Any) -> Object:
    return {"metadata": {"namespace": namespace, "name": name}, "spec": {"podSelector": selector or {}, **spec}}


def app(name: str) -> Object:
    return {"matchLabels": {"app": name}}


def test_reading_policies() -> None:
    found = policy_of(policy("a", ingress=[{"from": [{"podSelector": app("x")}], "ports": [{"port": 80}]}]))
    assert found.egress is None and found.ingress is not None
    assert found.ingress[0].peers == (Group("default", "", '{"matchLabels":{"app":"x"}}'),)
    assert policy_of(policy("b", egress=[{}])).egress is not None
    assert policy_of(policy("c", policyTypes=["Egress"])).ingress is None
    blocks = policy_of(
        policy("d", ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.7/8", "except": ["10.1.0.0/16"]}}]}])
    )
    assert blocks.ingress is not None and blocks.ingress[0].peers == (Block("10.0.0.0/8", ("10.1.0.0/16",)),)
    everywhere = policy_of(policy("e", ingress=[{"from": [{"namespaceSelector": {}}]}]))
    assert everywhere.ingress is not None and everywhere.ingress[0].peers == (Group("", "{}", "{}"),)


def test_reading_pods() -> None:
    assert pod_of(pod("a", "10.0.0.1", host=True), NODE) is None
    assert pod_of(pod("a", "10.0.0.1", phase="Succeeded"), NODE) is None
    assert pod_of(pod("a", "", ips=[]), NODE) is None
    hostile = pod_of(pod("a", "", ips=["10.0.0.1 }; flush ruleset", "fd00:0::1"]), NODE)
    assert hostile is not None and hostile.ips == ("fd00::1",)
    odd = policy_of(policy("x", ingress=[{"ports": [{"protocol": "x; drop", "port": 1}, {"port": 2}]}]))
    assert odd.ingress is not None and [p.first for p in odd.ingress[0].ports or ()] == [2]
    found = pod_of(pod("a", "10.0.0.1", node="other"), NODE)
    assert found is not None and not found.local and found.ports == (("web", "tcp", 8080),)


# The specification, read plainly: may this pod speak to that one?


def selected(selector: Object | None, labels: dict[str, str]) -> bool:
    from longshore.client.selectors import matcher

    return matcher(selector or {})(labels)


def peer_allows(peer: Object, other: Object, namespace: str, namespaces: dict[str, dict[str, str]]) -> bool:
    ip = ipaddress.ip_address(other["status"]["podIPs"][0]["ip"])
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        if ip not in ipaddress.ip_network(block["cidr"]):
            return False
        return not any(ip in ipaddress.ip_network(e) for e in block.get("except", ()))
    where = other["metadata"]["namespace"]
    if "namespaceSelector" in peer:
        if not selected(peer["namespaceSelector"], namespaces[where]):
            return False
    elif where != namespace:
        return False
    return selected(peer.get("podSelector"), other["metadata"]["labels"])


def port_allows(port: Object, number: int, destination: Object) -> bool:
    if port.get("protocol", "TCP") != "TCP":
        return False
    wanted = port.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        named = destination["spec"]["containers"][0]["ports"]
        return any(p["name"] == wanted and p["containerPort"] == number for p in named)
    return bool(wanted <= number <= port.get("endPort", wanted))


def allowed(
    source: Object, target: Object, number: int, policies: list[Object], namespaces: dict[str, dict[str, str]]
) -> bool:
    for direction, mine, other, side in (("Egress", source, target, "to"), ("Ingress", target, source, "from")):
        if mine["spec"]["nodeName"] != NODE:
            continue
        isolated, permitted = False, False
        for p in policies:
            spec, namespace = p["spec"], p["metadata"]["namespace"]
            types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
            if direction not in types or namespace != mine["metadata"]["namespace"]:
                continue
            if not selected(spec["podSelector"], mine["metadata"]["labels"]):
                continue
            isolated = True
            for rule in spec.get(direction.lower()) or ():
                peers, ports = rule.get(side), rule.get("ports")
                if peers and not any(peer_allows(peer, other, namespace, namespaces) for peer in peers):
                    continue
                if ports and not any(port_allows(port, number, target) for port in ports):
                    continue
                permitted = True
        if isolated and not permitted:
            return False
    return True


class Kernel:
    """Reads the table back from nftables' own listing and decides as the kernel would."""

    def __init__(self, listed: list[Object]) -> None:
        self.chains: dict[str, list[Any]] = {}
        self.sets: dict[str, Any] = {}
        for item in listed:
            if "rule" in item:
                self.chains.setdefault(item["rule"]["chain"], []).append(item["rule"]["expr"])
            for kind in ("set", "map"):
                if kind in item:
                    self.sets[item[kind]["name"]] = item[kind].get("elem", [])

    def passes(self, source: str, target: str, port: int) -> bool:
        packet = {"saddr": source, "daddr": target, "dport": port}
        for direction, address in (("egress", source), ("ingress", target)):
            for element in self.sets[direction]:
                if element[0] == address and not self._chain(element[1]["jump"]["target"], packet):
                    return False
        return True

    def _chain(self, name: str, packet: Object) -> bool:
        for expressions in self.chains[name]:
            if all(self._holds(e, packet) for e in expressions if "match" in e):
                return "return" in expressions[-1]
        raise AssertionError("a chain without an end")

    def _holds(self, expression: Object, packet: Object) -> bool:
        match = expression["match"]
        left, right = match["left"], match["right"]
        if "meta" in left:
            return bool(right == "tcp" or right == 6)
        if "concat" in left:
            value: Any = {"concat": [packet[part["payload"]["field"]] for part in left["concat"]]}
            return value in self.sets[right[1:]]
        if left["payload"]["protocol"] not in ("ip", "ip6", "tcp"):
            return False  # this packet is TCP
        value = packet[left["payload"]["field"]]
        held = self._within(value, right)
        return held if match["op"] == "==" else not held

    def _within(self, value: Any, right: Any) -> bool:
        if isinstance(right, str) and right.startswith("@"):
            return value in self.sets[right[1:]]
        if isinstance(right, dict) and "set" in right:
            return any(self._within(value, part) for part in right["set"])
        if isinstance(right, dict) and "prefix" in right:
            network = ipaddress.ip_network(f"{right['prefix']['addr']}/{right['prefix']['len']}")
            return ipaddress.ip_address(value) in network
        if isinstance(right, dict) and "range" in right:
            return bool(right["range"][0] <= value <= right["range"][1])
        return bool(value == right)


@pytest.mark.root
@pytest.mark.parametrize("seed", range(4))
def test_the_kernels_table_says_what_the_specification_says(seed: int) -> None:
    chance = random.Random(seed)
    spaces = {"default": {"team": "a"}, "shop": {"team": "b"}, "ops": {"team": "a", "env": "prod"}}
    selectors: list[Object] = [{}, app("x"), app("y"), {"matchExpressions": [{"key": "app", "operator": "Exists"}]}]

    def peer() -> Object:
        kind = chance.randrange(4)
        if kind == 0:
            return {"ipBlock": {"cidr": "10.244.0.0/28", "except": ["10.244.0.4/31", "10.244.0.8/32"]}}
        if kind == 1:
            return {"namespaceSelector": chance.choice([{}, {"matchLabels": {"team": "a"}}])}
        if kind == 2:
            return {"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": chance.choice(selectors)}
        return {"podSelector": chance.choice(selectors)}

    def rule(side: str) -> Object:
        found: Object = {}
        if chance.random() < 0.8:
            found[side] = [peer() for _ in range(chance.randrange(1, 3))]
        if chance.random() < 0.6:
            found["ports"] = chance.sample(
                [
                    {"port": 80},
                    {"port": 8080},
                    {"port": "web"},
                    {"port": 8000, "endPort": 8090},
                    {"protocol": "UDP"},
                    {"protocol": "TCP", "port": 9090},
                ],
                chance.randrange(1, 4),
            )
        return found

    state, rules = PolicyState(), rule_set(TABLE, 4)
    pods: dict[str, Object] = {}
    policies: dict[str, Object] = {}
    with Nftables() as nft:
        nft.run(rules.text())
        for name, labels in spaces.items():
            state.set_namespace(name, labels)
        for _ in range(40):
            for _ in range(chance.randrange(1, 4)):
                kind = chance.randrange(6)
                if kind < 3:
                    number = chance.randrange(1, 14)
                    space = list(spaces)[number % 3]
                    key = f"{space}/p{number}"
                    if chance.random() < 0.2:
                        pods.pop(key, None)
                        state.set_pod(key, None)
                        continue
                    labels = {"app": chance.choice("xyz")} if chance.random() < 0.8 else {}
                    ports = [{"name": "web", "containerPort": chance.choice([80, 8080, 8085]), "protocol": "TCP"}]
                    pods[key] = pod(
                        f"p{number}",
                        f"10.244.0.{number}",
                        labels,
                        space,
                        ports=ports,
                        node=NODE if number < 10 else "far",
                    )
                    state.set_pod(key, pod_of(pods[key], NODE))
                elif kind < 5:
                    space = chance.choice(list(spaces))
                    key = f"{space}/n{chance.randrange(3)}"
                    if chance.random() < 0.25:
                        policies.pop(key, None)
                        state.set_policy(key, None)
                        continue
                    spec: Object = {"policyTypes": chance.choice([["Ingress"], ["Egress"], ["Ingress", "Egress"]])}
                    spec["ingress"] = [rule("from") for _ in range(chance.randrange(3))]
                    spec["egress"] = [rule("to") for _ in range(chance.randrange(3))]
                    policies[key] = policy(key.split("/")[1], chance.choice(selectors), space, **spec)
                    state.set_policy(key, policy_of(policies[key]))
                else:
                    name = chance.choice(list(spaces))
                    spaces[name] = {"team": chance.choice("ab")}
                    state.set_namespace(name, spaces[name])
            text = rules.update(state.take(4))
            state.clear()
            if text:
                nft.run(text)
        kernel = Kernel(nft.json(f"list table ip {TABLE}"))
        checked = [0, 0]
        for source in pods.values():
            for target in pods.values():
                if source is target:
                    continue
                for number in (80, 8080, 8085, 9090, 1):
                    expected = allowed(source, target, number, list(policies.values()), spaces)
                    ips = [p["status"]["podIPs"][0]["ip"] for p in (source, target)]
                    assert kernel.passes(*ips, number) == expected, (source, target, number, policies)
                    checked[expected] += 1
        assert min(checked) > 10
        small = sorted(item["chain"]["name"] for item in nft.json(f"list table ip {TABLE}") if "chain" in item)
        nft.run(rules.text())
        assert small == sorted(i["chain"]["name"] for i in nft.json(f"list table ip {TABLE}") if "chain" in i)
        # Nothing is left of what nobody wants.
        for key in list(policies):
            state.set_policy(key, None)
        nft.run(rules.update(state.take(4)))
        assert rules.element_count == 0 and not rules.set_names() and rules.chain_names() == {"forward"}
        nft.run(f"delete table ip {TABLE}")


class Scene:
    def __init__(self, world: World, state: PolicyState, enforcer: Enforcer) -> None:
        self.world, self.state, self.enforcer = world, state, enforcer

    async def settle(self) -> None:
        self.enforcer.touch()
        await asyncio.wait_for(self.enforcer.idle.wait(), 10)

    async def put(self, *objects: Object) -> None:
        for obj in objects:
            key = f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
            if "podSelector" in obj["spec"]:
                self.state.set_policy(key, policy_of(obj))
            else:
                self.state.set_pod(key, pod_of(obj, NODE))
        await self.settle()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    world = World(tmp_path)
    node_setup.prepare([], source="")
    state = PolicyState()
    state.set_namespace("default", {})
    enforcer = Enforcer(state)
    task = asyncio.create_task(enforcer.run())
    yield Scene(world, state, enforcer)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.clean_up()
    await world.close()


@pytest.mark.root
async def test_packets(scene: Scene) -> None:
    world = scene.world
    for number in (11, 12, 13):
        world.pod(number)
        await world.serve(f"pod{number}", 8080)
        await world.serve(f"pod{number}", 9090)
    ips = {n: [f"10.244.0.{n}", f"fd00:244::{n}"] for n in (11, 12, 13)}
    await scene.put(*(pod(f"p{n}", "", {"app": f"a{n}"}, ips=ips[n]) for n in ips))

    async def reaches(source: str, target: int, port: int = 8080, family: int = 0) -> bool:
        try:
            await world.ask(source, ips[target][family], port, timeout=0.5)
        except TimeoutError:
            return False
        return True

    assert await reaches("pod12", 11) and await reaches("client", 11)
    await scene.put(policy("deny", app("a11")))
    for source in ("pod12", "client"):
        assert not await reaches(source, 11)
    assert not await reaches("pod12", 11, family=1)
    # The node itself, the pod itself, and pods that no policy selects.
    assert await reaches("", 11) and await reaches("pod11", 11) and await reaches("pod11", 12)
    allow = {"from": [{"podSelector": app("a12")}], "ports": [{"port": "web"}]}
    await scene.put(policy("allow", app("a11"), ingress=[allow]))
    assert await reaches("pod12", 11) and await reaches("pod12", 11, family=1)
    assert not await reaches("pod12", 11, 9090) and not await reaches("pod13", 11)
    # A pod's labels change: it is in, another is out.
    await scene.put(pod("p13", "", {"app": "a12"}, ips=ips[13]), pod("p12", "", {"app": "else"}, ips=ips[12]))
    assert await reaches("pod13", 11) and not await reaches("pod12", 11)
    await scene.put(
        policy(
            "out",
            {"matchLabels": {"app": "else"}},
            policyTypes=["Egress"],
            egress=[{"to": [{"ipBlock": {"cidr": "192.168.77.0/24", "except": ["192.168.77.128/25"]}}]}],
        )
    )
    assert not await reaches("pod12", 13)
    await world.serve("client", 7000)
    assert (await world.ask("pod12", "192.168.77.2", 7000)).startswith("client")


@pytest.mark.root
async def test_a_connection_is_cut_by_a_policy_that_comes_later(scene: Scene) -> None:
    world = scene.world
    for number in (11, 12):
        world.pod(number)
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            lines.put_nowait(line)

    listening = netns.make_socket(world.spaces["pod11"], socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("0.0.0.0", 8080))
    listener = await asyncio.start_server(serve, sock=listening)
    await scene.put(pod("p11", "10.244.0.11", {"app": "a"}), pod("p12", "10.244.0.12"))
    sock = netns.make_socket(world.spaces["pod12"], socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    with sock:
        await loop.sock_connect(sock, ("10.244.0.11", 8080))
        await loop.sock_sendall(sock, b"one\n")
        assert await asyncio.wait_for(lines.get(), 5) == b"one\n"
        await scene.put(policy("deny", app("a")))
        await loop.sock_sendall(sock, b"two\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lines.get(), 0.5)
        scene.state.set_policy("default/deny", None)
        await scene.settle()
        assert await asyncio.wait_for(lines.get(), 10) == b"two\n"
        listener.close()


@pytest.mark.root
async def test_rules_are_restored_after_a_flush(scene: Scene) -> None:
    await scene.put(pod("p11", "10.244.0.11"), policy("deny"))
    scene.enforcer.idle.clear()
    await process.run(["nft", "flush", "ruleset"])
    await asyncio.wait_for(scene.enforcer.idle.wait(), 10)
    listed = (await process.run(["nft", "list", "table", "ip", TABLE])).stdout.decode()
    assert "10.244.0.11 : jump ingress-" in listed
