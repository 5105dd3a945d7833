"""What is asked of a cell: how many more of a pod fit, what moves when nodes go, how few nodes hold the workload.

Source for compaction: "Large-scale cluster management at Google with Borg", section 5.1.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longshore.client.objects import controller_of, is_terminal
from longshore.client.resources import POD_DISRUPTION_BUDGETS, PODS
from longshore.client.selectors import matcher
from longshore.client.store import key_of
from longshore.master.scheduler.podinfo import CPU, MEMORY, PodInfo
from longshore.master.scheduler.profile import Diagnosis
from longshore.simulate.cell import Cell, belongs_to_node, unbound

Object = dict[str, Any]
TRIALS = 11
PICKY = 0.002  # the share of pods that a compaction may leave out
SLICE = 512  # pods between turns of others
MOST_PODS = 1_000_000


# -- fit ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Fit:
    """placed: copies by node; why: what the next copy would be told, "" when all that were asked for fit."""

    pod: str
    placed: dict[str, int]
    why: str = ""
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.placed.values())


async def fit(cell: Cell, pod: Object, count: int = 0) -> Fit:
    """Place copies of a pod one after the other until one fits nowhere, or `count` are placed (0: no bound)."""
    pod = cell.admitted(pod)
    name = pod["metadata"]["name"]
    placed: Counter[str] = Counter()
    for number in range(count or MOST_PODS):
        result = cell.place(PodInfo(unbound(pod, f"{name}-fit-{number}")))
        if isinstance(result, Diagnosis):
            return Fit(name, dict(placed), result.message(), reasons(result))
        placed[result] += 1
        if number % SLICE == SLICE - 1:
            await cell.breathe()
    return Fit(name, dict(placed))


def reasons(diagnosis: Diagnosis) -> dict[str, int]:
    """How many nodes give each reason, most first."""
    counts = Counter(reason for status in diagnosis.statuses.values() for reason in status.reasons)
    return dict(counts.most_common())


# -- drain -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Drain:
    """moved: (pod, from, to); stuck: (pod, from, why); ended: (pod, from, why it does not come back); budgets: sentences."""

    nodes: list[str]
    moved: list[tuple[str, str, str]] = field(default_factory=list)
    stuck: list[tuple[str, str, str]] = field(default_factory=list)
    ended: list[tuple[str, str, str]] = field(default_factory=list)
    budgets: list[str] = field(default_factory=list)


async def drain(cell: Cell, names: Sequence[str]) -> Drain:
    """Take nodes away and place their pods on those that are left, as their controllers would make them anew.

    Raises KeyError with the name of a node that is not there.
    """
    for name in names:
        if name not in cell.nodes:
            raise KeyError(name)
    result = Drain(list(names))
    leaving: dict[str, str] = {}
    pods: list[Object] = []
    for name in names:
        for info in cell.remove_node(name):
            leaving[info.key] = name
            if belongs_to_node(info.pod):
                result.ended.append((info.key, name, "belongs to the node"))
            elif controller_of(info.pod) is None:
                result.ended.append((info.key, name, "no controller makes it anew"))
            else:
                pods.append(info.pod)
    result.budgets = _budgets(cell, pods)
    waiting = [unbound(pod) for pod in cell.in_queue_order(pods)]
    while waiting:
        left: list[tuple[Object, Diagnosis]] = []
        for pod in waiting:
            found = cell.place(PodInfo(pod))
            if isinstance(found, Diagnosis):
                left.append((pod, found))
            else:
                result.moved.append((key_of(pod), leaving[key_of(pod)], found))
        await cell.breathe()
        if len(left) == len(waiting):
            # Nothing more comes to run, so what these wait for (another pod, a topology) does not come either.
            result.stuck = [(key_of(pod), leaving[key_of(pod)], why.message()) for pod, why in left]
            break
        waiting = [pod for pod, _ in left]
    return result


def _budgets(cell: Cell, pods: Iterable[Object]) -> list[str]:
    """Disruption budgets that do not let all these pods go at once."""
    found = []
    for budget in cell.snapshot.of(POD_DISRUPTION_BUDGETS):
        namespace, selector = budget["metadata"].get("namespace"), (budget.get("spec") or {}).get("selector")
        if selector is None:
            continue
        matches = matcher(selector)
        hit = sum(
            p["metadata"].get("namespace") == namespace and matches(p["metadata"].get("labels") or {}) for p in pods
        )
        allowed = int((budget.get("status") or {}).get("disruptionsAllowed") or 0)
        if hit > allowed:
            found.append(f"{key_of(budget)} allows {allowed} of these {hit} pods to go at once")
    return found


# -- compact -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Compaction:
    """needed: nodes that held the workload, by trial. bound: fewer can never do (sums of resources). left_out: pods that
    even all nodes together do not hold. filled: shares of CPU and memory requested on the nodes of the best trial."""

    nodes: int
    pods: int
    needed: list[int]
    bound: int
    tolerated: int
    left_out: list[tuple[str, str]] = field(default_factory=list)
    filled: dict[str, float] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    @property
    def best(self) -> int:
        return min(self.needed)


class Packing:
    """Packs one workload again and again on different nodes of one cell."""

    def __init__(self, cell: Cell, pods: Sequence[Object]) -> None:
        """pods: the workload, in the order in which it is scheduled."""
        self.cell = cell
        self.nodes = cell.nodes
        self.staying: dict[str, list[PodInfo]] = {}
        for name in self.nodes:
            self.staying[name] = [info for info in cell.remove_node(name) if belongs_to_node(info.pod)]
        self.infos = [PodInfo(unbound(pod)) for pod in pods]
        self._on: dict[str, str] = {}

    def by_size(self) -> list[PodInfo]:
        """The workload with the widest pods first, while every node still has room for them: each as wide as the greatest
        share of all nodes' CPU, memory or other resource that it asks for (first fit decreasing; Ghodsi's dominant share)."""
        self._reset(self.nodes)
        table = self.cell.table
        rows = table.all_rows()
        total = {name: float(table.allocatable[index][rows].sum()) for name, index in table.resources.items()}

        def share(info: PodInfo) -> float:
            asked = info.cls.requests.items()
            return max((value / total[name] for name, value in asked if total.get(name)), default=0.0)

        return sorted(self.infos, key=share, reverse=True)

    def _reset(self, kept: Iterable[str]) -> None:
        for key, node in self._on.items():
            self.cell.take_out(key, node)
        self._on.clear()
        wanted, present = set(kept), set(self.cell.nodes)
        for name in present - wanted:
            self.cell.remove_node(name)
        for name in wanted - present:
            self.cell.add_node(self.nodes[name], self.staying[name])

    async def pack(self, kept: Iterable[str], tolerated: int, order: Sequence[PodInfo] | None = None) -> list[PodInfo]:
        """Place the workload from scratch on the kept nodes: the pods that did not fit.

        tolerated: with more than so many that cannot fit the attempt ends at once.
        """
        self._reset(kept)
        failed: list[PodInfo] = []
        waiting = list(order if order is not None else self.infos)
        while waiting:
            again: list[PodInfo] = []
            for number, info in enumerate(waiting):
                found = self.cell.place(info, explain=False)
                if not isinstance(found, Diagnosis):
                    self._on[info.key] = found
                elif info.cls.affinity or info.cls.spread:
                    again.append(info)  # may fit once others run
                else:
                    failed.append(info)
                    if len(failed) > tolerated:
                        return failed
                if number % SLICE == SLICE - 1:
                    await self.cell.breathe()
            if len(again) == len(waiting):
                return failed + again
            waiting = again
        return failed

    def bound(self) -> int:
        """As many of the largest nodes as have the sum of what is requested: fewer never do."""
        self._reset(self.nodes)
        table = self.cell.table
        rows = table.all_rows()
        most = 1 if self.infos else 0
        for resource in (CPU, MEMORY):
            index = table.column(resource)
            asked = sum(info.cls.requests.get(resource, 0) for info in self.infos)
            free = np.sort(table.allocatable[index][rows] - table.requested[index][rows])[::-1]
            most = max(most, int(np.searchsorted(np.cumsum(free), asked)) + 1 if asked else 0)
        places = np.sort(table.max_pods[rows] - table.pod_count[rows])[::-1]
        most = max(most, int(np.searchsorted(np.cumsum(places), len(self.infos))) + 1 if self.infos else 0)
        return min(most, len(rows))

    def filled(self) -> dict[str, float]:
        """The shares requested of the present nodes' resources."""
        table = self.cell.table
        rows = table.all_rows()
        result = {}
        for resource in (CPU, MEMORY):
            index = table.column(resource)
            total = int(table.allocatable[index][rows].sum())
            result[resource] = float(table.requested[index][rows].sum()) / total if total else 0.0
        return result

    async def fewest(self, order: Sequence[str], least: int, tolerated: int, pods: Sequence[PodInfo] | None = None) -> int:  # fmt: skip
        """The length of the shortest beginning of `order` (node names) that holds the workload.

        Halving finds the place; from there machine after machine is taken until two sizes in a row do not hold.
        """
        low, high = least, len(order)
        while low < high:
            middle = (low + high) // 2
            if len(await self.pack(order[:middle], tolerated, pods)) <= tolerated:
                high = middle
            else:
                low = middle + 1
        misses, size = 0, high - 1
        while size >= least and misses < 2:
            if len(await self.pack(order[:size], tolerated, pods)) <= tolerated:
                high, misses = size, 0
            else:
                misses += 1
            size -= 1
        return high


async def compact(
    cell: Cell, *, nodes: Callable[[Object], bool] | None = None, pods: Callable[[Object], bool] | None = None,
    trials: int = TRIALS, seed: int | None = None, say: Callable[[int, int], None] | None = None, by_size: bool = True,
) -> Compaction:  # fmt: skip
    """Cell compaction: take machines away in a random order, packing the workload from scratch each time, until it no
    longer fits; `trials` times. nodes, pods: which belong to the cell (default: all; pending pods too). seed: makes the
    orders the same each time. say: told (trial, nodes needed) as they are known. by_size: the widest pods are placed
    first, which needs fewest nodes; False for the order in which the scheduler's queue would give them. Pods that not even
    all machines hold are left out, and 0.2 % of the others may be, as in Borg's method. Raises ValueError: no nodes.
    """
    if nodes is not None:
        for name, node in cell.nodes.items():
            if not nodes(node):
                cell.remove_node(name)
    here = set(cell.nodes)
    if not here:
        raise ValueError("no node has these labels")
    workload = [
        pod
        for pod in cell.snapshot.of(PODS)
        if not is_terminal(pod)
        and not belongs_to_node(pod)
        and (not pod["spec"].get("nodeName") or pod["spec"]["nodeName"] in here)
        and (pods is None or pods(pod))
    ]
    packing = Packing(cell, cell.in_queue_order(workload))
    if by_size:
        packing.infos = packing.by_size()
    left_out: list[tuple[str, str]] = []
    without = await packing.pack(packing.nodes, len(packing.infos))
    if without:
        for info in without:
            why = cell.place(info)
            left_out.append((info.key, why.message() if isinstance(why, Diagnosis) else ""))
            if not isinstance(why, Diagnosis):
                cell.take_out(info.key, why)
        gone = {info.key for info in without}
        packing.infos = [info for info in packing.infos if info.key not in gone]
    tolerated = int(len(packing.infos) * PICKY)
    least = packing.bound()
    result = Compaction(len(packing.nodes), len(packing.infos), [], least, tolerated, left_out)
    names = sorted(packing.nodes)
    for trial in range(max(1, trials)):
        chance = random.Random(None if seed is None else seed + trial)
        order = names.copy()
        chance.shuffle(order)
        needed = await packing.fewest(order, least, tolerated)
        if not result.needed or needed < result.best:
            result.kept = order[:needed]
        result.needed.append(needed)
        if say is not None:
            say(trial + 1, needed)
    await packing.pack(result.kept, tolerated)
    result.filled = packing.filled()
    return result
