"""Rules that are not of ports: links where a bridge keeps containers apart, and what others take away from the tables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from longshore.engine.errors import SystemFailure
from longshore.engine.networks.firewall import LinkRule
from longshore.engine.networks.service import NetworkService
from longshore.machinery import netns
from longshore.machinery.netlink import Netlink
from longshore.machinery.nftables import Nftables

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]
TABLE = "longshore_rules_test"


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[NetworkService]:
    service = NetworkService(tmp_path / "data", tmp_path / "run", lambda *_: None, name="rules_test")
    service.start()
    yield service
    service.remove_everything()
    service.close()


def test_links_go_with_either_end(networks: NetworkService) -> None:
    network = networks.create({"Name": "apart", "Options": {"com.docker.network.bridge.enable_icc": "false"}})
    held = [networks.allocate(network, SimpleNamespace(name=f"/c{n}", id=f"{n:064x}"), {}) for n in range(3)]
    rules = [LinkRule(held[0].ipv4, other.ipv4, "tcp", 80) for other in held[1:]]
    networks.publishing.link(held[0], rules)
    table = Nftables()

    def linked() -> str:
        return str(table.run(f"list set ip {TABLE} linked"))

    assert all(f"{held[0].ipv4} . {other.ipv4} . 6 . 80" in linked() for other in held[1:])
    networks.publishing.refresh()
    assert f"{held[2].ipv4} . 6 . 80" in linked()
    networks.release(held[2])
    assert held[2].ipv4 not in linked() and held[1].ipv4 in linked()
    networks.release(held[0])
    assert "elements" not in linked()


async def test_rules_that_others_flush_come_back(networks: NetworkService) -> None:
    networks.watch()
    endpoint = networks.allocate(networks.resolve("bridge"), SimpleNamespace(name="/c", id="c" * 64), {})
    networks.publishing.publish(endpoint, {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]})
    (rule,) = endpoint.rules
    table = Nftables()
    table.run("flush ruleset")
    for _ in range(200):
        await asyncio.sleep(0.02)
        text = table.run("list ruleset")
        if f"127.0.0.1 . 6 . {rule.host_port} : {endpoint.ipv4} . 80" in text:
            break
    assert f"127.0.0.1 . 6 . {rule.host_port} : {endpoint.ipv4} . 80" in text


def test_a_deleted_bridge_is_made_again_with_what_was_in_it(networks: NetworkService, tmp_path: Path) -> None:
    network = networks.create({"Name": "n", "EnableIPv6": True})
    sandboxes = [tmp_path / f"ns{number}" for number in range(2)]
    held = []
    for number, sandbox in enumerate(sandboxes):
        held.append(networks.allocate(network, SimpleNamespace(name=f"/c{number}", id=f"{number:064x}"), {}))
        networks.build(sandbox, [(held[-1], "eth0", (4, 6))])
        with Netlink() as host:
            bridge = host.index(network.bridge)
            assert host.link("veth" + held[0].id[:7]).master == bridge  # type: ignore[union-attr]
            if not number:
                host.delete_link(bridge)
    for name, value in (("ipv6", "0"), ("ipv4", None)):
        path = Path(f"/proc/sys/net/{name}/conf/{network.bridge}/accept_ra")
        assert value is None or path.read_text().strip() == value
    for sandbox in sandboxes:
        netns.delete(sandbox)


def test_a_bridge_of_the_administrators_stays(networks: NetworkService) -> None:
    options = {"Options": {"com.docker.network.bridge.name": "own0"}}
    with Netlink() as host:
        host.add_bridge("own0")
        networks.remove(networks.create({"Name": "n", **options}))
        assert host.link("own0") is not None
        host.delete_link(host.index("own0"))
        networks.remove(networks.create({"Name": "n", **options}))
        assert host.link("own0") is None
        options = {"Options": {"com.docker.network.bridge.name": "lo"}}
        with pytest.raises(SystemFailure, match="existing interface lo is not a bridge"):
            networks.create({"Name": "n", **options})
        assert host.link("lo") is not None


def test_an_interrupted_network_leaves_nothing(networks: NetworkService, tmp_path: Path) -> None:
    network = networks.create({"Name": "n"})
    folder = tmp_path / "data"
    (folder / f"{network.id}.json").rename(folder / f".{network.id}.new")
    (folder / f"{network.id}.json.kept").unlink(missing_ok=True)
    again = NetworkService(folder, tmp_path / "run", lambda *_: None, name="rules_test")
    again.start()
    with Netlink() as host:
        assert host.link(network.bridge) is None
        assert not any(route.destination == network.pools[0].subnet for route in host.routes(4))
    assert again.find("n") is None and not list(folder.glob(".*.new"))
    again.close()


def test_namespaces_of_no_container_go(networks: NetworkService) -> None:
    kept, lost = "a" * 64, "b" * 64
    for sandbox_id in (kept, lost):
        networks.build(networks.sandbox_path(sandbox_id), [])
    networks.forget_sandboxes([kept])
    assert networks.sandbox_path(kept).exists() and not networks.sandbox_path(lost).exists()
    networks.forget_sandboxes([])
    assert not networks.sandbox_path(kept).exists()
