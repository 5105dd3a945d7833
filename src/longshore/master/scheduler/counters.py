"""How many pods of a kind are on each node, kept up to date pod by pod, so that nothing is counted anew.

Affinity, anti-affinity and spreading ask for pods that a selector matches, by topology domain. A `PodCounter` holds
the count a node for one such question; domains are summed from it over a label column when needed. A `TermGroup`
holds how often one affinity term of pods that run already occurs on each node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from longshore.client.objects import is_deleting
from longshore.master.scheduler.nodes import Array, NodeRow, NodeTable
from longshore.master.scheduler.podinfo import PodClass, PodInfo
from longshore.master.scheduler.terms import AffinityTerm

KEEP = 512

NamespaceLabels = Callable[[str], Mapping[str, str]]
Question = Callable[[PodClass], bool]


class PodCounter:
    """Pods on each row for which `question` (of their class) holds."""

    __slots__ = ("_known", "by_row", "question", "skip_deleting", "total", "used")

    def __init__(self, table: NodeTable, question: Question, *, skip_deleting: bool) -> None:
        self.question = question
        self.skip_deleting = skip_deleting
        self.by_row: Array = np.zeros(table.size, dtype=np.int64)
        self.total = 0
        self.used = 0
        self._known: dict[PodClass, bool] = {}
        for row in table.by_name.values():
            for info in row.pods.values():
                self.change(info, row, 1)

    def change(self, info: PodInfo, row: NodeRow, sign: int) -> None:
        answer = self._known.get(info.cls)
        if answer is None:
            if len(self._known) > 4096:
                self._known.clear()
            answer = self._known[info.cls] = self.question(info.cls)
        if answer and not (self.skip_deleting and is_deleting(info.pod)):
            if row.index >= len(self.by_row):
                grown: Array = np.zeros(max(row.index + 1, 2 * len(self.by_row)), dtype=np.int64)
                grown[: len(self.by_row)] = self.by_row
                self.by_row = grown
            self.by_row[row.index] += sign
            self.total += sign

    def rows(self, size: int) -> Array:
        """The counts, as long as the table's columns."""
        if len(self.by_row) < size:
            grown: Array = np.zeros(size, dtype=np.int64)
            grown[: len(self.by_row)] = self.by_row
            self.by_row = grown
        return self.by_row[:size]


class TermGroup:
    """One affinity term of pods on nodes: how often it occurs on each row."""

    __slots__ = ("by_row", "count", "term")

    def __init__(self, term: AffinityTerm, size: int) -> None:
        self.term = term
        self.by_row: Array = np.zeros(size, dtype=np.int64)
        self.count = 0

    def change(self, index: int, amount: int) -> None:
        if index >= len(self.by_row):
            grown: Array = np.zeros(max(index + 1, 2 * len(self.by_row)), dtype=np.int64)
            grown[: len(self.by_row)] = self.by_row
            self.by_row = grown
        self.by_row[index] += amount
        self.count += 1 if amount > 0 else -1

    def rows(self, size: int) -> Array:
        if len(self.by_row) < size:
            grown: Array = np.zeros(size, dtype=np.int64)
            grown[: len(self.by_row)] = self.by_row
            self.by_row = grown
        return self.by_row[:size]


class Counters:
    """All counters of a table."""

    def __init__(self, table: NodeTable, namespace_labels: NamespaceLabels) -> None:
        self.table = table
        self.namespace_labels = namespace_labels
        self._counters: dict[Any, PodCounter] = {}
        self._clock = 0
        self.anti: dict[str, TermGroup] = {}  # required anti-affinity
        self.affinity: dict[str, TermGroup] = {}  # required affinity
        self.preferred: dict[tuple[str, int], TermGroup] = {}  # preferred, by identity and signed weight
        table.listeners.append(self._changed)

    def _changed(self, info: PodInfo, row: NodeRow, sign: int) -> None:
        for counter in self._counters.values():
            counter.change(info, row, sign)
        cls = info.cls
        for term in cls.anti_affinity:
            self._term(self.anti, term.identity, term, row, sign)
        for term in cls.affinity:
            self._term(self.affinity, term.identity, term, row, sign)
        for term in cls.preferred_affinity:
            self._term(self.preferred, (term.identity, term.weight), term, row, sign)
        for term in cls.preferred_anti_affinity:
            self._term(self.preferred, (term.identity, -term.weight), term, row, sign)

    def _term(self, groups: dict[Any, TermGroup], key: Any, term: AffinityTerm, row: NodeRow, sign: int) -> None:
        group = groups.get(key)
        if group is None:
            group = groups[key] = TermGroup(term, self.table.size)
        group.change(row.index, sign)
        if group.count <= 0:
            del groups[key]

    def count(self, key: Any, question: Question, *, skip_deleting: bool = False) -> PodCounter:
        """The counter of a question; key says which question it is."""
        self._clock += 1
        found = self._counters.get(key)
        if found is None:
            if len(self._counters) >= KEEP:
                oldest = min(self._counters, key=lambda k: self._counters[k].used)
                del self._counters[oldest]
            found = self._counters[key] = PodCounter(self.table, question, skip_deleting=skip_deleting)
        found.used = self._clock
        return found

    def of_term(self, term: AffinityTerm) -> PodCounter:
        """Pods that an affinity term means."""
        return self.count(
            ("term", term.identity),
            lambda cls: term.matches(cls.labels, cls.namespace, self.namespace_labels),
        )

    def forget_namespaces(self) -> None:
        """Labels of a namespace changed: questions over namespace labels are asked anew."""
        self._counters.clear()


def by_domain(counts: Array, codes: Array, domains: int) -> Array:
    """Sum counts by domain. codes: the domain of each row, -1 for none; domains: how many there are."""
    inside = codes >= 0
    return np.bincount(codes[inside], weights=counts[inside], minlength=domains).astype(np.int64)


def spread_back(by_code: Array, codes: Array, outside: Any = 0) -> Array:
    """Each row's domain's number; `outside` for rows in no domain."""
    if not len(by_code):
        return np.full(len(codes), outside)
    return np.where(codes >= 0, by_code[np.maximum(codes, 0)], outside)
