"""The pure parts: reading objects, choosing endpoints, and transactions that lead where the whole text leads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.node.proxy.proxy_world import NODE, elsewhere, endpoint_slice, service

from longshore.machinery.nftables import Nftables
from longshore.machinery.ruleset import Element, Rules, RuleSet
from longshore.node.proxy.rules import Dialect, render, rule_set
from longshore.node.proxy.service import Endpoint, PortName, ServicePort, endpoints_of, service_ports, slice_owner
from longshore.node.proxy.topology import choose

V4 = Dialect(4, ("10.244.0.0/16",), ("10.96.0.0/12",))
V6 = Dialect(6, ("fd00:244::/64",), ("fd00:96::/108",))


def port(**more: Any) -> ServicePort:
    return ServicePort(PortName("default", more.pop("service", "web"), "http", "TCP"), "tcp", 80, "10.96.0.50", **more)


def pods(count: int, **more: Any) -> list[Endpoint]:
    return [Endpoint(f"10.244.0.{n}", 8080, **more) for n in range(1, count + 1)]


def test_ports_of_a_service() -> None:
    given = service(
        "web",
        clusterIPs=["10.96.0.50", "fd00:96:0::50"],
        type="LoadBalancer",
        ports=[{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 53, "protocol": "UDP"}],
        externalIPs=["203.0.113.1", "2001:db8::1"],
        loadBalancerSourceRanges=[" 10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"],
        sessionAffinity="ClientIP",
        internalTrafficPolicy="Local",
        externalTrafficPolicy="Local",
        status={"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}, {"hostname": "x"}]}},
    )
    first, second = service_ports(given, 4)
    assert (first.cluster_ip, first.port, first.node_port, first.protocol) == ("10.96.0.50", 80, 30080, "tcp")
    assert first.external_ips == ("203.0.113.1",) and first.load_balancer_ips == ("198.51.100.7",)
    assert first.source_ranges == ("10.0.0.0/8",) and first.affinity == 10800
    assert first.internal_local and first.external_local and second.protocol == "udp"
    sixth = service_ports(given, 6)[0]
    assert sixth.cluster_ip == "fd00:96::50" and sixth.external_ips == ("2001:db8::1",)
    assert service_ports(service("v4only"), 6) == []


def test_endpoints_of_slices() -> None:
    moving = endpoint_slice("web", [elsewhere("10.244.0.9", ready=False), "10.244.0.1"], slice_name="a")
    other = endpoint_slice("web", [elsewhere("10.244.0.9"), {"addresses": []}, {"addresses": ["bad"]}], slice_name="b")
    found = endpoints_of([other, moving], 4, NODE)[("http", "TCP")]
    assert [(e.address, e.ready, e.local) for e in found] == [("10.244.0.1", True, True), ("10.244.0.9", True, False)]
    assert endpoints_of([moving], 6, NODE) == {}
    moving["ports"][0]["port"] = None
    assert endpoints_of([moving], 4, NODE) == {}
    moving["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
    assert slice_owner(moving) == "" and slice_owner(other) == "default/web"


def test_readiness_policies_and_hints() -> None:
    ready, going, dead = Endpoint("1", 1), Endpoint("2", 1, False, True, True), Endpoint("3", 1, False, False)
    assert choose(port(), [ready, going, dead], NODE, "").cluster == [ready]
    assert choose(port(), [going, dead], NODE, "").cluster == [going]
    nothing = choose(port(), [dead], NODE, "")
    assert nothing.cluster == [] and not nothing.any
    here = Endpoint("4", 1, local=True)
    local = choose(port(internal_local=True), [ready, here], NODE, "")
    assert (local.cluster, local.local) == ([], [here])
    both = choose(port(internal_local=True, node_port=30000), [ready, here], NODE, "")
    assert (both.cluster, both.local) == ([ready, here], [here])
    a, b = Endpoint("5", 1, zones=frozenset({"a"})), Endpoint("6", 1, zones=frozenset({"b"}))
    assert choose(port(), [a, b], NODE, "a").cluster == [a]
    assert choose(port(), [a, b], NODE, "c").cluster == [a, b]
    assert choose(port(), [a, ready], NODE, "a").cluster == [a, ready]
    near = Endpoint("7", 1, zones=frozenset({"b"}), nodes=frozenset({NODE}))
    far = Endpoint("8", 1, zones=frozenset({"a"}), nodes=frozenset({"node-2"}))
    assert choose(port(), [near, far], NODE, "a").cluster == [near]


def test_one_endpoint_more_is_a_few_elements() -> None:
    rules = rule_set("t", V4)
    for number in range(50):
        one = replace(port(service=f"s{number}"), cluster_ip=f"10.96.1.{number}")
        rules.update([(number, render(one, choose(one, pods(3), NODE, ""), V4))])
    one = replace(port(service="s0"), cluster_ip="10.96.1.0")
    more = render(one, choose(one, pods(4), NODE, ""), V4)
    text = rules.update([(0, more)])
    assert [line.split()[:2] for line in text.splitlines()] == [
        ["add", "chain"], ["add", "rule"], ["add", "chain"], ["add", "rule"], ["add", "rule"],
        ["delete", "element"], ["add", "element"], ["add", "element"],
    ]  # fmt: skip
    assert rules.update([(0, more)]) == ""


def test_an_element_that_two_want_passes_to_the_second() -> None:
    rules = rule_set("t", V4)
    first, second = (
        render(port(), choose(port(), pods(1), NODE, ""), V4),
        render(port(), choose(port(), pods(2), NODE, ""), V4),
    )
    rules.update([("a", first)])
    assert "service-ips" not in rules.update([("b", second)])
    text = rules.update([("a", None)])
    assert "delete element ip t service-ips { 10.96.0.50 . tcp . 80 }" in text
    assert "add element ip t service-ips { 10.96.0.50 . tcp . 80 : goto cluster-tcp-2 }" in text
    rules.update([("b", None)])
    assert rules.element_count == 0
    sticky = replace(port(), affinity=60)
    rules.update([("c", render(sticky, choose(sticky, pods(2), NODE, ""), V4))])
    assert rules.set_names()
    rules.update([("c", None)])
    # Chains that Services share stay, those of one Service go with it.
    assert not rules.set_names() and not any("-8080" in name for name in rules.chain_names())


def test_no_endpoints_reject_and_no_local_ones_drop() -> None:
    empty = render(port(node_port=30080), choose(port(node_port=30080), [], NODE, ""), V4)
    assert Element("no-endpoint-services", "10.96.0.50 . tcp . 80", "goto reject-connection") in empty.elements
    assert Element("no-endpoint-nodeports", "tcp . 30080", "goto reject-connection") in empty.elements
    given = port(node_port=30080, external_local=True)
    away = render(given, choose(given, pods(2), NODE, ""), V4)
    assert Element("no-endpoint-nodeports", "tcp . 30080", "drop") in away.elements
    assert Element("service-nodeports", "tcp . 30080", "goto local-tcp-node-2-of-0") in away.elements


RANGES = {
    4: [("10.0.0.0/8", "192.168.0.0/16"), ("10.1.0.0/16",)],
    6: [("fd00::/8",), ("fd00:1::/32", "2001:db8::/32")],
}
names = st.sampled_from(["a", "b", "c"])
addresses = {4: ["203.0.113.1", "203.0.113.2"], 6: ["2001:db8::1", "2001:db8::2"]}


@st.composite
def states(draw: st.DrawFn, dialect: Dialect) -> tuple[str, ServicePort, list[Endpoint]]:
    name = draw(names)
    kind = draw(st.sampled_from(["tcp", "udp", "sctp"]))
    pool = addresses[dialect.family]
    given = ServicePort(
        PortName("default", name, "p", kind.upper()),
        kind,
        draw(st.sampled_from([80, 53])),
        f"10.96.0.{ord(name[0])}" if dialect.family == 4 else f"fd00:96::{ord(name[0])}",
        draw(st.sampled_from([0, 30080, 30081])),
        tuple(draw(st.lists(st.sampled_from(pool), max_size=2, unique=True))),
        tuple(draw(st.lists(st.sampled_from(pool), max_size=2, unique=True))),
        draw(st.sampled_from([0, 0, 100, 10800])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([None, (), *RANGES[dialect.family]])),
    )
    where = "10.244.0." if dialect.family == 4 else "fd00:244::"
    endpoints = [
        Endpoint(f"{where}{n}", draw(st.sampled_from([8080, 9090])), local=draw(st.booleans()))
        for n in draw(st.lists(st.integers(1, 6), max_size=5, unique=True))
    ]
    return name + kind, given, endpoints


@pytest.mark.root
@pytest.mark.parametrize("dialect", [V4, V6], ids=["ipv4", "ipv6"])
@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_transactions_lead_where_the_whole_text_leads(dialect: Dialect, data: st.DataObject) -> None:
    """In the kernel: the table after many small changes lists the same as the table loaded at once."""

    def listed(nft: Nftables) -> list[dict[str, Any]]:
        found = []
        for item in nft.json(f"list table {dialect.ip} t-lead"):
            ((kind, body),) = item.items()
            if kind in ("map", "set"):
                body["elem"] = sorted(map(repr, body.get("elem", ())))
            body.pop("handle", None)
            body.pop("index", None)
            found.append({kind: body})
        return sorted(found, key=repr)

    rules = rule_set("t-lead", dialect)
    with Nftables() as nft:
        nft.run(rules.text())
        for _ in range(data.draw(st.integers(1, 6))):
            changes = {}
            for owner, given_port, endpoints in data.draw(st.lists(states(dialect), min_size=1, max_size=3)):
                gone = data.draw(st.integers(0, 3)) == 0
                changes[owner] = None if gone else render(given_port, choose(given_port, endpoints, NODE, ""), dialect)
            text = rules.update(changes.items())
            if text:
                nft.run(text)
        small = listed(nft)
        nft.run(rules.text())
        assert small == listed(nft)
        nft.run(f"delete table {dialect.ip} t-lead")


def test_what_is_taken_at_once_is_the_table_that_changes_lead_to() -> None:
    changes = [
        ("a", Rules({Element("m", "1", "x"), Element("s", "k")}, {"c": ("accept",)}, {"n": "set { type ipv4_addr; }"})),
        ("b", Rules({Element("m", "1", "y"), Element("m", "2", "z")}, {"c": ("accept",)}, lasting=True)),
        ("a", Rules({Element("m", "3", "w")})),
        ("c", Rules({Element("m", "4", "v")})),
        ("c", None),
    ]
    step, whole = RuleSet("ip", "t", ""), RuleSet("ip", "t", "")
    for change in changes:
        step.update([change])
    whole.take(changes)
    assert sorted(step.text().splitlines()) == sorted(whole.text().splitlines())
    assert step.update([("b", None)]) == whole.update([("b", None)]) != ""
    assert step.element_count == whole.element_count == 1
