"""PodTopologySpread: pods of a kind evenly over zones, hosts or any other label.

Source: kubernetes pkg/scheduler/framework/plugins/podtopologyspread, described behaviour.
"""

from __future__ import annotations

import math

import numpy as np

from longshore.client.objects import controller_of, tolerates
from longshore.client.resources import REPLICA_SETS, REPLICATION_CONTROLLERS, SERVICES, STATEFUL_SETS
from longshore.client.selectors import map_matcher, nothing
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
from longshore.master.scheduler.terms import SpreadConstraint, spread_constraint

HOSTNAME = "kubernetes.io/hostname"
MISMATCH = "node(s) didn't match pod topology spread constraints"
MISSING = MISMATCH + " (missing required label)"

SYSTEM_DEFAULTS = [
    {"maxSkew": 3, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway"},
    {"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"},
]


class PodTopologySpread(Plugin):
    """topologySpreadConstraints of the pod, or the profile's defaults for pods of one workload."""

    name = "PodTopologySpread"
    wants = frozenset({"Pod", "Node"})

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        self.system = args.get("defaultingType", "System") == "System"
        self.defaults: list[Object] = SYSTEM_DEFAULTS if self.system else list(args.get("defaultConstraints") or ())
        self.services = handle.informers.informer(SERVICES)
        self._services_seen = 0
        self.services.on(*(self._service_seen,) * 3)
        self.workloads = {
            r.kind: handle.informers.informer(r) for r in (REPLICA_SETS, STATEFUL_SETS, REPLICATION_CONTROLLERS)
        }

    # -- constraints -------------------------------------------------------------------------------------------------------

    def _constraints(self, pod: PodInfo, *, hard: bool) -> list[SpreadConstraint]:
        if pod.cls.spread or not self.defaults:
            return [c for c in pod.cls.spread if c.hard == hard]
        selector = self._default_selector(pod)
        if selector is None:
            return []
        key = ("default-spread", repr(selector))
        known: list[SpreadConstraint] | None = pod.cls.cache.get(key)
        if known is None:
            known = pod.cls.cache[key] = [spread_constraint(pod.pod, entry, selector) for entry in self.defaults]
        return [c for c in known if c.hard == hard]

    def _default_selector(self, pod: PodInfo) -> Object | None:
        """The selector of the workload that the pod belongs to: its Services' and its controller's together."""
        labels = self._selected_by(pod).copy()
        expressions: list[Object] = []
        owner = controller_of(pod.pod)
        informer = self.workloads.get(owner["kind"]) if owner is not None else None
        if owner is not None and informer is not None:
            found = informer.store.named(pod.namespace, owner["name"])
            selector = (found or {"spec": {}})["spec"].get("selector") or {}
            if owner["kind"] == "ReplicationController":
                labels.update(selector)
            else:
                labels.update(selector.get("matchLabels") or {})
                expressions.extend(selector.get("matchExpressions") or ())
        return {"matchLabels": labels, "matchExpressions": expressions} if labels or expressions else None

    def _selected_by(self, pod: PodInfo) -> dict[str, str]:
        """The selectors of the Services that select the pod, together; kept a class."""
        known: tuple[int, dict[str, str]] | None = pod.cls.cache.get((id(self), "services"))
        if known is None or known[0] != self._services_seen:
            labels: dict[str, str] = {}
            for service in self.services.store.list(pod.namespace):
                chosen = service["spec"].get("selector")
                if chosen and map_matcher(chosen)(pod.cls.labels):
                    labels.update(chosen)
            known = pod.cls.cache[id(self), "services"] = (self._services_seen, labels)
        return known[1]

    def _service_seen(self, *_: Object) -> None:
        self._services_seen += 1

    # -- counts ------------------------------------------------------------------------------------------------------------

    def _counter(self, pod: PodInfo, constraint: SpreadConstraint) -> PodCounter:
        namespace, selector = pod.namespace, constraint.selector
        key = ("spread", namespace, constraint.identity)
        return self.handle.counters.count(
            key, lambda c: c.namespace == namespace and selector(c.labels), skip_deleting=True
        )

    def _eligible(self, pod: PodInfo, constraints: list[SpreadConstraint], constraint: SpreadConstraint) -> Mask:
        """Rows whose pods count for a constraint: all its labels there, and the pod welcome as far as policies say."""
        table = self.handle.table
        mask: Mask = table.valid.copy()
        for each in constraints:
            mask &= table.labels(each.topology_key).codes >= 0
        if constraint.honor_affinity and not pod.cls.node_terms.any_node:
            mask &= self._static(pod, "affinity")
        if constraint.honor_taints:
            mask &= self._static(pod, "taints")
        return mask

    def _static(self, pod: PodInfo, what: str) -> Mask:
        table = self.handle.table
        key = ("spread", what)
        kept = pod.cls.cache.get(key)
        if kept is None or kept[0] != table.static_generation or len(kept[1]) != table.size:
            mask: Mask = np.zeros(table.size, dtype=np.bool_)
            for row in table.by_name.values():
                if row.node is None:
                    continue
                if what == "affinity":
                    mask[row.index] = pod.cls.node_terms.match(row.labels, row.name)
                else:
                    mask[row.index] = all(
                        tolerates(pod.cls.tolerations, t)
                        for t in row.taints
                        if t.get("effect") in ("NoSchedule", "NoExecute")
                    )
            kept = pod.cls.cache[key] = (table.static_generation, mask)
        return kept[1]

    # -- filter ------------------------------------------------------------------------------------------------------------

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        return None if self._constraints(pod, hard=True) else Status.skip()

    def _masks(self, pod: PodInfo) -> tuple[Mask, Mask]:
        """(all labels there, skew kept) for every row."""
        table = self.handle.table
        constraints = self._constraints(pod, hard=True)
        labelled: Mask = np.ones(table.size, dtype=np.bool_)
        even: Mask = np.ones(table.size, dtype=np.bool_)
        for constraint in constraints:
            column = table.labels(constraint.topology_key)
            labelled &= column.codes >= 0
            eligible = self._eligible(pod, constraints, constraint)
            counts = self._counter(pod, constraint).rows(table.size)
            domains = by_domain(np.where(eligible, counts, 0), column.codes, len(column.values))
            present = by_domain(eligible.astype(np.int64), column.codes, len(column.values)) > 0
            least = int(domains[present].min()) if present.any() else 0
            if int(present.sum()) < constraint.min_domains:
                least = 0
            own = 1 if constraint.selector(pod.cls.labels) else 0
            here = spread_back(domains, column.codes, 0)
            even &= here + own - least <= constraint.max_skew
        return labelled, even

    def filter_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Mask:
        labelled, even = self._masks(pod)
        return (labelled & even)[rows]

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        kept = state.data.get(self.name)
        if kept is None or kept[0] != self.handle.table.generation:
            kept = state.data[self.name] = (self.handle.table.generation, self._masks(pod))
        labelled, even = kept[1]
        if not labelled[node.index]:
            return Status.unresolvable(MISSING)
        return None if even[node.index] else Status.unschedulable(MISMATCH)

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.kind == "Node":
            return True
        other = event.new or event.old
        if other is None or other["metadata"].get("namespace") != pod.namespace:
            return False
        labels = other["metadata"].get("labels") or {}
        return event.action is not Action.UPDATE and any(c.selector(labels) for c in pod.cls.spread if c.hard)

    # -- score -------------------------------------------------------------------------------------------------------------

    def pre_score(self, state: CycleState, pod: PodInfo, rows: Rows) -> Status | None:
        constraints = [c for c in self._constraints(pod, hard=False) if c.selector is not nothing]
        if not constraints:
            return Status.skip()
        state.data[self.name + " soft"] = constraints
        return None

    def score_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Scores:
        table = self.handle.table
        constraints: list[SpreadConstraint] = state.data[self.name + " soft"]
        every_label = bool(pod.cls.spread) or not self.system
        ignored: Mask = np.zeros(len(rows), dtype=np.bool_)
        total: Scores = np.zeros(len(rows), dtype=np.float64)
        for constraint in constraints:
            column = table.labels(constraint.topology_key)
            codes: Array = column.codes[rows]
            if every_label:
                ignored |= codes < 0
        for constraint in constraints:
            column = table.labels(constraint.topology_key)
            codes = column.codes[rows]
            counts = self._counter(pod, constraint).rows(table.size)
            if constraint.topology_key == HOSTNAME:
                here, size = counts[rows].astype(np.float64), int((~ignored).sum())
            else:
                eligible = self._eligible(pod, constraints if every_label else [], constraint)
                domains = by_domain(np.where(eligible, counts, 0), column.codes, len(column.values))
                here = spread_back(domains, codes, 0).astype(np.float64)
                size = len(np.unique(codes[(codes >= 0) & ~ignored]))
            part = here * math.log(size + 2) + (constraint.max_skew - 1)
            total += np.where(codes >= 0, part, 0.0)
        state.data[self.name + " ignored"] = ignored
        return np.round(total)

    def normalize(self, state: CycleState, pod: PodInfo, scores: Scores) -> Scores:
        ignored: Mask = state.data[self.name + " ignored"]
        counted = scores[~ignored]
        if not len(counted):
            return np.zeros_like(scores)
        least, most = float(counted.min()), float(counted.max())
        if most == 0:
            return np.where(ignored, 0.0, 100.0)
        return np.where(ignored, 0.0, np.floor(100 * (most + least - scores) / most))
