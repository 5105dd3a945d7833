"""What a join says and refuses before anything is asked of a cluster; certificates that joined nodes may have."""

from __future__ import annotations

import base64

import pytest

from longshore.cli import cluster, join, joining, token
from longshore.cli.main import UserError
from longshore.machinery import pki
from longshore.master.controllers.bootstraptokens import detached_signature
from longshore.master.controllers.certificates import Request
from longshore.master.controllers.nodecertificates import NodeCertificateApprover
from longshore.master.controllers.options import Options


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("10.0.0.1", "https://10.0.0.1:6443"),
        ("10.0.0.1:7443", "https://10.0.0.1:7443"),
        ("https://master.example:6443/", "https://master.example:6443"),
        ("fd00::1", "https://[fd00::1]:6443"),
        ("[fd00::1]:7443", "https://[fd00::1]:7443"),
        ("[fd00::1]", "https://[fd00::1]:6443"),
    ],
)
def test_addresses_of_api_servers(given, url):
    assert join._server(given) == url


def test_durations():
    assert [token.duration(text) for text in ("30m", "24h", "90s", "0")] == [1800, 86400, 90, 0]
    for text in ("", "h", "1d", "-5m", "12"):
        with pytest.raises(UserError):
            token.duration(text)


def test_signatures_are_those_of_the_clusters_signer():
    content = "apiVersion: v1\nkind: Config\n"
    assert joining.signature(content, "abcdef", "0" * 16) == detached_signature(content, "abcdef", "0" * 16)


def test_a_pin_is_of_the_key_not_of_the_certificate():
    authority = pki.make_ca()
    pin = joining.public_key_hash(authority.certificate)
    assert pin.startswith("sha256:") and len(pin) == 71
    assert pin != joining.public_key_hash(pki.make_ca().certificate)


async def test_a_token_of_another_form_is_refused_before_anything_is_sent():
    with pytest.raises(UserError, match="not of the form"):
        await joining.discover("https://192.0.2.1:6443", "Abcdef.0123456789abcdef", [], unsafe=True)
    with pytest.raises(UserError, match="ca-cert-hash is needed"):
        await joining.discover("https://192.0.2.1:6443", "abcdef.0123456789abcdef", [])


def test_a_machine_behind_the_api_servers_machine_has_ways_to_its_nodes():
    facts = {
        "pod_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/16", "node_cidr": "172.30.0.0/24",
        "cluster_domain": "cluster.local", "host_ip": "172.30.0.1", "host_also": [], "bridge": "nodes0", "pool": "172.30.0.128/25",
    }  # fmt: skip

    class Arguments:
        registry_port = 5000

    made = join._config("https://10.1.1.1:6443", "10.1.1.1", facts, "n", ["10.1.1.2"], Arguments())  # type: ignore[arg-type]
    assert made.ways == ["172.30.0.0/24", "10.1.1.1"] and made.load_balancer_pool == "172.30.0.128/25"
    assert made.server == made.local_server == "https://10.1.1.1:6443" and made.cluster_dns == "10.96.0.10"
    inside = join._config("https://172.30.0.1:6443", "172.30.0.1", facts, "n", ["172.30.0.50"], Arguments())  # type: ignore[arg-type]
    assert inside.ways == []


@pytest.mark.parametrize("families", [[4], [6], [4, 6], [6, 4]])
def test_clusters_of_every_family(families):
    pods, services, nodes = cluster.default_ranges(families)
    made = cluster.plan(nodes=2, pod_cidr=pods, service_cidr=services, node_cidr=nodes)
    assert made.families == families
    assert [len(node.ips) for node in made.nodes] == [len(families)] * 2
    assert [6 if ":" in ip else 4 for ip in made.host_ips] == families
    assert len(made.dns_addresses) == len(made.load_balancer_pool.split(",")) == len(families)
    assert made.server.startswith("https://[" if families[0] == 6 else "https://1")


class Held:
    def __init__(self, store: list[dict]) -> None:
        self.store = store


def approver(nodes: list[dict]) -> NodeCertificateApprover:
    made = object.__new__(NodeCertificateApprover)
    made.options = Options()
    made.nodes = Held(nodes)  # type: ignore[assignment]
    return made


def asked(username: str, *names: str, common_name: str = "system:node:a") -> tuple[dict, Request]:
    _, request = pki.signing_request(common_name, organizations=["system:nodes"], names=names)
    csr = {"spec": {"request": base64.b64encode(request).decode(), "username": username}}
    return csr, Request(csr)


def of_node(name: str, *addresses: str) -> dict:
    return {
        "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": a} for a in addresses]},
    }


@pytest.mark.parametrize(
    ("nodes", "username", "names", "good"),
    [
        ([], "system:node:a", ["a", "10.0.0.1"], True),
        ([of_node("a", "10.0.0.1", "fd00::1")], "system:node:a", ["a", "10.0.0.1", "fd00::1"], True),
        ([of_node("a", "10.0.0.1")], "system:node:a", ["a", "10.0.0.9"], False),  # not its own
        ([of_node("b", "10.0.0.1")], "system:node:a", ["a", "10.0.0.1"], False),  # another node's
        ([], "system:node:b", ["a", "10.0.0.1"], False),  # for another
        ([], "system:node:a", ["kubernetes", "10.0.0.1"], False),
        ([], "system:node:a", ["a", "10.96.0.1"], False),  # a Service's
        ([], "system:node:a", ["a", "10.244.3.4"], False),  # a pod's
        ([], "system:node:a", ["a", "127.0.0.1"], False),
    ],
)
def test_a_kubelets_serving_certificate_is_for_its_own_addresses(nodes, username, names, good):
    assert approver(nodes)._is_own(*asked(username, *names)) is good
