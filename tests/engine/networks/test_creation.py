"""What may be asked of a network, and what is said to the rest, in the words of dockerd 28.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.engine.configuration import Configuration
from longshore.engine.errors import EngineError, Forbidden, InvalidParameter, NotFound, SystemFailure
from longshore.engine.networks import creation, validation
from longshore.engine.networks.model import Network


def ask(*others: Network, **body: Any) -> Network:
    network, ipam = creation.asked({"Name": "n", **body}, others, Configuration())
    network.ipam_config = [dict(entry) for entry in ipam.get("Config") or []]
    network.make_pools()
    return network


def refused(kind: type[EngineError], *others: Network, **body: Any) -> str:
    with pytest.raises(kind) as caught:
        ask(*others, **body)
    assert type(caught.value) is kind
    return caught.value.message


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"Subnet": "10.0.0.5/24"}, "invalid subnet 10.0.0.5/24: it should be 10.0.0.0/24"),
        ({"Subnet": "10.0.0.0"}, "invalid subnet 10.0.0.0: invalid CIDR block notation"),
        ({"Gateway": "10.0.0.1"}, "invalid subnet : invalid CIDR block notation"),
        (
            {"Subnet": "10.0.0.0/24", "Gateway": "10.0.1.1"},
            "invalid gateway 10.0.1.1: parent subnet 10.0.0.0/24 doesn't contain this address",
        ),
        ({"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1/24"}, "invalid gateway 10.0.0.1/24: invalid address"),
        ({"Subnet": "10.0.0.0/24", "Gateway": "fd00::1"}, "invalid gateway fd00::1: parent subnet is an IPv4 block"),
        (
            {"Subnet": "10.0.0.0/24", "AuxiliaryAddresses": {"a": "10.1.0.1"}},
            "invalid auxiliary address a: parent subnet 10.0.0.0/24 doesn't contain this address",
        ),
        ({"Subnet": "10.0.0.0/24", "IPRange": "x"}, "invalid ip-range x: invalid CIDR block notation"),
        (
            {"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.0/16"},
            "invalid ip-range 10.0.0.0/16: CIDR block is bigger than its parent subnet 10.0.0.0/24",
        ),
        (
            {"Subnet": "10.0.0.0/24", "IPRange": "fd00::/80"},
            "invalid ip-range fd00::/80: parent subnet is an IPv4 block",
        ),
        (
            {"Subnet": "10.0.0.1/24", "IPRange": "10.2.0.1/25"},
            "* invalid subnet 10.0.0.1/24: it should be 10.0.0.0/24\n"
            "* invalid ip-range 10.2.0.1/25: it should be 10.2.0.0/25\n"
            "* invalid ip-range 10.2.0.1/25: parent subnet 10.0.0.1/24 doesn't contain ip-range",
        ),
    ],
)
def test_ipam_that_cannot_be(entry: dict[str, Any], text: str) -> None:
    assert refused(InvalidParameter, IPAM={"Config": [entry]}) == "invalid network config:\n" + text


@given(st.dictionaries(st.sampled_from(["Subnet", "Gateway", "IPRange"]), st.text(max_size=20)))
def test_any_ipam_is_judged(entry: dict[str, str]) -> None:
    try:
        validation.check_ipam([entry], True)
    except InvalidParameter as error:
        assert error.message.startswith("invalid network config:\n")


def test_addresses_named_twice() -> None:
    double = {"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1", "AuxiliaryAddresses": {"x": "10.0.0.1"}}
    assert refused(SystemFailure, IPAM={"Config": [double]}) == (
        "failed to allocate secondary ip address (x:10.0.0.1): Address already in use"
    )
    assert refused(SystemFailure, IPAM={"Config": [{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.255"}]}) == (
        "failed to allocate gateway (10.0.0.255): Address already in use"
    )


def test_templates() -> None:
    template = ask(
        Name="t", ConfigOnly=True, Options={"a": "b"}, IPAM={"Config": [{"Subnet": "10.0.0.0/24"}]}, Labels={"l": "1"}
    )
    template.ipam_config = [{"Subnet": "10.0.0.0/24"}]
    assert template.driver == "null"
    made = ask(template, ConfigFrom={"Network": "t"}, Internal=True)
    assert (made.options, made.labels, made.ipam_config, made.internal) == (
        {"a": "b"},
        {"l": "1"},
        template.ipam_config,
        True,
    )
    for extra in ({"IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}]}}, {"Labels": {"a": ""}}, {"EnableIPv6": True}):
        assert refused(Forbidden, template, ConfigFrom={"Network": "t"}, **extra) == (
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    assert refused(Forbidden, template, ConfigFrom={"Network": "t"}, Options={"a": "b"}) == (
        "network driver options are not supported if the network depends on a configuration network"
    )
    assert refused(Forbidden, ConfigOnly=True, Internal=True).startswith("configuration network can only contain")
    assert refused(Forbidden, template, ConfigOnly=True, ConfigFrom={"Network": "t"}) == (
        "a configuration network cannot depend on another configuration network"
    )
    assert (
        refused(NotFound, made, Name="m", ConfigFrom={"Network": "n2"}) == 'configuration network "n2" does not exist'
    )


def test_bridge_options() -> None:
    bridge = "com.docker.network.bridge."
    for name, value, reason in (
        (bridge + "gateway_mode_ipv4", "x", "unknown gateway mode x"),
        (bridge + "enable_icc", "x", 'strconv.ParseBool: parsing "x": invalid syntax'),
        (bridge + "host_binding_ipv4", "x", "nil ip"),
        ("com.docker.network.host_ipv4", "x", "nil ip"),
        ("com.docker.network.driver.mtu", "x", 'strconv.Atoi: parsing "x": invalid syntax'),
    ):
        assert refused(InvalidParameter, Options={name: value}) == f"failed to parse {name} value: {value} ({reason})"
    assert refused(InvalidParameter, Options={"com.docker.network.driver.mtu": "-1"}) == "invalid MTU number: -1"
    assert refused(SystemFailure, Options={bridge + "gateway_mode_ipv4": "isolated"}) == (
        "gateway mode 'isolated' can only be used for an internal network"
    )
    assert refused(InvalidParameter, EnableIPv4=False) == "IPv4 or IPv6 must be enabled"


def test_who_needs_a_gateway() -> None:
    subnet = {"IPAM": {"Config": [{"Subnet": "10.0.0.0/31"}]}, "Internal": True}
    bridge = "com.docker.network.bridge."
    for options in ({bridge + "gateway_mode_ipv4": "isolated"}, {bridge + "inhibit_ipv4": "1"}):
        network = ask(Options=options, **subnet)
        assert [str(network.take_address(4)[0]) for _ in range(2)] == ["10.0.0.0", "10.0.0.1"]
    assert [str(ask(**subnet).take_address(4)[0])] == ["10.0.0.1"]
    assert str(ask(Driver="macvlan", IPAM={"Config": [{"Subnet": "10.0.0.0/24"}]}).take_address(4)[0]) == "10.0.0.1"


def test_scopes_and_swarm() -> None:
    assert ask().scope == "local" and ask(Scope="global").scope == "global"
    assert refused(Forbidden, Scope="swarm") == "cannot create a swarm scoped network when swarm is not active"
    assert refused(Forbidden, Ingress=True) == "Ingress network can only be global scope network"
    assert refused(Forbidden, Driver="overlay", Ingress=True).startswith("This node is not a swarm manager.")


def test_parents_shared() -> None:
    first = ask(Driver="macvlan", Options={"parent": "eth0", "macvlan_mode": "passthru"})
    second = ask(Driver="macvlan", Options={"parent": "eth0"})
    with pytest.raises(SystemFailure, match="already using parent interface eth0 in mode passthru"):
        creation.check_conflicts(second, [first])
    with pytest.raises(SystemFailure, match="cannot use mode passthru"):
        creation.check_conflicts(first, [second])
    other = ask(Driver="ipvlan", Options={"parent": "eth0"})
    creation.check_conflicts(other, [first])
    with pytest.raises(SystemFailure, match="is already using parent interface eth0"):
        creation.check_conflicts(ask(Driver="ipvlan", Options={"parent": "eth0"}), [other])
    assert refused(SystemFailure, Driver="macvlan", Options={"parent": "lo"}) == (
        "loopback interface is not a valid macvlan parent link"
    )


def test_endpoints() -> None:
    assert validation.valid_mac("02:42:ac:11:00:02") and not validation.valid_mac("zz")
    with pytest.raises(InvalidParameter) as caught:
        validation.check_endpoint(None, "bridge", {"IPAMConfig": {"IPv4Address": "x"}})
    assert caught.value.message == (
        "invalid endpoint settings:\n* user specified IP address is supported on user defined networks only\n"
        "* invalid IPv4 address: x"
    )
    network = ask(IPAM={"Config": [{"Subnet": "10.0.0.0/24"}]})
    validation.check_endpoint(network, "n", {"IPAMConfig": {"IPv4Address": "10.0.0.9"}})
    for wrong, text in (
        ({"IPv4Address": "10.1.0.9"}, "no configured subnet or ip-range contain the IP address 10.1.0.9"),
        ({"IPv4Address": "0.0.0.0"}, "invalid IPv4 address: 0.0.0.0"),
        (
            {"IPv6Address": "fd00::1"},
            "user specified IP address is supported only when connecting to networks with user configured subnets",
        ),
        ({"LinkLocalIPs": ["x"]}, "invalid link-local IP address: x"),
    ):
        with pytest.raises(InvalidParameter) as caught:
            validation.check_endpoint(network, "n", {"IPAMConfig": wrong})
        assert text in caught.value.message


def test_a_network_that_was_begun_is_found(tmp_path: Path) -> None:
    network = ask(IPAM={"Config": [{"Subnet": "10.0.0.0/24"}]})
    network.begin(tmp_path)
    (tmp_path / ".damaged.new").write_bytes(b"{")
    (found,) = Network.begun(tmp_path)
    assert (found.id, found.bridge, [str(pool.subnet) for pool in found.pools]) == (
        network.id,
        network.bridge,
        ["10.0.0.0/24"],
    )
    network.save(tmp_path)
    network.begin(tmp_path)
    assert not list(Network.begun(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == [f"{network.id}.json"]
