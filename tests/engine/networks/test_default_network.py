"""The default network as daemon.json has it."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from longshore.engine import configuration
from longshore.engine.errors import SystemFailure
from longshore.engine.networks.service import NetworkService
from longshore.machinery.netlink import Netlink

pytestmark = pytest.mark.root


def started(folder: Path, text: str) -> NetworkService:
    networks = NetworkService(
        folder / "data",
        folder / "run",
        lambda *_: None,
        configuration=configuration.parse(text.encode()),
        name="default_test",
    )
    networks.start()
    return networks


def test_settings_take_hold_and_change(tmp_path: Path) -> None:
    first = started(
        tmp_path,
        '{"bip": "10.91.0.1/24", "fixed-cidr": "10.91.0.128/25", "mtu": 1400, "icc": false, "ip": "127.0.0.1",'
        ' "default-address-pools": [{"base": "10.92.0.0/16", "size": 24}]}',
    )
    bridge = first.resolve("bridge")
    assert bridge.ipam_config == [{"Subnet": "10.91.0.0/24", "Gateway": "10.91.0.1", "IPRange": "10.91.0.128/25"}]
    assert (
        str(bridge.pools[0].allocate()) == "10.91.0.128"
        and bridge.binding_address == "127.0.0.1"
        and bridge.mtu == 1400
    )
    assert bridge.options["com.docker.network.bridge.enable_icc"] == "false"
    made = first.create({"Name": "made"})
    assert made.ipam_config[0]["Subnet"] == "10.92.0.0/24"
    first.close()
    second = started(tmp_path, '{"bip": "10.93.0.1/24"}')
    bridge = second.resolve("bridge")
    with Netlink() as nl:
        addresses = {str(a) for _, a in nl.addresses(nl.index(bridge.bridge)) if a.version == 4}
    assert addresses == {"10.93.0.1/24"} and second.resolve("made").ipam_config[0]["Subnet"] == "10.92.0.0/24"
    second.remove_everything()
    assert not Path(f"/sys/class/net/{bridge.bridge}").exists()
    second.close()


def test_ipv6_comes_changes_and_goes(tmp_path: Path) -> None:
    first = started(tmp_path, '{"ipv6": true, "bip": "10.94.0.1/24", "default-gateway": "10.94.0.9"}')
    bridge = first.resolve("bridge")
    name, ipv4 = bridge.bridge, bridge.ipam_config[0]
    assert ipv4 == {"Subnet": "10.94.0.0/24", "Gateway": "10.94.0.1", "AuxiliaryAddresses": {"DefaultGatewayIPv4": "10.94.0.9"}}  # fmt: skip
    assert bridge.enable_ipv6 and bridge.ipam_config[1]["Subnet"].startswith("fd")
    assert str(bridge.gateway(4)) == "10.94.0.9" and str(bridge.gateways[0]) == "10.94.0.1"
    first.close()

    def addresses(version: int) -> set[str]:
        with Netlink() as nl:
            found = [a for _, a in nl.addresses(nl.index(name))]
        return {str(a) for a in found if a.version == version and not a.ip.is_link_local}

    second = started(tmp_path, '{"ipv6": true, "fixed-cidr-v6": "2001:db8:7::/64"}')
    bridge = second.resolve("bridge")
    assert bridge.ipam_config[0]["Subnet"] == "10.94.0.0/24" and "AuxiliaryAddresses" not in bridge.ipam_config[0]
    assert bridge.ipam_config[1] == {"Subnet": "2001:db8:7::/64", "IPRange": "2001:db8:7::/64"}
    assert addresses(6) == {"2001:db8:7::1/64"}
    second.close()
    third = started(tmp_path, '{"mtu": 1450}')
    bridge = third.resolve("bridge")
    assert not bridge.enable_ipv6 and [e["Subnet"] for e in bridge.ipam_config] == ["10.94.0.0/24"]
    assert not addresses(6) and addresses(4) == {"10.94.0.1/24"}
    third.remove_everything()
    third.close()


def test_options_of_new_networks(tmp_path: Path) -> None:
    own = '{"bridge": {"com.docker.network.driver.mtu": "1400", "com.docker.network.enable_ipv6": "true"}}'
    networks = started(tmp_path, f'{{"default-network-opts": {own}}}')
    try:
        first = networks.create({"Name": "first"})
        second = networks.create(
            {"Name": "second", "EnableIPv6": False, "Options": {"com.docker.network.driver.mtu": "1300"}}
        )
        assert first.mtu == 1400 and first.enable_ipv6
        assert second.options == {"com.docker.network.driver.mtu": "1300"} and not second.enable_ipv6
    finally:
        networks.remove_everything()
        networks.close()


@pytest.mark.parametrize("text", ['{"bip": "10.0.0.1"}', '{"ip": "x"}', '{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}', '{"mtu": -1}'])  # fmt: skip
def test_wrong_settings_are_refused(text: str) -> None:
    with pytest.raises(configuration.ConfigurationError):
        configuration.parse(text.encode())


@pytest.mark.parametrize(
    ("addresses", "fixed", "wanted"),
    [
        ([], "10.93.0.0/24", {"Subnet": "10.93.0.0/24", "Gateway": "10.93.0.1", "IPRange": "10.93.0.0/24"}),
        (["10.94.0.8/24", "10.93.0.8/20"], "10.93.1.0/24", {"Subnet": "10.93.0.0/20", "Gateway": "10.93.0.8", "IPRange": "10.93.1.0/24"}),
        (["10.94.0.8/24"], "10.93.1.0/24", {"Subnet": "10.94.0.0/24", "Gateway": "10.94.0.8"}),
        (["10.93.0.8/24"], "10.93.0.0/20", {"Subnet": "10.93.0.0/24", "Gateway": "10.93.0.8"}),
    ],
)  # fmt: skip
def test_the_network_of_an_administrator_s_bridge(
    tmp_path: Path, addresses: list[str], fixed: str, wanted: dict[str, str]
) -> None:
    """The address whose range holds fixed-cidr is the network's; a range outside of all is left out."""
    with Netlink() as netlink:
        index = netlink.add_bridge("given0", mtu=1500)
        try:
            for address in addresses:
                netlink.add_address(index, ipaddress.ip_interface(address))
            networks = started(tmp_path, f'{{"bridge": "given0", "fixed-cidr": "{fixed}"}}')
            try:
                assert networks.resolve("bridge").ipam_config == [wanted]
            finally:
                networks.remove_everything()
                networks.close()
            # What the administrator made stays.
            assert netlink.link("given0") is not None
            with pytest.raises(SystemFailure, match="fixed-cidr-v6=fd00:9::/60 is outside any subnet implied"):
                netlink.add_address(index, ipaddress.ip_interface("fd00:9::1/64"))
                started(tmp_path / "six", '{"bridge": "given0", "ipv6": true, "fixed-cidr-v6": "fd00:9::/60"}')
            with pytest.raises(
                SystemFailure, match="bridge device with non default name none0 must be created manually"
            ):
                started(tmp_path / "none", '{"bridge": "none0"}')
        finally:
            netlink.delete_link(index)
