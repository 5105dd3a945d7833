from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.errors import EngineError, Forbidden, SystemFailure
from longshore.engine.networks import ipam
from longshore.engine.networks.model import check_endpoint, ipam_errors, valid_mac


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


def test_a_freed_address_is_not_given_again_at_once() -> None:
    pool = ipam.Pool(ipaddress.ip_network("10.1.0.0/24"))
    first = pool.allocate()
    pool.release(first)
    assert pool.allocate() != first
    with pytest.raises(EngineError):
        pool.reserve(ipaddress.ip_address("10.2.0.1"))
    pool.reserve(first)
    with pytest.raises(Forbidden):
        pool.reserve(first)


def test_pools_avoid_what_is_taken() -> None:
    assert str(ipam.choose_pool([])) == "172.17.0.0/16"
    taken = [ipaddress.ip_network("172.16.0.0/12")]
    assert str(ipam.choose_pool(taken)) == "192.168.0.0/20"
    with pytest.raises(SystemFailure):
        ipam.choose_pool([*taken, ipaddress.ip_network("192.168.0.0/16")])


def test_checks() -> None:
    assert ipam_errors([{"Subnet": "10.0.0.5/24"}], False) == ["invalid subnet 10.0.0.5/24: it should be 10.0.0.0/24"]
    assert ipam_errors([{"Subnet": "10.0.0.0/24", "Gateway": "10.0.1.1"}], False) == [
        "invalid gateway 10.0.1.1: parent subnet 10.0.0.0/24 doesn't contain this address"
    ]
    assert valid_mac("02:42:ac:11:00:02") and not valid_mac("zz")
    assert check_endpoint(None, "bridge", {"IPAMConfig": {"IPv4Address": "x"}}) == [
        "user specified IP address is supported on user defined networks only",
        "invalid IPv4 address: x",
    ]


@given(st.dictionaries(st.sampled_from(["Subnet", "Gateway", "IPRange"]), st.text(max_size=20)))
def test_any_ipam_is_judged(entry: dict[str, str]) -> None:
    assert isinstance(ipam_errors([entry], True), list)
