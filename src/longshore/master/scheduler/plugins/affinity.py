"""InterPodAffinity: near the pods that a pod likes, away from those that it (or they) cannot stand.

All counts come from counters that are kept pod by pod, so that one decision costs a few sums over columns.
Source: kubernetes pkg/scheduler/framework/plugins/interpodaffinity, described behaviour.
"""

from __future__ import annotations

import numpy as np

from longshore.client.store import Object
from longshore.master.scheduler.counters import PodCounter, by_domain, spread_back
from longshore.master.scheduler.framework import (
    Action,
    ClusterEvent,
    CycleState,
    Handle,
    Plugin,
    Scores,
    Status,
)
from longshore.master.scheduler.nodes import Array, Mask, NodeRow, Rows
from longshore.master.scheduler.podinfo import PodInfo
from longshore.master.scheduler.terms import AffinityTerm

AFFINITY = "node(s) didn't match pod affinity rules"
ANTI = "node(s) didn't match pod anti-affinity rules"
EXISTING = "node(s) didn't satisfy existing pods anti-affinity rules"


class InterPodAffinity(Plugin):
    """podAffinity and podAntiAffinity, both ways."""

    name = "InterPodAffinity"
    wants = frozenset({"Pod", "Node", "Namespace"})

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        weight = args.get("hardPodAffinityWeight")
        self.hard_weight = 1 if weight is None else int(weight)
        self.ignore_existing = bool(args.get("ignorePreferredTermsOfExistingPods"))

    # -- counts ------------------------------------------------------------------------------------------------------------

    def _in_domain(self, by_row: Array, key: str) -> Array:
        """For each row, how many there are in its domain of a topology; 0 for rows without the label."""
        table = self.handle.table
        column = table.labels(key)
        counts = by_row * table.valid if not table.valid.all() else by_row
        return spread_back(by_domain(counts, column.codes, len(column.values)), column.codes, 0)

    def _existing_anti(self, pod: PodInfo) -> list[tuple[str, Array]]:
        groups = self.handle.counters.anti
        if not groups:
            return []
        known = pod.cls.cache.setdefault("existing-anti", {})
        labels = self.handle.counters.namespace_labels
        result = []
        for identity, group in groups.items():
            matches = known.get(identity)
            if matches is None:
                matches = group.term.matches(pod.cls.labels, pod.namespace, labels)
                if group.term.namespace_selector.__name__ == "nothing":
                    known[identity] = matches  # a question over namespace labels is asked anew each time
            if matches:
                result.append((group.term.topology_key, group.rows(self.handle.table.size)))
        return result

    def _wanted(self, pod: PodInfo) -> PodCounter:
        """Pods that all of the pod's required affinity terms mean together."""
        terms, labels = pod.cls.affinity, self.handle.counters.namespace_labels
        key = ("all", tuple(t.identity for t in terms))
        return self.handle.counters.count(key, lambda c: all(t.matches(c.labels, c.namespace, labels) for t in terms))

    def _alone(self, pod: PodInfo, wanted: PodCounter) -> bool:
        """The first of its kind: nobody matches yet, and the pod itself would."""
        labels = self.handle.counters.namespace_labels
        return wanted.total == 0 and all(t.matches(pod.cls.labels, pod.namespace, labels) for t in pod.cls.affinity)

    # -- filter ------------------------------------------------------------------------------------------------------------

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        if not pod.cls.affinity and not pod.cls.anti_affinity and not self._existing_anti(pod):
            return Status.skip()
        return None

    def _masks(self, pod: PodInfo) -> tuple[Mask, Mask, Mask]:
        """(affinity holds, own anti-affinity holds, existing anti-affinity holds) for every row."""
        table = self.handle.table
        near: Mask = np.ones(table.size, dtype=np.bool_)
        apart: Mask = np.ones(table.size, dtype=np.bool_)
        left_alone: Mask = np.ones(table.size, dtype=np.bool_)
        if pod.cls.affinity:
            wanted = self._wanted(pod)
            alone = self._alone(pod, wanted)
            for term in pod.cls.affinity:
                labelled = table.labels(term.topology_key).codes >= 0
                if alone:
                    near &= labelled
                else:
                    near &= self._in_domain(wanted.rows(table.size), term.topology_key) > 0
        for term in pod.cls.anti_affinity:
            counter = self.handle.counters.of_term(term)
            if counter.total:
                apart &= self._in_domain(counter.rows(table.size), term.topology_key) == 0
        for key, rows in self._existing_anti(pod):
            left_alone &= self._in_domain(rows, key) == 0
        return near, apart, left_alone

    def filter_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Mask:
        near, apart, left_alone = self._masks(pod)
        return (near & apart & left_alone)[rows]

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        # One answer serves all nodes of a diagnosis, as long as nothing moves.
        kept = state.data.get(self.name)
        if kept is None or kept[0] != self.handle.table.generation:
            kept = state.data[self.name] = (self.handle.table.generation, self._masks(pod))
        near, apart, left_alone = kept[1]
        if not near[node.index]:
            return Status.unresolvable(AFFINITY)
        if not apart[node.index]:
            return Status.unschedulable(ANTI)
        if not left_alone[node.index]:
            return Status.unschedulable(EXISTING)
        return None

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.kind != "Pod":
            return True
        labels = self.handle.counters.namespace_labels
        other = PodInfo(event.new or event.old or {"metadata": {"name": ""}, "spec": {}})

        def matches(terms: list[AffinityTerm], a: PodInfo) -> bool:
            return any(t.matches(a.cls.labels, a.namespace, labels) for t in terms)

        if event.action is Action.DELETE:
            return matches(pod.cls.anti_affinity, other) or matches(other.cls.anti_affinity, pod)
        return matches(pod.cls.affinity, other) or event.action is Action.UPDATE

    # -- score -------------------------------------------------------------------------------------------------------------

    def pre_score(self, state: CycleState, pod: PodInfo, rows: Rows) -> Status | None:
        counters = self.handle.counters
        own = pod.cls.preferred_affinity or pod.cls.preferred_anti_affinity
        others = not self.ignore_existing and (counters.preferred or (counters.affinity and self.hard_weight))
        return None if own or others else Status.skip()

    def score_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Scores:
        table, counters = self.handle.table, self.handle.counters
        total: Scores = np.zeros(table.size, dtype=np.float64)
        for term in pod.cls.preferred_affinity:
            total += term.weight * self._in_domain(counters.of_term(term).rows(table.size), term.topology_key)
        for term in pod.cls.preferred_anti_affinity:
            total -= term.weight * self._in_domain(counters.of_term(term).rows(table.size), term.topology_key)
        if not self.ignore_existing:
            labels = counters.namespace_labels
            for (_, weight), group in counters.preferred.items():
                if group.term.matches(pod.cls.labels, pod.namespace, labels):
                    total += weight * self._in_domain(group.rows(table.size), group.term.topology_key)
            if self.hard_weight:
                for group in counters.affinity.values():
                    if group.term.matches(pod.cls.labels, pod.namespace, labels):
                        total += self.hard_weight * self._in_domain(group.rows(table.size), group.term.topology_key)
        return total[rows]

    def normalize(self, state: CycleState, pod: PodInfo, scores: Scores) -> Scores:
        least, most = float(scores.min(initial=0.0)), float(scores.max(initial=0.0))
        if len(scores):
            least, most = float(scores.min()), float(scores.max())
        if most == least:
            return np.zeros_like(scores)
        return np.floor(100 * (scores - least) / (most - least))
