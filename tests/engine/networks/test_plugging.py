"""Parents of macvlan and ipvlan networks, and sysctls of endpoints, without a kernel that has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.engine.networks import plugging
from longshore.engine.networks.model import Endpoint, Network
from longshore.machinery.netlink import Netlink


class Kernel:
    """Remembers what was asked of it."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.asked: list[tuple[Any, ...]] = []

    def link(self, name: str) -> Any:
        return SimpleNamespace(index=self.names.index(name) + 1) if name in self.names else None

    def _add(self, *asked: Any) -> int:
        self.asked.append(asked)
        self.names.append(asked[1])
        return len(self.names)

    def add_dummy(self, name: str) -> int:
        return self._add("dummy", name)

    def add_vlan(self, name: str, link: int, vlan: int) -> int:
        return self._add("vlan", name, link, vlan)

    def set_link(self, index: int, *, up: bool) -> None:
        self.asked.append(("up", index))

    def delete_link(self, index: int) -> None:
        self.asked.append(("delete", index))


def made(kernel: Kernel, network: Network) -> list[tuple[Any, ...]]:
    plugging.make_parent(cast("Netlink", kernel), network)
    return kernel.asked


def test_parents() -> None:
    kernel = Kernel("eth0")
    named = Network("n", "macvlan", options={"parent": "eth0"})
    assert made(kernel, named) == [] and not named.own_parent
    plugging.remove_parent(cast("Netlink", kernel), named)
    assert kernel.asked == []
    vlan = Network("v", "ipvlan", options={"parent": "eth0.10"})
    assert made(kernel, vlan) == [("vlan", "eth0.10", 1, 10), ("up", 2)] and vlan.own_parent
    plugging.remove_parent(cast("Netlink", kernel), vlan)
    assert kernel.asked[-1] == ("delete", 2)
    alone = Network("a", "macvlan", id="0123456789abcdef")
    assert made(Kernel(), alone) == [("dummy", "dm-0123456789ab"), ("up", 1)]
    for parent in ("eth1", "eth0.5000", "eth0."):
        with pytest.raises(SystemFailure, match="invalid subinterface vlan name"):
            made(Kernel("eth0"), Network("w", "macvlan", options={"parent": parent}))


def test_modes() -> None:
    assert plugging.mode_of(Network("n", "ipvlan")) == "l2"
    l3 = Network("n", "ipvlan", options={"ipvlan_mode": "l3s"})
    assert plugging.mode_of(l3) == "l3s" and plugging.routes_itself(l3)
    with pytest.raises(SystemFailure, match="requested macvlan mode 'x' is not valid"):
        plugging.mode_of(Network("n", "macvlan", options={"macvlan_mode": "x"}))


def test_sysctls_of_endpoints() -> None:
    found = plugging.endpoint_sysctls("net.ipv4.conf.IFNAME.forwarding=1,net.ipv6.conf.ifname.accept_ra=2", "eth3")
    assert found == {"net/ipv4/conf/eth3/forwarding": "1", "net/ipv6/conf/eth3/accept_ra": "2"}
    for wrong in (
        "net.ipv4.ip_forward=1",
        "kernel.conf.a.IFNAME.b=1",
        "net.ipv4.conf.eth0.a=1",
        "net.ipv4.conf.IFNAME.a",
    ):
        with pytest.raises(InvalidParameter):
            plugging.endpoint_sysctls(wrong)
    with pytest.raises(InvalidParameter):
        plugging.endpoint_sysctls("net.ipv4/../../kernel.conf.IFNAME.a=1")


def test_interfaces_are_named() -> None:
    networks = [Network(name=f"n{number}", driver="bridge") for number in range(3)]
    networks[2].options["com.docker.network.container_iface_prefix"] = "con"
    endpoints = [Endpoint(network, "c", "c") for network in [*networks, networks[0]]]
    endpoints[1].interface = "eth0"
    assert plugging.name_interfaces(endpoints) == ["eth1", "eth0", "con0", "eth2"]
    assert plugging.name_interfaces(endpoints[:1], ["lo", "eth0", "eth2"]) == ["eth1"]
