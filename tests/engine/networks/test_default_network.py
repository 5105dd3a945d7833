"""The default network as daemon.json has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshore.engine import configuration
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
    second.close()


@pytest.mark.parametrize("text", ['{"bip": "10.0.0.1"}', '{"ip": "x"}', '{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}', '{"mtu": -1}'])  # fmt: skip
def test_wrong_settings_are_refused(text: str) -> None:
    with pytest.raises(configuration.ConfigurationError):
        configuration.parse(text.encode())
