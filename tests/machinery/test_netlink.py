from __future__ import annotations

import errno
import ipaddress
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longshore.machinery import mounts, netns
from longshore.machinery.netlink import Netlink, NetlinkError

pytestmark = pytest.mark.root


def test_a_pair_between_two_namespaces(tmp_path: Path) -> None:
    space = tmp_path / "ns"
    netns.create(space)
    assert netns.pinned(space)
    with pytest.raises(FileExistsError):
        netns.create(space)
    with Netlink() as host, Netlink(space) as inside, netns.opened(space) as fd:
        bridge = host.add_bridge("brtest0", mtu=1400)
        host.add_address(bridge, ipaddress.ip_interface("10.99.0.1/24"))
        host.set_link(bridge, up=True)
        host.add_veth(
            "vethtest0", "eth0", peer_namespace=fd, peer_mac="02:42:0a:63:00:02", mtu=1400, master=bridge, up=True
        )
        host.set_bridge_port(host.index("vethtest0"), hairpin=True)
        link = inside.link("eth0")
        assert link is not None and (link.mac, link.mtu, link.kind) == ("02:42:0a:63:00:02", 1400, "veth")
        inside.add_address(link.index, ipaddress.ip_interface("10.99.0.2/24"))
        with pytest.raises(NetlinkError) as twice:
            inside.add_address(link.index, ipaddress.ip_interface("10.99.0.2/24"))
        assert twice.value.errno == errno.EEXIST
        inside.set_link(link.index, up=True)
        inside.add_route(ipaddress.ip_network("0.0.0.0/0"), gateway=ipaddress.ip_address("10.99.0.1"))
        assert {str(r.destination): str(r.gateway) for r in inside.routes()}["0.0.0.0/0"] == "10.99.0.1"
        host.add_route(ipaddress.ip_network("10.98.0.0/16"), kind="unreachable", metric=7)
        assert any(r.kind == "unreachable" and r.metric == 7 for r in host.routes())
        host.delete_route(ipaddress.ip_network("10.98.0.0/16"), kind="unreachable", metric=7)
        assert host.link("nosuch") is None
        with pytest.raises(NetlinkError):
            host.index("nosuch")
        host.delete_link(bridge)
    names = netns.call(space, lambda: sorted(os.listdir("/proc/self/net/dev_snmp6")))
    assert isinstance(names, list)
    netns.delete(space)
    assert not space.exists()


def test_tunnels_and_neighbours() -> None:
    with Netlink() as host:
        index = host.add_vxlan("vxtest0", 42, port=4789, local=ipaddress.ip_address("127.0.0.1"))
        host.set_link(index, up=True)
        host.set_forwarding(index, "02:00:00:00:00:01", ipaddress.ip_address("127.0.0.2"))
        host.set_neighbour(index, ipaddress.ip_address("10.97.0.2"), "02:00:00:00:00:01")
        host.delete_neighbour(index, ipaddress.ip_address("10.97.0.2"))
        host.delete_forwarding(index, "02:00:00:00:00:01", ipaddress.ip_address("127.0.0.2"))
        host.delete_link(index)


def test_mounts(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    (source / "f").write_text("x")
    mounts.bind(source, target, readonly=True)
    assert mounts.is_mounted(target) and (target / "f").read_text() == "x"
    with pytest.raises(OSError):
        (target / "g").write_text("y")
    mounts.mount("none", source, "tmpfs", ["size=64k", "nosuid", "mode=700"])
    entry = next(m for m in mounts.table() if m.path == str(source))
    assert entry.kind == "tmpfs" and "nosuid" in entry.options
    mounts.unmount_below(tmp_path)
    assert not mounts.is_mounted(target) and mounts.unmount(target) is False
    assert mounts.parse_options(["ro", "rbind", "size=1m", "exec", "defaults"]) == (
        mounts.MS_RDONLY | mounts.MS_BIND | mounts.MS_REC,
        "size=1m",
    )


@pytest.mark.timeout(30)
def test_threads_take_turns() -> None:
    with Netlink() as host, ThreadPoolExecutor(8) as threads:
        names = [f"turn{n}" for n in range(8)]

        def live(name: str) -> None:
            for _ in range(20):
                index = host.add_bridge(name)
                found = host.link(name)
                assert found is not None and found.index == index
                host.delete_link(index)
                assert host.link(name) is None

        list(threads.map(live, names))
