"""Load balancer addresses: who of two nodes on one link answers for them, in both IP families."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import subprocess
import time
from pathlib import Path

import pytest

from longshore.machinery import netns
from longshore.machinery.netlink import Netlink
from longshore.node.proxy.announce import Announcer

pytestmark = pytest.mark.root
POOLS = [ipaddress.ip_network("10.8.0.128/25"), ipaddress.ip_network("fd00:8:0:0:8000::/65")]
FOUR, SIX = "10.8.0.200", "fd00:8::8000:0:0:5"


@pytest.fixture
def nodes(tmp_path):
    """Two nodes on a bridge of the test's own namespace; what they serve ends in a dummy interface of theirs."""
    made: list[Path] = []
    with Netlink() as host:
        host.add_bridge("lbtest0")
        bridge = host.index("lbtest0")
        host.add_address(bridge, ipaddress.ip_interface("10.8.0.1/24"))
        host.add_address(bridge, ipaddress.ip_interface("fd00:8::1/64"))
        host.set_link(bridge, up=True)
        for number in (1, 2):
            path = tmp_path / f"node{number}"
            netns.create(path)
            made.append(path)
            with netns.opened(path) as inside:
                host.add_veth(f"lbtest0n{number}", "eth0", peer_namespace=inside, master=bridge, up=True)
            with Netlink(path) as link:
                index = link.index("eth0")
                link.add_address(index, ipaddress.ip_interface(f"10.8.0.1{number}/24"))
                link.add_address(index, ipaddress.ip_interface(f"fd00:8::1{number}/64"))
                link.set_link(index, up=True)
                dummy = link.add_bridge("served")
                link.set_link(dummy, up=True)
                for pool in POOLS:
                    link.add_route(pool, link=dummy)
            netns.write_sysctl(path, "net/ipv4/ip_forward", "1")
            netns.write_sysctl(path, "net/ipv6/conf/all/forwarding", "1")
    yield made
    for path in made:
        netns.delete(path)
    with Netlink() as host:
        for name in ("lbtest0n1", "lbtest0n2", "lbtest0"):
            found = host.link(name)
            if found is not None:
                host.delete_link(found.index)


def where(address: str) -> str:
    """The hardware address that the neighbours of the bridge know for an address, once they have been asked."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.sendto(b"anybody?", (address, 9))
        time.sleep(0.05)
    words = subprocess.run(["ip", "neigh", "show", address], capture_output=True, text=True, check=True).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def hardware(path: Path) -> str:
    with Netlink(path) as link:
        return next(one.mac for one in link.links() if one.name == "eth0")


async def until(address: str, wanted: str) -> None:
    async with asyncio.timeout(10):
        while await asyncio.to_thread(where, address) != wanted:
            await asyncio.sleep(0.02)


async def test_the_node_that_serves_an_address_answers_for_it_and_its_move_is_told(nodes):
    first, second = (Announcer(POOLS, namespace=path) for path in nodes)
    running = [asyncio.create_task(announcer.run()) for announcer in (first, second)]
    try:
        assert where(FOUR) == where(SIX) == ""
        # What is of no pool is nobody's to announce.
        first.set([FOUR, SIX, "10.8.0.77"])
        for address in (FOUR, SIX):
            await until(address, hardware(nodes[0]))
        assert where("10.8.0.77") == ""
        first.set([])
        second.set([FOUR, SIX])
        for address in (FOUR, SIX):
            await until(address, hardware(nodes[1]))
        with Netlink(nodes[0]) as link:
            assert link.proxied() == []
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_what_an_earlier_run_announced_goes(nodes):
    with Netlink(nodes[0]) as link:
        link.add_proxied(link.index("eth0"), ipaddress.ip_address(FOUR))
        link.add_proxied(link.index("eth0"), ipaddress.ip_address("10.8.0.77"))  # an administrator's
        announcer = Announcer(POOLS, namespace=nodes[0])
        announcer.set([SIX])
        running = asyncio.create_task(announcer.run())
        try:
            async with asyncio.timeout(10):
                while {str(address) for _, address in link.proxied()} != {SIX, "10.8.0.77"}:
                    await asyncio.sleep(0.01)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
