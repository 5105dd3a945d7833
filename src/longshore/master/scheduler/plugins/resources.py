"""Plugins over resources, for all nodes at once: what fits, and which node is the better place.

Sources: kubernetes pkg/scheduler/framework/plugins/noderesources (fit, least_allocated, most_allocated,
requested_to_capacity_ratio, balanced_allocation), described behaviour.
"""

from __future__ import annotations

import math

import numpy as np

from longshore.client.store import Object
from longshore.master.scheduler.extended import backed_by
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
from longshore.master.scheduler.podinfo import CPU, MEMORY, STORAGE, PodInfo, pod_requests

DEFAULT_RESOURCES: list[Object] = [{"name": CPU, "weight": 1}, {"name": MEMORY, "weight": 1}]


def after(handle: Handle, pod: PodInfo, name: str, rows: Rows, *, filled: bool) -> tuple[Array, Array]:
    """(allocatable, requested with this pod) of a resource on the rows.

    filled: count containers without CPU and memory requests at their defaults, as scores do.
    """
    table = handle.table
    column = table.column(name)
    allocatable = table.allocatable[column, rows]
    if filled and name in (CPU, MEMORY):
        which = 0 if name == CPU else 1
        return allocatable, table.filled[which, rows] + pod.cls.filled[which]
    return allocatable, table.requested[column, rows] + pod.cls.requests.get(name, 0)


def after_on(handle: Handle, pod: PodInfo, name: str, node: NodeRow, *, filled: bool) -> tuple[int, int]:
    """after for one node."""
    table, index = handle.table, node.index
    column = table.column(name)
    allocatable = int(table.allocatable[column, index])
    if filled and name in (CPU, MEMORY):
        which = 0 if name == CPU else 1
        return allocatable, int(table.filled[which, index]) + pod.cls.filled[which]
    return allocatable, int(table.requested[column, index]) + pod.cls.requests.get(name, 0)


class NodeResourcesFit(Plugin):
    """Refuses nodes without room; prefers the least (or most, or by a shape) allocated."""

    name = "NodeResourcesFit"
    filter_scope = "node"
    score_scope = "node"
    wants = frozenset({"Pod", "Node", "DeviceClass"})

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        strategy = args.get("scoringStrategy") or {}
        self.kind: str = strategy.get("type") or "LeastAllocated"
        self.resources = [
            (r["name"], int(r.get("weight") or 1)) for r in strategy.get("resources") or DEFAULT_RESOURCES
        ]
        shape = (strategy.get("requestedToCapacityRatio") or {}).get("shape") or []
        self.shape = [(float(p["utilization"]), float(p["score"]) * 10) for p in shape]
        self.ignored = frozenset(args.get("ignoredResources") or ())
        self.ignored_groups = tuple(g + "/" for g in args.get("ignoredResourceGroups") or ())

    def _asked(self, pod: PodInfo) -> list[tuple[str, int]]:
        return [
            (name, value)
            for name, value in pod.cls.requests.items()
            if name not in self.ignored and not (self.ignored_groups and name.startswith(self.ignored_groups))
        ]

    def filter_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Mask:
        table = self.handle.table
        fits: Mask = table.pod_count[rows] < table.max_pods[rows]
        for name, value in self._asked(pod):
            column = table.column(name)
            has_room = table.allocatable[column, rows] - table.requested[column, rows] >= value
            if self._is_backed(name):
                has_room |= table.allocatable[column, rows] == 0
            fits &= has_room
        return fits

    def _is_backed(self, resource: str) -> bool:
        """Whether devices are claimed for a resource on nodes that do not offer it themselves."""
        return self.handle.backed is not None and self.handle.backed.get(resource) is not None

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        table, index = self.handle.table, node.index
        reasons, hopeless = [], False
        if table.pod_count[index] + 1 > table.max_pods[index]:
            reasons.append("Too many pods")
        for name, value in self._asked(pod):
            column = table.column(name)
            if not table.allocatable[column, index] and self._is_backed(name):
                continue
            if value > table.allocatable[column, index] - table.requested[column, index]:
                reasons.append(f"Insufficient {name}")
                hopeless = hopeless or value > int(table.allocatable[column, index])
        if not reasons:
            return None
        return Status.unresolvable(*reasons) if hopeless else Status.unschedulable(*reasons)

    def score_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Scores:
        total: Scores = np.zeros(len(rows), dtype=np.float64)
        weights: Scores = np.zeros(len(rows), dtype=np.float64)
        for name, weight in self.resources:
            if name not in (CPU, MEMORY, STORAGE) and not pod.cls.requests.get(name):
                continue  # a resource that the pod does not ask for says nothing
            allocatable, requested = after(self.handle, pod, name, rows, filled=True)
            there = allocatable > 0
            safe = np.where(there, allocatable, 1)
            if self.kind == "MostAllocated":
                part = np.minimum(requested, allocatable) * 100 // safe
            elif self.kind == "RequestedToCapacityRatio":
                ratio = np.where(requested > allocatable, 100, requested * 100 // safe)
                xs, ys = [p[0] for p in self.shape] or [0.0], [p[1] for p in self.shape] or [0.0]
                part = np.floor(np.interp(ratio, xs, ys)).astype(np.int64)
            else:
                part = np.where(requested > allocatable, 0, (allocatable - requested) * 100 // safe)
            counted = there & (part > 0) if self.kind == "RequestedToCapacityRatio" else there
            total += np.where(counted, part * weight, 0)
            weights += np.where(counted, weight, 0)
        result = total / np.where(weights > 0, weights, 1)
        return np.round(result) if self.kind == "RequestedToCapacityRatio" else np.floor(result)

    def score(self, state: CycleState, pod: PodInfo, node: NodeRow) -> float:
        total = weights = 0
        for name, weight in self.resources:
            if name not in (CPU, MEMORY, STORAGE) and not pod.cls.requests.get(name):
                continue
            allocatable, requested = after_on(self.handle, pod, name, node, filled=True)
            if allocatable <= 0:
                continue
            if self.kind == "MostAllocated":
                part = min(requested, allocatable) * 100 // allocatable
            elif self.kind == "RequestedToCapacityRatio":
                part = self._shaped(100 if requested > allocatable else requested * 100 // allocatable)
                if not part:
                    continue
            else:
                part = 0 if requested > allocatable else (allocatable - requested) * 100 // allocatable
            total += part * weight
            weights += weight
        if self.kind == "RequestedToCapacityRatio":
            return float(round(total / weights)) if weights else 0.0
        return float(total // weights) if weights else 0.0

    def _shaped(self, utilization: int) -> int:
        xs, ys = [p[0] for p in self.shape] or [0.0], [p[1] for p in self.shape] or [0.0]
        return int(np.floor(np.interp(utilization, xs, ys)))

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.kind == "DeviceClass":
            return not backed_by(event.new or {"metadata": {"name": ""}}).isdisjoint(pod.cls.requests)
        if event.kind == "Node":
            row = self.handle.table.by_name.get((event.new or {"metadata": {"name": ""}})["metadata"]["name"])
            return row is not None and self.filter(CycleState(), pod, row) is None
        if event.action is Action.DELETE and event.old is not None:
            # Somebody's end frees what this pod waits for, or at least a place.
            freed = pod_requests(event.old)
            return any(freed.get(name) for name in pod.cls.requests) or not pod.cls.requests
        if event.old is not None and event.new is not None:
            before, now = pod_requests(event.old), pod_requests(event.new)
            return any(now.get(name, 0) < value for name, value in before.items())
        return False


class NodeResourcesBalancedAllocation(Plugin):
    """Prefers nodes whose resources the pod brings nearer to one another: 75 where it changes nothing, 50 to 100."""

    name = "NodeResourcesBalancedAllocation"
    score_scope = "node"

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        self.resources = [r["name"] for r in args.get("resources") or DEFAULT_RESOURCES]

    def pre_score(self, state: CycleState, pod: PodInfo, rows: Rows) -> Status | None:
        # A pod that asks for none of them shifts no balance.
        return None if any(pod.cls.requests.get(name) for name in self.resources) else Status.skip()

    def _counted(self, pod: PodInfo) -> list[str]:
        return [name for name in self.resources if name in (CPU, MEMORY, STORAGE) or pod.cls.requests.get(name)]

    def score_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Scores:
        names = self._counted(pod)
        shape = (len(names), len(rows))
        there: Mask = np.zeros(shape, dtype=np.bool_)
        now: Scores = np.zeros(shape, dtype=np.float64)
        then: Scores = np.zeros(shape, dtype=np.float64)
        for number, name in enumerate(names):
            allocatable, requested = after(self.handle, pod, name, rows, filled=False)
            there[number] = allocatable > 0
            safe = np.where(allocatable > 0, allocatable, 1)
            then[number] = np.minimum(requested / safe, 1.0)
            now[number] = np.minimum((requested - pod.cls.requests.get(name, 0)) / safe, 1.0)
        return 50 + (50 + _evenness_of_rows(then, there) - _evenness_of_rows(now, there)) // 2

    def score(self, state: CycleState, pod: PodInfo, node: NodeRow) -> float:
        then, now = [], []
        for name in self._counted(pod):
            allocatable, requested = after_on(self.handle, pod, name, node, filled=False)
            if allocatable > 0:
                then.append(min(requested / allocatable, 1.0))
                now.append(min((requested - pod.cls.requests.get(name, 0)) / allocatable, 1.0))
        return 50.0 + (50 + _evenness(then) - _evenness(now)) // 2


def _evenness(fractions: list[float]) -> int:
    """100 where all are equal, less by their standard deviation."""
    if len(fractions) < 2:
        return 100
    if len(fractions) == 2:
        return int((1 - abs(fractions[0] - fractions[1]) / 2) * 100)
    mean = sum(fractions) / len(fractions)
    return int((1 - math.sqrt(sum((f - mean) ** 2 for f in fractions) / len(fractions))) * 100)


def _evenness_of_rows(fractions: Scores, there: Mask) -> Scores:
    """_evenness of each column of fractions, of what is there."""
    count = there.sum(axis=0)
    kept = np.where(there, fractions, 0.0)
    most, least = kept.max(axis=0, initial=0.0), np.where(there, fractions, 1.0).min(axis=0, initial=1.0)
    spread = np.where(count == 2, (most - least) / 2, 0.0)
    if len(fractions) > 2:
        number = np.maximum(count, 1)
        mean = kept.sum(axis=0) / number
        deviation = np.sqrt(np.where(there, (fractions - mean) ** 2, 0.0).sum(axis=0) / number)
        spread = np.where(count > 2, deviation, spread)
    return np.floor((1 - spread) * 100)
