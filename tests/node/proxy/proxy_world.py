"""A node with pods and a machine outside, as network namespaces; Services and slices as API objects."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path
from typing import Any

from longshore.machinery import netns
from longshore.machinery.netlink import Netlink

Object = dict[str, Any]
NODE = "node-1"
NODE_IP = "192.168.77.1"
POD_CIDR, SERVICE_CIDR = "10.244.0.0/16,fd00:244::/64", "10.96.0.0/12,fd00:96::/108"


def service(name: str, cluster_ip: str = "10.96.0.50", ports: list[Object] | None = None, **spec: Any) -> Object:
    status = spec.pop("status", {})
    return {
        "metadata": {"namespace": "default", "name": name, "annotations": spec.pop("annotations", {})},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": spec.pop("clusterIPs", [cluster_ip]),
            "ports": ports or [{"name": "http", "port": 80, "protocol": "TCP"}],
            **spec,
        },
        "status": status,
    }


def endpoint_slice(
    name: str, addresses: list[Any], port: int = 8080, *, port_name: str = "http", protocol: str = "TCP", **more: Any
) -> Object:
    """addresses: strings (ready, on this node) or whole endpoints."""
    family = more.get("family", 4)
    endpoints = [
        item
        if isinstance(item, dict)
        else {"addresses": [item], "conditions": {"ready": True, "serving": True}, "nodeName": NODE}
        for item in addresses
    ]
    return {
        "metadata": {
            "namespace": "default",
            "name": more.get("slice_name", f"{name}-{family}"),
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": f"IPv{family}",
        "endpoints": endpoints,
        "ports": [{"name": port_name, "port": port, "protocol": protocol}],
    }


def elsewhere(address: str, **conditions: Any) -> Object:
    return {"addresses": [address], "conditions": {"ready": True, **conditions}, "nodeName": "node-2"}


class World:
    """The test process's own namespace is the node: bridge `pods` with pods behind it, veth `outside` to a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spaces: dict[str, Path] = {}
        self.links: list[str] = []
        self.servers: list[asyncio.base_events.Server] = []
        self.transports: list[asyncio.DatagramTransport] = []
        with Netlink() as node:
            bridge = node.add_bridge("pods")
            netns.write_sysctl(None, "net/ipv6/conf/pods/accept_dad", "0")
            node.add_address(bridge, ipaddress.ip_interface("10.244.0.1/24"))
            node.add_address(bridge, ipaddress.ip_interface("fd00:244::1/64"))
            node.set_link(bridge, up=True)
            self.links.append("pods")
        self._space("client")
        with Netlink() as node, netns.opened(self.spaces["client"]) as inside:
            node.add_veth("outside", "eth0", peer_namespace=inside, up=True)
            node.add_address(node.index("outside"), ipaddress.ip_interface(f"{NODE_IP}/24"))
            node.add_route(
                ipaddress.ip_network("0.0.0.0/0"),
                gateway=ipaddress.ip_address("192.168.77.2"),
                link=node.index("outside"),
            )
            self.links.append("outside")
        with Netlink(self.spaces["client"]) as client:
            index = client.index("eth0")
            client.add_address(index, ipaddress.ip_interface("192.168.77.2/24"))
            client.set_link(index, up=True)
            client.add_route(ipaddress.ip_network("0.0.0.0/0"), gateway=ipaddress.ip_address(NODE_IP), link=index)

    def _space(self, name: str) -> None:
        self.spaces[name] = self.folder / name
        netns.create(self.spaces[name])

    def pod(self, number: int) -> str:
        """A pod 10.244.0.<number> (and fd00:244::<number>); its IPv4 address."""
        name = f"pod{number}"
        self._space(name)
        address = f"10.244.0.{number}"
        with Netlink() as node, netns.opened(self.spaces[name]) as inside:
            node.add_veth(f"veth{number}", "eth0", peer_namespace=inside, master=node.index("pods"), up=True)
            # With bridge-nf-call-iptables a pod that reaches itself through a Service never leaves the bridge.
            node.set_bridge_port(node.index(f"veth{number}"), hairpin=True)
            self.links.append(f"veth{number}")
        with Netlink(self.spaces[name]) as pod:
            index = pod.index("eth0")
            netns.write_sysctl(self.spaces[name], "net/ipv6/conf/eth0/accept_dad", "0")
            pod.add_address(index, ipaddress.ip_interface(f"{address}/24"))
            pod.add_address(index, ipaddress.ip_interface(f"fd00:244::{number}/64"))
            pod.set_link(index, up=True)
            for net, gateway in (("0.0.0.0/0", "10.244.0.1"), ("::/0", "fd00:244::1")):
                pod.add_route(ipaddress.ip_network(net), gateway=ipaddress.ip_address(gateway), link=index)
        return address

    async def serve(self, space: str, port: int, says: str = "") -> None:
        """A TCP server in a pod (or "" for the node) that says its name and who asks, IPv4 and IPv6."""

        def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(f"{says or space} {writer.get_extra_info('peername')[0].removeprefix('::ffff:')}".encode())
            writer.close()

        sock = netns.make_socket(self.spaces.get(space), socket.AF_INET6, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
        self.servers.append(await asyncio.start_server(answer, sock=sock))

    async def serve_udp(self, space: str, port: int) -> None:
        class Echo(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, address: Any) -> None:
                self.transport.sendto(space.encode(), address)

        sock = netns.make_socket(self.spaces.get(space), socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", port))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, sock=sock)
        self.transports.append(transport)

    async def ask(self, space: str, address: str, port: int, timeout: float = 5.0) -> str:
        """Connect from a namespace ("" for the node) and read to the end. Raises OSError or TimeoutError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = netns.make_socket(self.spaces.get(space), family, socket.SOCK_STREAM)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        said = b""
        with sock:
            async with asyncio.timeout(timeout):
                await loop.sock_connect(sock, (address, port))
                while data := await loop.sock_recv(sock, 1000):
                    said += data
        return said.decode()

    async def close(self) -> None:
        for server in self.servers:
            server.close()
        for transport in self.transports:
            transport.close()
        with Netlink() as node:
            for name in reversed(self.links):
                found = node.link(name)
                if found is not None:
                    node.delete_link(found.index)
        for path in self.spaces.values():
            netns.delete(path)
