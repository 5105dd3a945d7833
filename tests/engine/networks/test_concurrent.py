"""Networks made and removed at once, as docker compose does it."""

from __future__ import annotations

import ipaddress
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longshore.engine.networks.service import NetworkService
from longshore.machinery.nftables import Nftables

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


class Container:
    def __init__(self, number: int) -> None:
        self.name, self.id = f"/c{number}", f"{number:064x}"


async def test_many_at_once(tmp_path: Path) -> None:
    networks = NetworkService(tmp_path / "data", tmp_path / "run", lambda *_: None, name="concurrent_test")
    networks.start()
    stays = networks.create({"Name": "stays"})
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda n: networks.create({"Name": f"n{n}"}), range(12)))
        subnets = [ipaddress.ip_network(n.ipam_config[0]["Subnet"]) for n in [stays, *made]]
        assert len(set(subnets)) == 13

        # Ports that are published while networks go are in the table afterwards.
        going = [threads.submit(networks.remove, network) for network in made]
        endpoints = []
        for number in range(12):
            endpoint = networks.allocate(stays, Container(number), {})
            networks.publishing.publish(endpoint, {"80/tcp": [{"HostIp": "", "HostPort": str(28000 + number)}]})
            endpoints.append(endpoint)
        for done in going:
            done.result()
    table = Nftables()
    text = table.run("list map ip longshore_concurrent_test any_ports")
    assert all(f"6 . {28000 + number} : " in text for number in range(12))
    for endpoint in endpoints:
        networks.release(endpoint)
    assert {n.name for n in networks.networks()} == {"none", "host", "bridge", "stays"}
    networks.remove_everything()
    networks.close()
    table.close()
