"""Which CPUs are taken out of those that are free. Pure.

Source: kubernetes pkg/kubelet/cm/cpumanager/cpu_assignment.go; KEP-2902 (distribution over NUMA nodes).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import ceil, sqrt

from longshore.node.kubelet.placement.machine import Level, Machine


class NotEnough(Exception):
    """Fewer CPUs are free than are asked for; the text is upstream's."""


def packed(
    machine: Machine, free: Iterable[int], count: int, *, spread: bool = False, uncore: bool = False
) -> set[int]:
    """`count` CPUs that share as much as can be: whole sockets and NUMA nodes, then whole cores, then single threads.

    Where less is left, there it is taken first. spread: threads of a socket in their order instead of whole cores.
    uncore: whole last-level caches, or parts of one, before cores. Raises NotEnough.
    """
    pick = _Pick(machine, free, count)
    if count > len(pick.free):
        raise NotEnough(f"not enough cpus available to satisfy request: requested={count}, available={len(pick.free)}")
    pick.take_whole(pick.first)
    pick.take_whole(pick.second)
    if uncore:
        pick.take_caches()
    if not spread:
        pick.take_whole("core")
    for cpu in pick.threads(spread)[: pick.need]:
        pick.take({cpu})
    return pick.taken


class _Pick:
    """One choice under way."""

    def __init__(self, machine: Machine, free: Iterable[int], count: int) -> None:
        self.machine, self.free, self.need = machine, set(free), count
        self.taken: set[int] = set()
        self._whole = {level: machine.groups(level) for level in ("socket", "numa", "uncore", "core")}
        # Whatever holds more CPUs comes first: a node of several sockets, or a socket of several nodes.
        numa_first = len(self._whole["socket"]) >= len(self._whole["numa"])
        self.first: Level = "numa" if numa_first else "socket"
        self.second: Level = "socket" if numa_first else "numa"

    def take(self, cpus: set[int]) -> None:
        self.taken |= cpus
        self.free -= cpus
        self.need -= len(cpus)

    def take_whole(self, level: Level) -> None:
        """Groups of which every CPU is free, as long as that much is needed."""
        free, whole = self.machine.groups(level, self.free), self._whole[level]
        for group in self.order(level):
            if len(free[group]) == len(whole[group]) <= self.need:
                self.take(whole[group])

    def take_caches(self) -> None:
        size = len(self.machine.cpus) // max(1, len(self._whole["uncore"]))
        for cache in self.order("uncore"):
            if self.need >= size:
                self.take_whole("uncore")
            if self.need:
                self._take_part(cache)
            if not self.need:
                return

    def _take_part(self, cache: int) -> None:
        """All that is needed from one cache, if it is there."""
        threads = self.machine.cpus_per_core
        mine = self.machine.groups("uncore", self.free).get(cache, set())
        cores = self.machine.groups("core", mine)
        chosen = sorted(c for core in sorted(cores)[: ceil(self.need / threads)] for c in cores[core])
        if self.need % 2 and threads > 1 and len(chosen) > self.need:
            chosen = chosen[:-1]
        if len(chosen) == self.need:
            self.take(set(chosen))

    def order(self, level: Level) -> list[int]:
        """Groups with free CPUs, those with fewer first, within the order of the groups that they are in."""
        if level == self.first:
            return self._sorted(level, self.free)
        outer: Level = {"uncore": "numa", "core": self.second}.get(level, self.first)
        return self._within(outer, level)

    def _within(self, outer: Level, level: Level) -> list[int]:
        groups = self.machine.groups(outer, self.free)
        found = [inner for group in self.order(outer) for inner in self._sorted(level, groups[group])]
        return list(dict.fromkeys(found))

    def _sorted(self, level: Level, cpus: set[int]) -> list[int]:
        free = self.machine.groups(level, self.free)
        return sorted(self.machine.groups(level, cpus), key=lambda group: (len(free[group]), group))

    def threads(self, spread: bool) -> list[int]:
        level: Level = "socket" if spread else "core"
        groups = self.machine.groups(level, self.free)
        return [cpu for group in self.order(level) for cpu in sorted(groups[group])]


def distributed(machine: Machine, free: Iterable[int], count: int, group: int = 1, *, spread: bool = False) -> set[int]:
    """`count` CPUs evenly over as few NUMA nodes as can hold them, `group` CPUs (a core's threads) at a time.

    What does not divide goes where it leaves the nodes' free CPUs most alike. As `packed` where no even way is found.
    Raises NotEnough.
    """
    pick = _Pick(machine, free, count)
    if count % group or count > len(pick.free) or not count:
        return packed(machine, pick.free, count, spread=spread)
    nodes = machine.groups("numa", pick.free)
    order = pick.order("numa")
    per_node = ceil(ceil(len(machine.cpus) / group) / len(machine.groups("numa")))
    groups = count // group
    for size in range(ceil(groups / per_node), min(groups, len(nodes)) + 1):
        best: tuple[float, tuple[int, ...], tuple[int, ...]] | None = None
        for some in combinations(order, size):
            found = _balance({n: len(cpus) for n, cpus in nodes.items()}, some, count, group)
            if found is not None and (best is None or found[0] < best[0]):
                best = (found[0], some, found[1])
        if best is not None:
            return _spread_over(machine, nodes, count, group, best[1], best[2], spread)
    return packed(machine, pick.free, count, spread=spread)


def _share(count: int, nodes: Sequence[int], group: int) -> int:
    """How many CPUs each of these nodes gives at least."""
    return count // len(nodes) // group * group


def _balance(
    free: dict[int, int], nodes: tuple[int, ...], count: int, group: int
) -> tuple[float, tuple[int, ...]] | None:
    """(how unlike the nodes are afterwards, which of them give the rest); None where these nodes cannot."""
    share = _share(count, nodes, group)
    if sum(free[n] // group for n in nodes) * group < count or any(free[n] < share for n in nodes):
        return None
    left = {n: cpus - share * (n in nodes) for n, cpus in free.items()}
    rest = count - share * len(nodes)
    if not rest:
        return _deviation(left), ()
    best: tuple[float, tuple[int, ...]] | None = None
    able = [n for n in nodes if left[n] >= group]
    for size in range(len(able), 0, -1):
        for some in combinations(able, size):
            after = _after_rest(left, some, rest, group)
            if after is not None and (best is None or _deviation(after) < best[0]):
                best = (_deviation(after), some)
    return best


def _after_rest(left: dict[int, int], some: tuple[int, ...], rest: int, group: int) -> dict[int, int] | None:
    if sum(left[n] // group * group for n in some) < rest:
        return None
    after = dict(left)
    while rest > 0:
        for node in some:
            if rest > 0 and after[node] >= group:
                after[node] -= group
                rest -= group
    return after


def _deviation(left: dict[int, int]) -> float:
    mean = round(statistics.fmean(left.values()), 3)
    return round(sqrt(sum((n - mean) ** 2 for n in left.values()) / len(left)), 3)


def _spread_over(
    machine: Machine, nodes: dict[int, set[int]], count: int, group: int, some: tuple[int, ...], rest: tuple[int, ...],
    spread: bool,
) -> set[int]:  # fmt: skip
    taken: set[int] = set()
    for node in some:
        taken |= packed(machine, nodes[node], _share(count, some, group), spread=spread)
    while len(taken) < count:
        for node in rest:
            left = nodes[node] - taken
            if len(taken) < count and len(left) >= group:
                taken |= packed(machine, left, group, spread=spread)
    return taken
