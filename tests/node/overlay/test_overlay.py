"""Pods of different nodes reach each other: over a shared link by plain routes, over a router by VXLAN."""

import asyncio
import ipaddress
import socket
import threading
from pathlib import Path

import pytest

from longshore.machinery import netns
from longshore.machinery.netlink import Netlink
from longshore.node.overlay import server as overlay


def node(name: str, ip: str, pods: str) -> dict:
    return {
        "metadata": {"name": name},
        "spec": {"podCIDRs": [pods]},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    }


def test_ways_tell_direct_links_from_tunnels():
    nodes = [
        node("a", "10.0.0.1", "10.244.0.0/24"),
        node("b", "10.0.0.2", "10.244.1.0/24"),
        node("c", "10.9.0.2", "10.244.2.0/24"),
    ]
    broken = {"metadata": {"name": "d"}, "spec": {}, "status": {"addresses": [{"type": "InternalIP", "address": "no"}]}}
    found = overlay.ways([*nodes, broken], "a", [ipaddress.ip_network("10.0.0.0/24")])
    assert {(str(w.destination), str(w.gateway), w.direct) for w in found} == {
        ("10.244.1.0/24", "10.0.0.2", True),
        ("10.244.2.0/24", "10.9.0.2", False),
    }


def make_node(folder: Path, name: str, address: str, pod: str, router: Path, gateway: str) -> Path:
    """A namespace linked to the router's, with an address of the pod range on a bridge of its own."""
    path = folder / name
    netns.create(path)
    with netns.opened(path) as inside, Netlink(router) as link:
        link.add_veth(f"to-{name}", "eth0", peer_namespace=inside, up=True)
        link.add_address(link.index(f"to-{name}"), ipaddress.ip_interface(gateway))
    with Netlink(path) as link:
        index = link.index("eth0")
        link.add_address(index, ipaddress.ip_interface(address))
        link.set_link(index, up=True)
        link.add_route(ipaddress.ip_network("0.0.0.0/0"), gateway=ipaddress.ip_interface(gateway).ip, link=index)
        dummy = link.add_bridge("pods0")
        link.add_address(dummy, ipaddress.ip_interface(pod))
        link.set_link(dummy, up=True)
    return path


def say_hello(server: Path, server_ip: str, client: Path, client_ip: str) -> str:
    """A TCP connection between two pod addresses; the address that the server saw."""
    listener = netns.make_socket(server, socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((server_ip, 0))
    listener.listen(1)
    caller = netns.make_socket(client, socket.AF_INET, socket.SOCK_STREAM)
    with listener, caller:
        caller.settimeout(5)
        listener.settimeout(5)
        caller.bind((client_ip, 0))
        caller.connect(listener.getsockname())
        connection, peer = listener.accept()
        connection.close()
    return peer[0]


@pytest.mark.root
def test_pods_reach_each_other_over_a_tunnel_and_leave_when_the_node_does(tmp_path):
    router = tmp_path / "router"
    netns.create(router)
    netns.write_sysctl(router, "net/ipv4/ip_forward", "1")
    a = make_node(tmp_path, "a", "10.7.1.2/24", "10.244.1.1/32", router, "10.7.1.1/24")
    b = make_node(tmp_path, "b", "10.7.2.2/24", "10.244.2.1/32", router, "10.7.2.1/24")
    nodes = [node("a", "10.7.1.2", "10.244.1.0/24"), node("b", "10.7.2.2", "10.244.2.0/24")]
    try:
        for _ in range(2):  # repeating it changes nothing
            netns.call(a, lambda: overlay.reconcile(nodes, "a", "10.7.1.2"))
            netns.call(b, lambda: overlay.reconcile(nodes, "b", "10.7.2.2"))
        assert say_hello(b, "10.244.2.1", a, "10.244.1.1") == "10.244.1.1"
        with Netlink(a) as link:
            # What is in the tunnel fits into the link outside.
            (tunnel,) = [one for one in link.links() if one.name == overlay.DEVICE]
            assert tunnel.mtu == 1450
        netns.call(a, lambda: overlay.reconcile(nodes[:1], "a", "10.7.1.2"))
        with Netlink(a) as link:
            assert not [r for r in link.routes() if r.metric == overlay.METRIC]
    finally:
        for path in (a, b, router):
            netns.delete(path)


def test_a_range_of_the_other_family_goes_through_the_one_tunnel():
    both = node("b", "10.9.0.2", "10.244.1.0/24")
    both["spec"]["podCIDRs"].append("fd00:10:244:1::/64")
    (four, six) = sorted(overlay.ways([both], "a", []), key=lambda way: way.destination.version)
    assert (str(four.gateway), str(four.end), four.direct) == ("10.9.0.2", "10.9.0.2", False)
    assert (str(six.gateway), str(six.end), six.direct) == ("fe80::a09:2", "10.9.0.2", False)
    # With an address of the family on a shared link there is no tunnel.
    both["status"]["addresses"].append({"type": "InternalIP", "address": "fd00::2"})
    found = overlay.ways([both], "a", [ipaddress.ip_network("fd00::/64")])
    assert {(str(w.gateway), w.direct) for w in found} == {("10.9.0.2", False), ("fd00::2", True)}
    only6 = node("c", "fd00::3", "10.244.3.0/24")
    (way,) = overlay.ways([only6], "a", [])
    assert way.gateway.is_link_local and way.gateway.version == 4 and str(way.end) == "fd00::3"


class Nodes:
    """As much of an informer as the overlay uses."""

    def __init__(self, items: list[dict]) -> None:
        self.store = items

    def on(self, *_: object) -> None:
        pass

    async def wait_synced(self) -> None:
        pass


@pytest.mark.root
async def test_routes_that_went_with_an_interface_come_back_with_it():
    with Netlink() as link:
        link.add_veth("ovl0", "ovl1", up=True)
        index = link.index("ovl0")
        link.set_link(link.index("ovl1"), up=True)
        link.add_address(index, ipaddress.ip_interface("10.7.9.1/24"))
        nodes = [node("a", "10.7.9.1", "10.244.1.0/24"), node("b", "10.7.9.2", "10.244.2.0/24")]
        running = asyncio.create_task(overlay.serve(nodes=Nodes(nodes), node_name="a", node_ip="10.7.9.1"))

        def routes() -> list[str]:
            return [str(r.destination) for r in link.routes() if r.metric == overlay.METRIC]

        async def until(wanted: list[str]) -> None:
            async with asyncio.timeout(10):
                while routes() != wanted:
                    assert not running.done()
                    await asyncio.sleep(0.01)

        try:
            await until(["10.244.2.0/24"])
            link.set_link(index, up=False)
            await until([])
            link.set_link(index, up=True)
            await until(["10.244.2.0/24"])
            link.delete_route(ipaddress.ip_network("10.244.2.0/24"), metric=overlay.METRIC)
            await until(["10.244.2.0/24"])
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            overlay.clean_up()
            link.delete_link(index)


def add_pod(folder: Path, name: str, node_path: Path, address: str) -> Path:
    """A pod as the engine's own network makes it: 1500 octets, the node as its only neighbour."""
    path = folder / name
    netns.create(path)
    gateway = ipaddress.ip_address("169.254.1.1")
    pod = ipaddress.ip_interface(f"{address}/32")
    with netns.opened(path) as inside, Netlink(node_path) as link:
        link.add_veth(f"pod-{name}", "eth0", peer_namespace=inside, up=True)
        index = link.index(f"pod-{name}")
        link.add_route(pod.network, link=index)
        link.add_address(index, ipaddress.ip_interface(f"{gateway}/32"))
    with Netlink(path) as link:
        index = link.index("eth0")
        link.add_address(index, pod)
        link.set_link(index, up=True)
        link.add_route(ipaddress.ip_network(f"{gateway}/32"), link=index)
        link.add_route(ipaddress.ip_network("0.0.0.0/0"), gateway=gateway, link=index)
    netns.write_sysctl(node_path, "net/ipv4/ip_forward", "1")
    return path


@pytest.mark.root
def test_pods_with_full_frames_learn_what_fits_into_the_tunnel(tmp_path):
    router = tmp_path / "router"
    netns.create(router)
    netns.write_sysctl(router, "net/ipv4/ip_forward", "1")
    a = make_node(tmp_path, "a", "10.7.1.2/24", "10.244.1.1/32", router, "10.7.1.1/24")
    b = make_node(tmp_path, "b", "10.7.2.2/24", "10.244.2.1/32", router, "10.7.2.1/24")
    nodes = [node("a", "10.7.1.2", "10.244.1.0/24"), node("b", "10.7.2.2", "10.244.2.0/24")]
    made = [a, b, router]
    try:
        for path, name, ip in ((a, "a", "10.7.1.2"), (b, "b", "10.7.2.2")):
            netns.call(path, lambda name=name, ip=ip: overlay.reconcile(nodes, name, ip))
        one = add_pod(tmp_path, "one", a, "10.244.1.5")
        two = add_pod(tmp_path, "two", b, "10.244.2.5")
        made += [one, two]
        listener = netns.make_socket(two, socket.AF_INET, socket.SOCK_STREAM)
        caller = netns.make_socket(one, socket.AF_INET, socket.SOCK_STREAM)
        with listener, caller:
            listener.settimeout(20)
            caller.settimeout(20)
            listener.bind(("10.244.2.5", 0))
            listener.listen(1)
            caller.connect(listener.getsockname())
            connection, _ = listener.accept()
            sent = bytes(1_000_000)
            sender = threading.Thread(target=lambda: (caller.sendall(sent), caller.shutdown(socket.SHUT_WR)))
            sender.start()
            with connection:
                connection.settimeout(20)
                got = 0
                while part := connection.recv(1 << 16):
                    got += len(part)
            sender.join()
            assert got == len(sent)
            # IP_MTU: what this connection has learnt.
            assert caller.getsockopt(socket.IPPROTO_IP, 14) == 1450
    finally:
        for path in reversed(made):
            netns.delete(path)
