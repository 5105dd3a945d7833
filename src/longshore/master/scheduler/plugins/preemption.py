"""DefaultPreemption: a pod that fits nowhere takes the place of less important ones, doing the least harm.

Source: kubernetes pkg/scheduler/framework/preemption and plugins/defaultpreemption, described behaviour.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from longshore.client.objects import is_deleting, is_terminal, now, seconds
from longshore.client.resources import POD_DISRUPTION_BUDGETS, PODS
from longshore.client.rest import is_not_found
from longshore.client.selectors import matcher
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.scheduler.framework import Code, CycleState, Handle, Plugin, Status
from longshore.master.scheduler.nodes import NodeRow
from longshore.master.scheduler.podinfo import PodInfo

NOT_HELPFUL = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"


Fits = Callable[[list[PodInfo]], bool]  # whether the pod would fit with these pods gone


@dataclass(slots=True)
class Candidate:
    """A node, and who would have to go from it."""

    row: NodeRow
    victims: list[PodInfo]
    violations: int


def start_time(info: PodInfo) -> float:
    return seconds((info.pod.get("status") or {}).get("startTime")) or 2**62


class DefaultPreemption(Plugin):
    """Finds victims, tells them, deletes them, and nominates their node."""

    name = "DefaultPreemption"

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        percentage, least = args.get("minCandidateNodesPercentage"), args.get("minCandidateNodesAbsolute")
        self.percentage = 10 if percentage is None else int(percentage)
        self.least = 100 if least is None else int(least)
        self.budgets = handle.informers.informer(POD_DISRUPTION_BUDGETS)

    async def post_filter(
        self, state: CycleState, pod: PodInfo, refused: dict[str, Status]
    ) -> tuple[str, Status | None]:
        why = self._not_eligible(pod)
        if why:
            return "", Status.unschedulable(f"preemption: {why}")
        candidates, reasons = self._candidates(state, pod, refused)
        if not candidates:
            total = len(refused)
            counts = sorted(f"{n} {reason}" for reason, n in Counter(reasons).items())
            text = f"0/{total} nodes are available: {', '.join(counts)}."
            return "", Status.unschedulable(f"preemption: {text}")
        chosen = best(candidates)
        await self._prepare(pod, chosen)
        return chosen.row.name, None

    def _not_eligible(self, pod: PodInfo) -> str:
        if pod.cls.preemption_policy == "Never":
            return "not eligible due to preemptionPolicy=Never."
        row = self.handle.table.by_name.get(pod.nominated)
        if row is not None and any(is_deleting(v.pod) and v.priority < pod.priority for v in row.pods.values()):
            return "not eligible due to a terminating pod on the nominated node."
        return ""

    def _candidates(
        self, state: CycleState, pod: PodInfo, refused: dict[str, Status]
    ) -> tuple[list[Candidate], list[str]]:
        """Candidates among the nodes that refused, and for the others why they are none."""
        table = self.handle.table
        reasons, possible = [], []
        for name, status in refused.items():
            row = table.by_name.get(name)
            if status.code is Code.UNRESOLVABLE or row is None:
                reasons.append(NOT_HELPFUL)
            else:
                possible.append(row)
        enough = max(self.least, len(possible) * self.percentage // 100)
        random.shuffle(possible)
        found: list[Candidate] = []
        budgets = list(self.budgets.store)
        only_room = self.handle.only_room(state, pod)
        for row in possible:
            if only_room and refused[row.name].plugin == "NodeResourcesFit":
                fits: Fits = self._room(pod, row)
            else:
                fits = lambda gone, row=row: self.handle.fits_with(pod, row, self._promised(pod, row), gone)  # type: ignore[misc]  # noqa: E731
            candidate = self._victims(pod, row, budgets, fits)
            if isinstance(candidate, str):
                reasons.append(candidate)
                continue
            found.append(candidate)
            if len(found) >= enough and any(c.violations == 0 for c in found):
                break
        return found, reasons

    def _promised(self, pod: PodInfo, row: NodeRow) -> list[PodInfo]:
        """Pods at least as important that are nominated to the node."""
        return [n for n in self.handle.nominated(row.name) if n.key != pod.key and n.priority >= pod.priority]

    def _room(self, pod: PodInfo, row: NodeRow) -> Fits:
        """Whether the pod has room once some pods are gone, by arithmetic alone."""
        table, index = self.handle.table, row.index
        promised = self._promised(pod, row)
        places = int(table.max_pods[index] - table.pod_count[index]) - len(promised)
        missing: list[tuple[str, int]] = []
        for name, value in pod.cls.requests.items():
            column = table.column(name)
            free = int(table.allocatable[column, index] - table.requested[column, index])
            free -= sum(p.cls.requests.get(name, 0) for p in promised)
            missing.append((name, value - free))

        def fits(gone: list[PodInfo]) -> bool:
            if places + len(gone) < 1:
                return False
            return all(sum(v.cls.requests.get(name, 0) for v in gone) >= lack for name, lack in missing if lack > 0)

        return fits

    def _victims(self, pod: PodInfo, row: NodeRow, budgets: list[Object], fits: Fits) -> Candidate | str:
        """Who would have to go from a node: as few and as unimportant as possible; or why nobody helps."""
        lower = [v for v in row.pods.values() if v.priority < pod.priority and not is_terminal(v.pod)]
        if not lower:
            return NO_VICTIMS
        if not fits(lower):
            return NO_VICTIMS
        # The most important first: each comes back if there is room, those under a violated budget before the others.
        ordered = sorted(lower, key=lambda v: (-v.priority, start_time(v)))
        violating, rest = split_by_budgets(ordered, budgets)
        victims, violations, gone = [], 0, list(lower)
        for group, counts in ((violating, True), (rest, False)):
            for info in group:
                without = [v for v in gone if v is not info]
                if fits(without):
                    gone = without
                else:
                    victims.append(info)
                    violations += counts
        return Candidate(row, sorted(victims, key=lambda v: (-v.priority, start_time(v))), violations)

    async def _prepare(self, pod: PodInfo, chosen: Candidate) -> None:
        client, scheduler = self.handle.client, pod.cls.scheduler
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": f"{scheduler}: preempting to accommodate a higher priority pod",
        }

        async def evict(victim: PodInfo) -> None:
            if not is_deleting(victim.pod):
                patch = {"status": {"conditions": [{**condition, "lastTransitionTime": now()}]}}
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


def best(candidates: list[Candidate]) -> Candidate:
    """The node where preemption does the least harm."""

    def harm(c: Candidate) -> tuple[float, ...]:
        priorities = [v.priority for v in c.victims] or [-(2**31)]
        highest = max(priorities)
        latest = min((start_time(v) for v in c.victims if v.priority == highest), default=0.0)
        return (c.violations, highest, sum(p + 2**31 for p in priorities), len(c.victims), -latest)

    return min(candidates, key=harm)
