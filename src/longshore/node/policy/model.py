"""Typed views of pods and NetworkPolicies: only what decides about packets.

Source: kubernetes.io "Network Policies"; the NetworkPolicy reference of networking.k8s.io/v1.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from longshore.client.selectors import matcher

Object = dict[str, Any]
Labels = dict[str, str]
PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod with addresses of its own. ports: (name, protocol in lower case, number) of its containers."""

    key: str
    namespace: str
    labels: Labels
    ips: tuple[str, ...]
    local: bool
    ports: tuple[tuple[str, str, int], ...] = ()


class Group(NamedTuple):
    """Pods by selectors (JSON texts): of a namespace, or of namespaces that a selector matches."""

    namespace: str
    namespaces: str
    pods: str

    def matches(self, pod: Pod, namespaces: dict[str, Labels]) -> bool:
        if self.namespaces:
            labels = namespaces.get(pod.namespace)
            if labels is None or not _selects(self.namespaces, labels):
                return False
        elif pod.namespace != self.namespace:
            return False
        return _selects(self.pods, pod.labels)


class Block(NamedTuple):
    """Addresses outside the cluster's naming: a range without exceptions' ranges."""

    cidr: str
    excepts: tuple[str, ...]

    @property
    def family(self) -> int:
        return 6 if ":" in self.cidr else 4


class Port(NamedTuple):
    """protocol: "tcp", "udp" or "sctp". first 0: every port, or the one called `name`."""

    protocol: str
    first: int = 0
    last: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Allowance:
    """One rule. peers None: everybody; ports None: everything."""

    peers: tuple[Group | Block, ...] | None
    ports: tuple[Port, ...] | None


@dataclass(frozen=True, slots=True)
class Policy:
    """A NetworkPolicy. ingress, egress: None when it says nothing about that direction."""

    key: str
    selects: Group
    ingress: tuple[Allowance, ...] | None
    egress: tuple[Allowance, ...] | None


def _text(selector: Any) -> str:
    return orjson.dumps(selector or {}, option=orjson.OPT_SORT_KEYS).decode()


def _selects(text: str, labels: Labels) -> bool:
    return matcher(orjson.loads(text))(labels) if text != "{}" else True


def pod_of(obj: Object, node_name: str) -> Pod | None:
    """A pod as policies see it; None for one without addresses of its own (host network, not started, finished)."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    given = [entry.get("ip") for entry in status.get("podIPs") or ()] or [status.get("podIP")]
    ips = tuple(filter(None, (_address(text) for text in given if text)))
    if spec.get("hostNetwork") or not ips or status.get("phase") in ("Succeeded", "Failed"):
        return None
    metadata = obj["metadata"]
    ports = tuple(
        (port["name"], (port.get("protocol") or "TCP").lower(), int(port["containerPort"]))
        for kind in ("containers", "initContainers")
        for container in spec.get(kind) or ()
        for port in container.get("ports") or ()
        if port.get("name") and port.get("containerPort")
    )
    key = f"{metadata['namespace']}/{metadata['name']}"
    labels = metadata.get("labels") or {}
    return Pod(key, metadata["namespace"], labels, ips, spec.get("nodeName") == node_name, ports)


def _address(text: str) -> str:
    """An address in its canonical form, "" for what is none: what a node says of its pods goes into our rules."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def policy_of(obj: Object) -> Policy:
    """A policy from its object."""
    metadata, spec = obj["metadata"], obj.get("spec") or {}
    namespace = metadata["namespace"]
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    ingress = egress = None
    if "Ingress" in types:
        ingress = tuple(_allowance(rule, "from", namespace) for rule in spec.get("ingress") or ())
    if "Egress" in types:
        egress = tuple(_allowance(rule, "to", namespace) for rule in spec.get("egress") or ())
    return Policy(
        f"{namespace}/{metadata['name']}", Group(namespace, "", _text(spec.get("podSelector"))), ingress, egress
    )


def _allowance(rule: Object, side: str, namespace: str) -> Allowance:
    peers: list[Group | Block] = []
    for peer in rule.get(side) or ():
        block = peer.get("ipBlock")
        if block:
            peers.append(Block(_network(block["cidr"]), tuple(_network(e) for e in block.get("except") or ())))
        elif "namespaceSelector" in peer and peer["namespaceSelector"] is not None:
            peers.append(Group("", _text(peer["namespaceSelector"]), _text(peer.get("podSelector"))))
        else:
            peers.append(Group(namespace, "", _text(peer.get("podSelector"))))
    ports: list[Port] = []
    for port in rule.get("ports") or ():
        protocol = (port.get("protocol") or "TCP").lower()
        if protocol not in PROTOCOLS:
            continue
        number = port.get("port")
        if number is None:
            ports.append(Port(protocol))
        elif isinstance(number, str) and not number.isdigit():
            ports.append(Port(protocol, name=number))
        else:
            ports.append(Port(protocol, int(number), int(port.get("endPort") or number)))
    return Allowance(tuple(peers) if rule.get(side) else None, tuple(ports) if rule.get("ports") else None)


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))
