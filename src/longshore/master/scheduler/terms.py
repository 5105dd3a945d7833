"""Affinity terms, node selector terms and spread constraints, compiled to predicates once a pod class.

Sources: component-helpers scheduling/corev1/nodeaffinity; kubernetes pkg/scheduler/framework types (AffinityTerm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longshore.client.objects import copy
from longshore.client.selectors import Predicate, matcher, nothing, requirement

Object = dict[str, Any]
NodePredicate = Callable[[Mapping[str, str], str], bool]  # labels, name


def node_term(term: Object) -> NodePredicate:
    """One NodeSelectorTerm: its expressions over labels and its fields over the name. An empty one matches nothing."""
    try:
        labels = [requirement(e) for e in term.get("matchExpressions") or ()]
        fields = [requirement(e) for e in term.get("matchFields") or ()]
    except (ValueError, KeyError):
        return lambda labels, name: False
    if not labels and not fields:
        return lambda labels, name: False
    return lambda at, name: all(t(at) for t in labels) and all(t({"metadata.name": name}) for t in fields)


class NodeTerms:
    """A pod's nodeSelector and nodeAffinity."""

    __slots__ = ("names", "preferred", "required", "selector")

    def __init__(self, selector: Mapping[str, str], affinity: Object) -> None:
        self.selector = dict(selector)
        required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
        self.required: list[NodePredicate] | None = None
        self.names: frozenset[str] | None = None
        if required is not None:
            terms = required.get("nodeSelectorTerms") or []
            self.required = [node_term(t) for t in terms]
            self.names = _only_names(terms)
        self.preferred: list[tuple[int, NodePredicate]] = [
            (int(p.get("weight", 0)), node_term(p.get("preference") or {}))
            for p in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
            if p.get("weight")
        ]

    @property
    def any_node(self) -> bool:
        return not self.selector and self.required is None

    def match(self, labels: Mapping[str, str], name: str) -> bool:
        """Whether the pod may run on a node with these labels and this name."""
        if any(labels.get(k) != v for k, v in self.selector.items()):
            return False
        return self.required is None or any(term(labels, name) for term in self.required)

    def preference(self, labels: Mapping[str, str], name: str) -> int:
        """The sum of the weights of the preferred terms that the node matches."""
        return sum(weight for weight, term in self.preferred if term(labels, name))


def _only_names(terms: list[Object]) -> frozenset[str] | None:
    """The node names that the terms allow, where each of them names some (a DaemonSet's pods); else None."""
    names: set[str] = set()
    for term in terms:
        here: set[str] | None = None
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("operator") == "In":
                values = set(field.get("values") or ())
                here = values if here is None else here & values
        if here is None:
            return None
        names |= here
    return frozenset(names) if terms else None


@dataclass(frozen=True, slots=True)
class AffinityTerm:
    """One PodAffinityTerm of a pod: which pods it means, and over which topology."""

    namespaces: frozenset[str]
    namespace_selector: Predicate
    every_namespace: bool
    selector: Predicate
    topology_key: str
    weight: int = 0
    identity: str = ""

    def matches(
        self, labels: Mapping[str, str], namespace: str, namespace_labels: Callable[[str], Mapping[str, str]]
    ) -> bool:
        """Whether the term means a pod with these labels in this namespace."""
        if namespace not in self.namespaces and not self.every_namespace:
            if self.namespace_selector is nothing or not self.namespace_selector(namespace_labels(namespace)):
                return False
        return self.selector(labels)


def _affinity_term(pod: Object, term: Object, weight: int) -> AffinityTerm:
    own = pod["metadata"].get("labels") or {}
    selector = term.get("labelSelector")
    if selector is not None and (term.get("matchLabelKeys") or term.get("mismatchLabelKeys")):
        selector = copy(selector)
        expressions = selector.setdefault("matchExpressions", [])
        for field, operator in (("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")):
            for key in term.get(field) or ():
                entry = {"key": key, "operator": operator, "values": [own.get(key)]}
                if key in own and entry not in expressions:
                    expressions.append(entry)
    namespaces = frozenset(term.get("namespaces") or ())
    namespace_selector = term.get("namespaceSelector")
    if not namespaces and namespace_selector is None:
        namespaces = frozenset((pod["metadata"].get("namespace", ""),))
    return AffinityTerm(
        namespaces,
        matcher(namespace_selector),
        namespace_selector == {},
        matcher(selector),
        term.get("topologyKey") or "",
        weight,
        repr((sorted(namespaces), namespace_selector, selector, term.get("topologyKey"))),
    )


def affinity_terms(
    pod: Object, field: Literal["podAffinity", "podAntiAffinity"]
) -> tuple[list[AffinityTerm], list[AffinityTerm]]:
    """(required, preferred) terms of a pod."""
    affinity = (pod["spec"].get("affinity") or {}).get(field) or {}
    required = [_affinity_term(pod, t, 0) for t in affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ()]
    preferred = [
        _affinity_term(pod, p.get("podAffinityTerm") or {}, int(p.get("weight") or 0))
        for p in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    ]
    return required, preferred


@dataclass(frozen=True, slots=True)
class SpreadConstraint:
    """One TopologySpreadConstraint of a pod."""

    max_skew: int
    topology_key: str
    hard: bool
    selector: Predicate
    min_domains: int
    honor_affinity: bool
    honor_taints: bool
    identity: str


def spread_constraint(pod: Object, entry: Object, selector: Object | None) -> SpreadConstraint:
    """Compile a constraint; selector: its labelSelector, or the one that stands for it."""
    own = pod["metadata"].get("labels") or {}
    if selector is not None and entry.get("matchLabelKeys"):
        selector = copy(selector)
        expressions = selector.setdefault("matchExpressions", [])
        for key in entry["matchLabelKeys"]:
            more = {"key": key, "operator": "In", "values": [own.get(key)]}
            if key in own and more not in expressions:
                expressions.append(more)
    return SpreadConstraint(
        int(entry.get("maxSkew") or 1),
        entry.get("topologyKey") or "",
        entry.get("whenUnsatisfiable") != "ScheduleAnyway",
        matcher(selector),
        int(entry.get("minDomains") or 1),
        (entry.get("nodeAffinityPolicy") or "Honor") == "Honor",
        (entry.get("nodeTaintsPolicy") or "Ignore") == "Honor",
        repr((selector, entry.get("topologyKey"))),
    )


def spread_constraints(pod: Object) -> list[SpreadConstraint]:
    return [
        spread_constraint(pod, entry, entry.get("labelSelector"))
        for entry in pod["spec"].get("topologySpreadConstraints") or ()
    ]
