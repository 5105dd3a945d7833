from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.errors import EngineError, Forbidden, SystemFailure
from longshore.engine.networks import ipam


@given(st.lists(st.booleans(), max_size=60))
def test_addresses_are_unique_and_come_back(steps: list[bool]) -> None:
    pool = ipam.Pool(ipaddress.ip_network("10.1.0.0/27"))
    held: list[ipam.Address] = []
    for take in steps:
        if take:
            if len(held) == 30:
                with pytest.raises(SystemFailure):
                    pool.allocate()
                continue
            address = pool.allocate()
            assert address not in held and address in pool.subnet
            held.append(address)
        elif held:
            pool.release(held.pop(0))


def test_the_lowest_free_address_is_given() -> None:
    pool = ipam.Pool(ipaddress.ip_network("10.1.0.0/24"))
    held = [pool.allocate() for _ in range(4)]
    assert [str(address) for address in held] == ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"]
    pool.reserve(ipaddress.ip_address("10.1.0.5"))
    pool.release(held[2])
    pool.release(held[1])
    assert [str(pool.allocate()) for _ in range(3)] == ["10.1.0.2", "10.1.0.3", "10.1.0.6"]
    with pytest.raises(EngineError):
        pool.reserve(ipaddress.ip_address("10.2.0.1"))
    with pytest.raises(Forbidden):
        pool.reserve(held[0])


def test_pools_avoid_what_is_taken() -> None:
    assert str(ipam.choose_pool([])) == "172.17.0.0/16"
    taken = [ipaddress.ip_network("172.16.0.0/12")]
    assert str(ipam.choose_pool(taken)) == "192.168.0.0/20"
    with pytest.raises(SystemFailure):
        ipam.choose_pool([*taken, ipaddress.ip_network("192.168.0.0/16")])


def test_the_addresses_that_no_host_may_have() -> None:
    for text in ("10.1.0.0", "10.1.0.31"):
        with pytest.raises(Forbidden):
            ipam.Pool(ipaddress.ip_network("10.1.0.0/27")).reserve(ipaddress.ip_address(text))
    link = ipam.Pool(ipaddress.ip_network("10.1.0.0/31"))
    assert [str(link.allocate()), str(link.allocate())] == ["10.1.0.0", "10.1.0.1"]
    part = ipam.Pool(ipaddress.ip_network("fd00::/64"), ipaddress.IPv6Network("fd00::/120"))
    assert str(part.allocate()) == "fd00::1"
