"""The nodes in columns: what is compared for all nodes at once lies in NumPy arrays, one row a node.

A row keeps its place while its node lives; a freed row is used again. Each change of a row gets a number, so that
what was computed for all rows can be brought up to date by looking only at those that changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from longshore.client.store import Object
from longshore.master.scheduler.podinfo import CPU, MEMORY, STORAGE, PodInfo, Port, amount

Array = Any  # numpy.ndarray: mypy follows no import of numpy here
Rows = Array  # int64: indexes of rows
Mask = Array  # bool, one a row

START_ROWS = 16
JOURNAL = 4096  # changes that are remembered one by one, at least


class NodeRow:
    """One node: its object and the pods on it (bound, or assumed to be)."""

    __slots__ = ("images", "index", "labels", "name", "node", "pods", "ports", "taints", "with_affinity", "with_anti")

    def __init__(self, index: int, name: str) -> None:
        self.index = index
        self.name = name
        self.node: Object | None = None
        self.labels: dict[str, str] = {}
        self.taints: list[Object] = []
        self.pods: dict[str, PodInfo] = {}
        self.ports: dict[Port, int] = {}
        self.images: dict[str, int] = {}
        self.with_affinity: dict[str, PodInfo] = {}
        self.with_anti: dict[str, PodInfo] = {}


class LabelColumn:
    """One label of all nodes as small numbers: -1 where a node has no such label."""

    __slots__ = ("codes", "key", "values")

    def __init__(self, key: str, size: int) -> None:
        self.key = key
        self.values: dict[str, int] = {}
        self.codes: Array = np.full(size, -1, dtype=np.int64)

    def set(self, index: int, labels: dict[str, str]) -> None:
        value = labels.get(self.key)
        self.codes[index] = -1 if value is None else self.values.setdefault(value, len(self.values))


class NodeTable:
    """All nodes. Columns are as long as `size`; rows of no node have valid[row] False."""

    def __init__(self) -> None:
        self.size = START_ROWS
        self.rows: list[NodeRow | None] = [None] * START_ROWS
        self.by_name: dict[str, NodeRow] = {}
        self._free = list(range(START_ROWS - 1, -1, -1))
        self.resources: dict[str, int] = {CPU: 0, MEMORY: 1, STORAGE: 2}
        self.valid: Mask = np.zeros(START_ROWS, dtype=np.bool_)
        self.allocatable: Array = np.zeros((3, START_ROWS), dtype=np.int64)
        self.requested: Array = np.zeros((3, START_ROWS), dtype=np.int64)
        self.filled: Array = np.zeros((2, START_ROWS), dtype=np.int64)
        self.max_pods: Array = np.zeros(START_ROWS, dtype=np.int64)
        self.pod_count: Array = np.zeros(START_ROWS, dtype=np.int64)
        self.generation = 0  # counts every change
        self.changed: Array = np.zeros(START_ROWS, dtype=np.int64)  # generation of a row's last change of any kind
        self.static_changed: Array = np.zeros(START_ROWS, dtype=np.int64)  # ... of its node object
        self.static_generation = 0
        self._journal: list[int] = []  # the row of each of the last changes
        self._labels: dict[str, LabelColumn] = {}
        self.prefer_no_schedule = 0  # nodes with such a taint
        self.pods_with_anti: dict[str, tuple[PodInfo, NodeRow]] = {}
        self.pods_with_affinity: dict[str, tuple[PodInfo, NodeRow]] = {}
        self.listeners: list[Callable[[PodInfo, NodeRow, int], None]] = []

    def __len__(self) -> int:
        return int(self.valid.sum())

    def all_rows(self) -> Rows:
        return np.nonzero(self.valid)[0]

    def column(self, resource: str) -> int:
        """The column of a resource, made when it is new."""
        found = self.resources.get(resource)
        if found is None:
            found = self.resources[resource] = len(self.resources)
            blank: Array = np.zeros((1, self.size), dtype=np.int64)
            self.allocatable = np.vstack((self.allocatable, blank))
            self.requested = np.vstack((self.requested, blank))
        return found

    def labels(self, key: str) -> LabelColumn:
        """The column of a label, made on first use and kept up to date from then on."""
        found = self._labels.get(key)
        if found is None:
            found = self._labels[key] = LabelColumn(key, self.size)
            for row in self.by_name.values():
                if self.valid[row.index]:
                    found.set(row.index, row.labels)
        return found

    def _grow(self) -> None:
        old, self.size = self.size, self.size * 2
        more = self.size - old
        self.rows.extend([None] * more)
        self._free.extend(range(self.size - 1, old - 1, -1))

        def longer(column: Array, fill: int = 0) -> Array:
            shape = (*column.shape[:-1], more)
            return np.concatenate((column, np.full(shape, fill, dtype=column.dtype)), axis=-1)

        self.valid = longer(self.valid)
        self.allocatable, self.requested = longer(self.allocatable), longer(self.requested)
        self.filled = longer(self.filled)
        self.max_pods, self.pod_count = longer(self.max_pods), longer(self.pod_count)
        self.changed, self.static_changed = longer(self.changed), longer(self.static_changed)
        for column in self._labels.values():
            column.codes = longer(column.codes, -1)

    def _row(self, name: str) -> NodeRow:
        row = self.by_name.get(name)
        if row is None:
            if not self._free:
                self._grow()
            row = NodeRow(self._free.pop(), name)
            self.rows[row.index] = row
            self.by_name[name] = row
        return row

    def _touch(self, index: int, *, static: bool = False) -> None:
        self.generation += 1
        self.changed[index] = self.generation
        self._journal.append(index)
        if len(self._journal) > 2 * JOURNAL:
            del self._journal[:JOURNAL]
        if static:
            self.static_changed[index] = self.static_generation = self.generation

    def changed_since(self, generation: int) -> Rows:
        """The rows of nodes that changed after a generation."""
        count = self.generation - generation
        if count > min(len(self._journal), self.size // 8):
            return np.nonzero((self.changed > generation) & self.valid)[0]
        recent = set(self._journal[len(self._journal) - count :])
        return np.array([index for index in recent if self.valid[index]], dtype=np.int64)

    def touch(self, name: str) -> None:
        """Something about a node has changed that the table does not hold (who is promised room on it)."""
        row = self.by_name.get(name)
        if row is not None:
            self._touch(row.index)

    def touch_all(self) -> None:
        """touch for every node."""
        for row in self.by_name.values():
            self._touch(row.index)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def set_node(self, node: Object) -> NodeRow:
        """Take in a node, or its new state."""
        row = self._row(node["metadata"]["name"])
        self._forget_taints(row)
        spec, status = node.get("spec") or {}, node.get("status") or {}
        row.node = node
        row.labels = node["metadata"].get("labels") or {}
        row.taints = list(spec.get("taints") or ())
        if spec.get("unschedulable"):
            row.taints = [t for t in row.taints if t.get("key") != "node.kubernetes.io/unschedulable"] + [
                {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
            ]
        self.prefer_no_schedule += any(t.get("effect") == "PreferNoSchedule" for t in row.taints)
        allocatable = status.get("allocatable") or status.get("capacity") or {}
        index = row.index
        self.allocatable[:, index] = 0
        self.max_pods[index] = 0
        for name, value in allocatable.items():
            if name == "pods":
                self.max_pods[index] = amount(name, value)
            else:
                column = self.column(name)
                self.allocatable[column, index] = amount(name, value)
        row.images = {
            name: int(image.get("sizeBytes") or 0)
            for image in status.get("images") or ()
            for name in image.get("names") or ()
        }
        self.valid[index] = True
        for label in self._labels.values():
            label.set(index, row.labels)
        self._touch(index, static=True)
        return row

    def _forget_taints(self, row: NodeRow) -> None:
        if row.node is not None:
            self.prefer_no_schedule -= any(t.get("effect") == "PreferNoSchedule" for t in row.taints)

    def remove_node(self, name: str) -> None:
        """A node is gone. Its row stays while pods are still told to be on it, invisible."""
        row = self.by_name.get(name)
        if row is None:
            return
        self._forget_taints(row)
        row.node = None
        row.labels, row.taints, row.images = {}, [], {}
        self.valid[row.index] = False
        self.allocatable[:, row.index] = 0
        for label in self._labels.values():
            label.codes[row.index] = -1
        self._touch(row.index, static=True)
        self._maybe_free(row)

    def _maybe_free(self, row: NodeRow) -> None:
        if row.node is None and not row.pods:
            del self.by_name[row.name]
            self.rows[row.index] = None
            self._free.append(row.index)

    # -- pods ----------------------------------------------------------------------------------------------------------

    def add_pod(self, info: PodInfo, node: str) -> None:
        """A pod is on a node now."""
        row = self._row(node)
        if info.key in row.pods:
            self.remove_pod(info.key, node)
            row = self._row(node)
        row.pods[info.key] = info
        self._account(info, row, 1)
        for port in info.cls.ports:
            row.ports[port] = row.ports.get(port, 0) + 1
        if info.cls.anti_affinity:
            row.with_anti[info.key] = info
            self.pods_with_anti[info.key] = (info, row)
        if info.cls.affinity or info.cls.preferred_affinity or info.cls.preferred_anti_affinity:
            row.with_affinity[info.key] = info
            self.pods_with_affinity[info.key] = (info, row)

    def remove_pod(self, key: str, node: str) -> PodInfo | None:
        """A pod is no longer on a node. It, or None when it was not there."""
        row = self.by_name.get(node)
        info = row.pods.pop(key, None) if row is not None else None
        if row is None or info is None:
            return None
        self._account(info, row, -1)
        for port in info.cls.ports:
            row.ports[port] -= 1
            if not row.ports[port]:
                del row.ports[port]
        row.with_anti.pop(key, None)
        row.with_affinity.pop(key, None)
        self.pods_with_anti.pop(key, None)
        self.pods_with_affinity.pop(key, None)
        self._maybe_free(row)
        return info

    def _account(self, info: PodInfo, row: NodeRow, sign: int) -> None:
        index, cls = row.index, info.cls
        for name, value in cls.requests.items():
            column = self.column(name)
            self.requested[column, index] += sign * value
        self.filled[0, index] += sign * cls.filled[0]
        self.filled[1, index] += sign * cls.filled[1]
        self.pod_count[index] += sign
        self._touch(index)
        for listener in self.listeners:
            listener(info, row, sign)

    def pods_on(self, rows: Iterable[int]) -> Iterable[tuple[PodInfo, NodeRow]]:
        for index in rows:
            row = self.rows[index]
            if row is not None:
                for info in row.pods.values():
                    yield info, row
