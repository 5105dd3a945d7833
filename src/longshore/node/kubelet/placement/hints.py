"""Hints: on which NUMA nodes something could be, and the one place on which all agree best. Pure.

A place is a bit mask of NUMA nodes. Source: kubernetes pkg/kubelet/cm/topologymanager (policy*.go, bitmask, numa_info.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

NONE, BEST_EFFORT, RESTRICTED, SINGLE_NUMA_NODE = "none", "best-effort", "restricted", "single-numa-node"
POLICIES = (NONE, BEST_EFFORT, RESTRICTED, SINGLE_NUMA_NODE)


class Hint(NamedTuple):
    """mask: where (None: anywhere). preferred: no smaller place would do."""

    mask: int | None
    preferred: bool


#: resource -> the places it could have (None: it does not mind; none of them: it cannot be had)
Hints = Mapping[str, Sequence[Hint] | None]
ANYWHERE, NOWHERE = Hint(None, True), Hint(None, False)


def mask_of(nodes: Iterable[int]) -> int:
    return sum(1 << node for node in set(nodes))


def nodes_of(mask: int) -> list[int]:
    """The nodes of a mask, in order."""
    return [node for node in range(mask.bit_length()) if mask >> node & 1]


def masks(nodes: Iterable[int]) -> Iterator[int]:
    """Every mask of some of these nodes, those of few first."""
    numbers = sorted(nodes)
    for size in range(1, len(numbers) + 1):
        yield from map(mask_of, combinations(numbers, size))


def prefer(found: Iterable[int], smallest: int) -> list[Hint]:
    """Masks as hints, those of the smallest size preferred."""
    return [Hint(mask, mask.bit_count() == smallest) for mask in found]


def narrower(mask: int, other: int) -> bool:
    """Fewer nodes, or as many with lower numbers."""
    return (mask.bit_count(), mask) < (other.bit_count(), other)


@dataclass(frozen=True, slots=True)
class Merger:
    """A topology manager's policy. nodes: of the machine. distances: node -> to each node; None: not looked at."""

    policy: str
    nodes: tuple[int, ...]
    distances: Mapping[int, Sequence[int]] | None = None

    def merge(self, providers: Iterable[Hints]) -> tuple[Hint, bool]:
        """(the best place for all, whether the pod may be there)."""
        sides = list(_sides(providers))
        if self.policy == SINGLE_NUMA_NODE:
            sides = [[h for h in side if h.preferred and (h.mask is None or h.mask.bit_count() == 1)] for side in sides]
        everywhere = mask_of(self.nodes)
        best = self._best(sides, everywhere)
        if self.policy == SINGLE_NUMA_NODE and best.mask == everywhere:
            best = Hint(None, best.preferred)
        return best, best.preferred or self.policy == BEST_EFFORT

    def _best(self, sides: list[list[Hint]], everywhere: int) -> Hint:
        wanted = max((min(_sizes(side), default=0) for side in sides), default=0)
        best: Hint | None = None
        for candidate in _merged(sides, everywhere):
            if candidate.mask and (best is None or self._better(candidate, best, wanted)):
                best = candidate
        return best or Hint(everywhere, False)

    def _better(self, new: Hint, old: Hint, wanted: int) -> bool:
        """wanted: the number of nodes that the greediest resource needs at least: what is not preferred, comes near it."""
        assert new.mask is not None and old.mask is not None
        if new.preferred != old.preferred:
            return new.preferred
        if new.preferred:
            return self._fitter(new.mask, old.mask)
        size, had = new.mask.bit_count(), old.mask.bit_count()
        if had > wanted:
            return self._fitter(new.mask, old.mask)
        if size > wanted:
            return False
        return self._fitter(new.mask, old.mask) if size == had else size > had

    def _fitter(self, new: int, old: int) -> bool:
        if self.distances is None or self.policy == SINGLE_NUMA_NODE or new.bit_count() != old.bit_count():
            return narrower(new, old)
        return (self._distance(new), new) < (self._distance(old), old)

    def _distance(self, mask: int) -> float:
        assert self.distances is not None
        nodes = nodes_of(mask)
        return sum(self.distances[a][b] for a in nodes for b in nodes) / len(nodes) ** 2


def _sides(providers: Iterable[Hints]) -> Iterator[list[Hint]]:
    for hints in providers:
        if not hints:
            yield [ANYWHERE]
        for found in hints.values():
            yield [ANYWHERE] if found is None else list(found) or [NOWHERE]


def _sizes(side: list[Hint]) -> Iterator[int]:
    return (h.mask.bit_count() for h in side if h.mask is not None)


def _merged(sides: list[list[Hint]], everywhere: int) -> Iterator[Hint]:
    """What one hint of each side come to together, for every choice; choices that come to the same are followed once.

    Upstream walks all of them, which are hundreds to the power of the number of sides on a large machine.
    """
    # (common nodes, the first mask there was, preferred, and all the masks alike)
    states: set[tuple[int, int | None, bool]] = {(everywhere, None, True)}
    for side in sides:
        states = {
            (
                common if hint.mask is None else common & hint.mask,
                first if hint.mask is None or first is not None else hint.mask,
                preferred and hint.preferred and (hint.mask is None or first is None or hint.mask == first),
            )
            for common, first, preferred in states
            for hint in side
        }
    return (Hint(common, preferred) for common, _, preferred in states)
