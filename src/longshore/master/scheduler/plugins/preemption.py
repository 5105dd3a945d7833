"""DefaultPreemption: a pod that fits nowhere takes the place of less important ones, doing the least harm.

Source: kubernetes pkg/scheduler/framework/preemption and plugins/defaultpreemption, described behaviour.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from longshore.client.objects import condition, is_deleting, is_terminal, now
from longshore.client.resources import POD_DISRUPTION_BUDGETS, PODS
from longshore.client.rest import is_not_found
from longshore.client.selectors import matcher
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.scheduler.extender import ExtenderError
from longshore.master.scheduler.framework import Code, CycleState, Handle, Plugin, Status
from longshore.master.scheduler.nodes import NodeRow
from longshore.master.scheduler.podinfo import PodInfo, start_time
from longshore.master.scheduler.room import Room

log = logging.getLogger("longshore.scheduler")

PREEMPTED = "PreemptionByScheduler"
NOT_HELPFUL = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"


Fits = Callable[[list[PodInfo]], bool]  # whether the pod would fit with these pods gone


@dataclass(slots=True)
class Candidate:
    """A node, and who would have to go from it (the most important first)."""

    row: NodeRow
    victims: list[PodInfo]
    violations: int
    harm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        priorities = [v.priority for v in self.victims] or [-(2**31)]
        highest = max(priorities)
        latest = min((start_time(v.pod) for v in self.victims if v.priority == highest), default=0.0)
        self.harm = (self.violations, highest, sum(p + 2**31 for p in priorities), len(self.victims), -latest)


class Known:
    """What is known of the nodes for the pods of one class, as long as a node and the budgets do not change."""

    __slots__ = ("_count", "_order", "budgets", "found", "generation", "harmless", "reasons", "told", "untried")

    def __init__(self, rows: list[int], generation: int, budgets: int) -> None:
        random.shuffle(rows)
        self.untried = rows
        self.generation = generation
        self.budgets = budgets
        self.found: dict[int, Candidate] = {}
        self._order: list[tuple[tuple[float, ...], int, int, Candidate]] = []  # a heap, with some that are no more
        self._count = 0
        self.harmless = 0  # candidates that break no budget
        self.told: dict[int, str] = {}  # why a row is none
        self.reasons: Counter[str] = Counter()

    def renew(self, rows: list[int], generation: int) -> None:
        """Some rows have changed."""
        for index in rows:
            candidate = self.found.pop(index, None)
            if candidate is not None:
                self.harmless -= not candidate.violations
            reason = self.told.pop(index, None)
            if reason is not None:
                self.reasons[reason] -= 1
        self.untried.extend(rows)
        self.generation = generation

    def learn(self, index: int, what: Candidate | str) -> None:
        if isinstance(what, str):
            self.told[index] = what
            self.reasons[what] += 1
        else:
            self.found[index] = what
            self.harmless += not what.violations
            self._count += 1
            if len(self._order) > 2 * len(self.found) + 64:
                self._order = [entry for entry in self._order if self.found.get(entry[2]) is entry[3]]
                heapify(self._order)
            heappush(self._order, (what.harm, self._count, index, what))

    def best(self) -> Candidate | None:
        """The candidate of the least harm."""
        order = self._order
        while order and self.found.get(order[0][2]) is not order[0][3]:
            heappop(order)
        return order[0][3] if order else None


class DefaultPreemption(Plugin):
    """Finds victims, tells them, deletes them, and nominates their node."""

    name = "DefaultPreemption"

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        percentage, least = args.get("minCandidateNodesPercentage"), args.get("minCandidateNodesAbsolute")
        self.percentage = 10 if percentage is None else int(percentage)
        self.least = 100 if least is None else int(least)
        self.budgets = handle.informers.informer(POD_DISRUPTION_BUDGETS)
        self._budget_changes = 0
        self.budgets.on(self._budget_changed, lambda _old, new: self._budget_changed(new), self._budget_changed)

    def _budget_changed(self, _budget: Object) -> None:
        self._budget_changes += 1

    async def post_filter(
        self, state: CycleState, pod: PodInfo, refused: dict[str, Status]
    ) -> tuple[str, Status | None]:
        why = self._not_eligible(pod, refused)
        if why:
            return "", Status.unschedulable(f"preemption: {why}")
        chosen, reasons = self.choose(state, pod, refused)
        if chosen is not None and self.handle.preempters(pod):
            try:
                left = await self._extenders_say(pod, list(self._look(state, pod, refused).found.values()))
            except ExtenderError as error:
                return "", Status.error(str(error))
            chosen = min(left, key=lambda c: c.harm) if left else None
        if chosen is None:
            total = len(refused)
            counts = sorted(f"{n} {reason}" for reason, n in reasons.items() if n)
            text = f"0/{total} nodes are available: {', '.join(counts)}."
            return "", Status.unschedulable(f"preemption: {text}")
        await self._prepare(pod, chosen)
        return chosen.row.name, None

    async def _extenders_say(self, pod: PodInfo, candidates: list[Candidate]) -> list[Candidate]:
        """The candidates that the extenders leave, with the victims that they choose. Raises ExtenderError."""
        for extender in self.handle.preempters(pod):
            try:
                left = await extender.preempt(pod, {c.row.name: (c.victims, c.violations) for c in candidates})
            except ExtenderError as error:
                if not extender.ignorable:
                    raise
                log.warning("%s is ignored: %s", extender.prefix, error)
                continue
            known = {c.row.name: c.row for c in candidates}
            candidates = []
            for name, (uids, violations) in left.items():
                by_uid = {p.uid: p for p in known[name].pods.values()} if name in known else {}
                victims = [by_uid[uid] for uid in uids if uid in by_uid]
                if name not in known or len(victims) != len(uids):
                    raise ExtenderError(f"extender: {extender.prefix} claims to preempt pods that are not on {name}")
                candidates.append(Candidate(known[name], victims, violations))
            if not candidates:
                break
        return candidates

    def _not_eligible(self, pod: PodInfo, refused: dict[str, Status]) -> str:
        if pod.cls.preemption_policy == "Never":
            return "not eligible due to preemptionPolicy=Never."
        row = self.handle.table.by_name.get(pod.nominated)
        status = refused.get(pod.nominated)
        if row is None or (status is not None and status.code is Code.UNRESOLVABLE):
            return ""  # what was promised is no place for the pod any more
        if any(v.priority < pod.priority and is_leaving_for_another(v.pod) for v in row.pods.values()):
            return "not eligible due to a terminating pod on the nominated node."
        return ""

    def choose(
        self, state: CycleState, pod: PodInfo, refused: dict[str, Status]
    ) -> tuple[Candidate | None, dict[str, int]]:
        """Where preemption does the least harm among enough nodes that were tried; by reason, how many are no help."""
        known = self._look(state, pod, refused)
        return known.best(), known.reasons

    def _look(self, state: CycleState, pod: PodInfo, refused: dict[str, Status]) -> Known:
        """What preemption would do on enough nodes.

        What was found out for a pod holds for its equals, until a node or a budget changes.
        """
        table = self.handle.table
        table.touch(pod.nominated)  # what is promised to the pod itself is not in its way there
        only_room = self.handle.only_room(state, pod)
        shared = only_room and state.only is None
        key = (id(self), "preemption")
        known: Known | None = pod.cls.cache.get(key) if shared else None
        if known is None or known.budgets != self._budget_changes:
            known = Known(table.all_rows().tolist(), table.generation, self._budget_changes)
            if shared:
                pod.cls.cache[key] = known
        elif known.generation != table.generation:
            known.renew(np.nonzero(table.changed > known.generation)[0].tolist(), table.generation)
        enough = max(self.least, len(refused) * self.percentage // 100)
        budgets = list(self.budgets.store)
        while known.untried and (len(known.found) < enough or not known.harmless):
            index = known.untried.pop()
            row = table.rows[index]
            status = refused.get(row.name) if row is not None else None
            if row is None or status is None or index in known.found or index in known.told:
                continue
            known.learn(index, self._try(row, pod, status, budgets, only_room))
        table.touch(pod.nominated)
        return known

    def _try(
        self, row: NodeRow, pod: PodInfo, status: Status, budgets: list[Object], only_room: bool
    ) -> Candidate | str:
        """Who would have to go from a node that refused the pod; or why that is no help."""
        if status.code is Code.UNRESOLVABLE:
            return NOT_HELPFUL
        promised = [n for n in self.handle.nominated(row.name) if n.key != pod.key and n.priority >= pod.priority]
        if only_room and status.plugin == "NodeResourcesFit":
            return self._in_room(row, pod, budgets, Room(self.handle.table, pod, row, promised))
        return self._in_trials(row, pod, budgets, lambda gone: self.handle.fits_with(pod, row, promised, gone))

    @staticmethod
    def _lower(row: NodeRow, pod: PodInfo, budgets: list[Object]) -> list[list[PodInfo]]:
        """Who may go from a node: those whose end breaks a budget, the others; the most important of each first."""
        lower = [v for v in row.pods.values() if v.priority < pod.priority and not is_terminal(v.pod)]
        if len(lower) > 1:
            lower.sort(key=lambda v: (-v.priority, start_time(v.pod)))
        return list(split_by_budgets(lower, budgets)) if budgets else [[], lower]

    def _in_room(self, row: NodeRow, pod: PodInfo, budgets: list[Object], room: Room) -> Candidate | str:
        """Who would have to go from a node where only room matters: as few and as unimportant as possible."""
        groups = self._lower(row, pod, budgets)
        found = room.victims(groups) if any(groups) else None
        return NO_VICTIMS if found is None else Candidate(row, _ordered(found[0]), found[1])

    def _in_trials(self, row: NodeRow, pod: PodInfo, budgets: list[Object], fits: Fits) -> Candidate | str:
        """The same on a node where the filters must tell what fits: each pod comes back if there is room."""
        groups = self._lower(row, pod, budgets)
        gone = [v for group in groups for v in group]
        if not gone or not fits(gone):
            return NO_VICTIMS
        victims, violations = [], 0
        for number, group in enumerate(groups):
            for info in group:
                without = [v for v in gone if v is not info]
                if fits(without):
                    gone = without
                else:
                    victims.append(info)
                    violations += number == 0
        return Candidate(row, _ordered(victims), violations)

    async def _prepare(self, pod: PodInfo, chosen: Candidate) -> None:
        client, scheduler = self.handle.client, pod.cls.scheduler
        mark = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": PREEMPTED,
            "message": f"{scheduler}: preempting to accommodate a higher priority pod",
        }

        async def evict(victim: PodInfo) -> None:
            if not is_deleting(victim.pod):
                patch = {"status": {"conditions": [{**mark, "lastTransitionTime": now()}]}}
                try:
                    await client.patch(
                        PODS, victim.name, patch, victim.namespace, kind="strategic", subresource="status"
                    )
                    await client.delete(PODS, victim.name, victim.namespace, uid=victim.uid)
                except StatusError as error:
                    if not is_not_found(error):
                        raise
            message = f"Preempted by pod {pod.uid} on node {chosen.row.name}"
            self.handle.event(victim.pod, "Normal", "Preempted", message, action="Preempting", related=pod.pod)

        await asyncio.gather(*(evict(v) for v in chosen.victims))
        # Less important pods that were promised the node look for another one.
        for other in self.handle.nominated(chosen.row.name):
            if other.priority < pod.priority:
                patch = {"status": {"nominatedNodeName": None}}
                try:
                    await client.patch(PODS, other.name, patch, other.namespace, subresource="status")
                except StatusError as error:
                    if not is_not_found(error):
                        raise


def is_leaving_for_another(pod: Object) -> bool:
    """Whether a pod ends because of an earlier preemption."""
    mark = condition(pod, "DisruptionTarget") or {}
    return is_deleting(pod) and (mark.get("status"), mark.get("reason")) == ("True", PREEMPTED)


def split_by_budgets(pods: list[PodInfo], budgets: list[Object]) -> tuple[list[PodInfo], list[PodInfo]]:
    """(pods whose eviction would break a disruption budget, the others), each in order."""
    left = [int((b.get("status") or {}).get("disruptionsAllowed") or 0) for b in budgets]
    broken: list[PodInfo] = []
    fine: list[PodInfo] = []
    for info in pods:
        violated = False
        for index, budget in enumerate(budgets):
            if budget["metadata"]["namespace"] != info.namespace or not info.cls.labels:
                continue
            selector = budget["spec"].get("selector")
            if not selector or not matcher(selector)(info.cls.labels):
                continue
            if info.name in ((budget.get("status") or {}).get("disruptedPods") or {}):
                continue
            left[index] -= 1
            violated = violated or left[index] < 0
        (broken if violated else fine).append(info)
    return broken, fine


def _ordered(victims: list[PodInfo]) -> list[PodInfo]:
    return sorted(victims, key=lambda v: (-v.priority, start_time(v.pod))) if len(victims) > 1 else victims
