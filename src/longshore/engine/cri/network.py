"""The built-in pod network of one node: an address and a pair of interfaces a pod, everything routed, no bridge.

Each pod has its address as a host route and the node as its only neighbour. So a packet from pod to pod passes the
node's routing, packet filter and address translation like one from elsewhere; on a bridge, whether it does depends on
br_netfilter. Under the pods' routes lies an `unreachable` route of the whole range, so that no packet for a pod that
has gone leaves the machine. Neighbour entries are permanent: nothing is asked by ARP.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from longshore.engine.cri.records import Sandbox
from longshore.machinery import netns
from longshore.machinery.netlink import Netlink, NetlinkError

log = logging.getLogger("longshore.engine.cri.network")

INTERFACE = "eth0"
_UNREACHABLE_METRIC = 4_000_000
_WAY_OUT_SECONDS = 10.0
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class NotReady(Exception):
    """The pod network is not configured yet; the text says why."""


def _tolerate(number: int) -> Any:
    class Tolerate(contextlib.AbstractContextManager[None]):
        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            return isinstance(error, NetlinkError) and error.errno == number

    return Tolerate()


class BuiltinNetwork:
    """Addresses from the node's pod ranges and an interface a pod. Its methods block for about two milliseconds."""

    name = "longshore"

    def __init__(self, state: Path, *, gateway: str = "pods0", mtu: int = 0) -> None:
        """state: a file of its own. gateway: the interface that carries the ranges' first addresses. mtu: of the
        pods' interfaces; 0: what the node's way out carries, at most 1500."""
        self._state, self.gateway, self._mtu = state, gateway, mtu
        self.ranges: list[Network] = []
        self._carried, self._asked = 0, float("-inf")
        self._last: dict[int, int] = {}
        self._set_up = False
        with contextlib.suppress(OSError, orjson.JSONDecodeError, ValueError):
            self.ranges = [ipaddress.ip_network(r) for r in orjson.loads(state.read_bytes())["ranges"]]

    def configure(self, pod_cidr: str) -> None:
        """Take the node's pod ranges (comma-separated, one a family). Raises ValueError."""
        ranges = [ipaddress.ip_network(part.strip()) for part in pod_cidr.split(",") if part.strip()]
        if ranges == self.ranges or not ranges:
            return
        temporary = self._state.with_name(self._state.name + ".new")
        temporary.write_bytes(orjson.dumps({"ranges": [str(r) for r in ranges]}))
        os.replace(temporary, self._state)
        self.ranges, self._set_up = ranges, False

    def ready(self) -> str:
        """Why no pod can have a network now; "" when it can."""
        return "" if self.ranges else "pod network is not configured: waiting for the node's pod CIDR"

    def _prepare(self) -> None:
        """Make the gateway's interface, addresses and the range's route; what is there already stays."""
        with Netlink() as link:
            if self._set_up and link.link(self.gateway) is not None:
                return
            with _tolerate(errno.EEXIST):
                # A bridge without ports: a plain holder of addresses that every kernel with containers has.
                link.add_bridge(self.gateway)
            index = link.index(self.gateway)
            link.set_link(index, up=True)
            _sysctl("net/ipv4/ip_forward", "1")
            present = {str(address) for _, address in link.addresses(index)}
            for network in self.ranges:
                if network.version == 6:
                    _sysctl("net/ipv6/conf/all/forwarding", "1")
                address = ipaddress.ip_interface(f"{network[1]}/{network.max_prefixlen}")
                if str(address) not in present:
                    with _tolerate(errno.EEXIST):
                        link.add_address(index, address)
                with _tolerate(errno.EEXIST):
                    link.add_route(network, kind="unreachable", metric=_UNREACHABLE_METRIC)
        self._set_up = True

    def _choose(self, network: Network, taken: set[str]) -> str:
        """The next free address, going round, so that one given back is not given out at once."""
        size = min(network.num_addresses, 65536)
        first, end = 2, size - (1 if network.version == 4 else 0)
        start = self._last.get(network.version, first - 1)
        for step in range(end - first):
            offset = first + (start - first + 1 + step) % (end - first)
            address = str(network[offset])
            if address not in taken:
                self._last[network.version] = offset
                return address
        raise NotReady(f"no free address in pod range {network}")

    def choose(self, sandboxes: Iterable[Sandbox]) -> list[str]:
        """An address a family that no sandbox has, or had until its network was ended. Raises NotReady."""
        if not self.ranges:
            raise NotReady(self.ready())
        held = list(sandboxes)
        taken = {ip for sandbox in held if not sandbox.network.get("gone") for ip in sandbox.ips}
        if not self._last:
            for sandbox in sorted(held, key=lambda s: s.created_at):
                for ip in sandbox.ips:
                    address = ipaddress.ip_address(ip)
                    for network in self.ranges:
                        if address in network:
                            self._last[network.version] = int(address) - int(network.network_address)
        return [self._choose(network, taken) for network in self.ranges]

    def connect(self, sandbox: Sandbox, namespace: Path) -> None:
        """Give the namespace its interface with the sandbox's addresses. Blocking. Raises OSError."""
        self._prepare()
        host_name = host_interface(sandbox.id)
        mac = "0a:58:" + ":".join(f"{byte:02x}" for byte in ipaddress.ip_address(sandbox.ips[0]).packed[-4:])
        with Netlink() as link, netns.opened(namespace) as fd, Netlink(fd) as inside:
            stale = link.link(host_name)
            if stale is not None:
                link.delete_link(stale.index)
            if not self._mtu and time.monotonic() - self._asked > _WAY_OUT_SECONDS:
                self._carried, self._asked = way_out(link), time.monotonic()
            mtu = self._mtu or self._carried
            link.add_veth(host_name, INTERFACE, peer_namespace=fd, peer_mac=mac, mtu=mtu, up=True)
            outer = link.link(host_name)
            assert outer is not None
            if any(m.host_port > 0 for m in sandbox.config.port_mappings):
                # What a process of the node sends to 127.0.0.1:hostPort leaves by this interface.
                _sysctl(f"net/ipv4/conf/{host_name}/route_localnet", "1")
            index = inside.index(INTERFACE)
            inside.set_link(index, up=True)
            for ip in sandbox.ips:
                address = ipaddress.ip_address(ip)
                gateway = next(n for n in self.ranges if address in n)[1]
                own: Any = ipaddress.ip_network(f"{ip}/{address.max_prefixlen}")
                node: Any = ipaddress.ip_network(f"{gateway}/{address.max_prefixlen}")
                everything: Any = ipaddress.ip_network("0.0.0.0/0" if address.version == 4 else "::/0")
                inside.add_address(index, ipaddress.ip_interface(f"{ip}/{address.max_prefixlen}"))
                inside.set_neighbour(index, gateway, outer.mac)
                inside.add_route(node, link=index)
                inside.add_route(everything, gateway=gateway, link=index, onlink=True)
                link.set_neighbour(outer.index, address, mac)
                link.add_route(own, link=outer.index, source=gateway, replace=True)

    def disconnect(self, sandbox: Sandbox) -> None:
        """Take the sandbox's interface away, if it is there. Blocking."""
        with Netlink() as link:
            found = link.link(host_interface(sandbox.id))
            if found is not None:
                with _tolerate(errno.ENODEV):
                    link.delete_link(found.index)

    def purge(self) -> None:
        """Remove the gateway and the ranges' routes (when the node is taken down). Blocking."""
        with Netlink() as link:
            found = link.link(self.gateway)
            if found is not None:
                link.delete_link(found.index)
            for network in self.ranges:
                with _tolerate(errno.ESRCH):
                    link.delete_route(network, kind="unreachable", metric=_UNREACHABLE_METRIC)
        self._set_up = False


def way_out(link: Netlink) -> int:
    """What the interfaces of the default routes carry, in octets; 0 for the usual 1500 and more, or without such a route."""
    out = {route.link for version in (4, 6) for route in link.routes(version) if not route.destination.prefixlen}
    least = min((one.mtu for one in link.links() if one.index in out), default=1500)
    return least if least < 1500 else 0


def host_interface(sandbox_id: str) -> str:
    """The name of a sandbox's interface on the node: at most 15 characters."""
    return "pod" + sandbox_id[:12]


def _sysctl(name: str, value: str) -> None:
    try:
        path = Path("/proc/sys") / name
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        log.warning("sysctl %s could not be set to %s: %s", name, value, error.strerror)


def statistics(namespace: Path, interface: str = INTERFACE) -> list[tuple[str, int, int, int, int]]:
    """(name, rx bytes, rx errors, tx bytes, tx errors) of a namespace's interfaces but lo. Blocking."""

    def work() -> str:
        # The thread that reads is in the namespace; /proc/net alone would show the main thread's.
        return Path("/proc/thread-self/net/dev").read_text()

    result = []
    for line in netns.call(namespace, work).splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if name.strip() != "lo" and len(fields) >= 11:
            result.append((name.strip(), int(fields[0]), int(fields[2]), int(fields[8]), int(fields[10])))
    return sorted(result, key=lambda row: row[0] != interface)
