"""Horizontal autoscaling arithmetic: replicas from figures, and what behaviour allows of a change. Pure functions.

Source: kubernetes pkg/controller/podautoscaler (replica_calculator, horizontal), described behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from longshore.client.objects import condition, is_deleting, phase, seconds
from longshore.client.store import Object

MAX = 2**31 - 1
DEFAULT_UP = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ],
}
DEFAULT_DOWN = {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}


@dataclass(frozen=True, slots=True)
class Figure:
    """A pod's metric: value in thousandths, when it was taken (seconds since the epoch), over how long (seconds)."""

    value: int
    at: float = 0.0
    window: float = 60.0


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far usage may be off its target before anything is done, as fractions."""

    up: float = 0.1
    down: float = 0.1

    def holds(self, ratio: float) -> bool:
        return 1 - self.down <= ratio <= 1 + self.up


@dataclass(frozen=True, slots=True)
class Groups:
    """Pods of a target by what can be said of them."""

    ready: set[str]
    unready: set[str]
    missing: set[str]
    ignored: set[str]


def group(
    pods: list[Object], figures: Mapping[str, Figure], resource: str, at: float, init: float, delay: float
) -> Groups:
    """Sort pods. at: now; init: the CPU initialization period, delay: the initial readiness delay (seconds)."""
    groups = Groups(set(), set(), set(), set())
    for pod in pods:
        name = pod["metadata"]["name"]
        if is_deleting(pod) or phase(pod) == "Failed":
            groups.ignored.add(name)
        elif phase(pod) == "Pending":
            groups.unready.add(name)
        elif name not in figures:
            groups.missing.add(name)
        elif resource == "cpu" and _still_starting(pod, figures[name], at, init, delay):
            groups.unready.add(name)
        else:
            groups.ready.add(name)
    return groups


def _still_starting(pod: Object, figure: Figure, at: float, init: float, delay: float) -> bool:
    ready = condition(pod, "Ready")
    started = seconds((pod.get("status") or {}).get("startTime"))
    if ready is None or not started:
        return True
    moved = seconds(ready.get("lastTransitionTime"))
    if started + init > at:
        return ready.get("status") == "False" or figure.at < moved + figure.window
    return ready.get("status") == "False" and started + delay > moved


class NoFiguresError(Exception):
    """The figures say nothing about these pods; str() is upstream's message."""


def from_ratio(
    current: int,
    groups: Groups,
    figures: Mapping[str, Figure],
    requests: Mapping[str, int] | None,
    target: int,
    tolerance: Tolerance,
) -> tuple[int, int, int]:
    """(replicas, present use in the target's unit, present use a pod in thousandths) for a target per pod.

    requests: in thousandths by pod for a utilization target (whole percent); None for a target in thousandths. Whole numbers
    are cut off as upstream's are, which decides at the edges of tolerance. Raises NoFiguresError.
    """
    counted = {n: f.value for n, f in figures.items() if n not in groups.unready and n not in groups.ignored}
    if not counted:
        raise NoFiguresError("did not receive metrics for targeted pods (pods might be unready)")

    def use(values: Mapping[str, int]) -> tuple[int, int]:
        if requests is None:
            average = sum(values.values()) // len(values)
            return average, average
        known = [n for n in values if n in requests]
        asked = sum(requests[n] for n in known)
        if not asked:
            raise NoFiguresError("no metrics returned matched known pods")
        total = sum(values[n] for n in known)
        return total * 100 // asked, total // len(known)

    present, average = use(counted)
    ratio = present / target
    rebalance_unready = bool(groups.unready) and ratio > 1
    if not rebalance_unready and not groups.missing:
        wanted = current if tolerance.holds(ratio) else math.ceil(ratio * len(groups.ready))
        return wanted, present, average
    for name in groups.missing:
        if ratio < 1:
            # Judge a missing one at its target, or at its whole request where the target is below that.
            counted[name] = target if requests is None else requests.get(name, 0) * max(100, target) // 100
        elif ratio > 1:
            counted[name] = 0
    if rebalance_unready:
        counted |= dict.fromkeys(groups.unready, 0)
    fresh = use(counted)[0] / target
    turned = (ratio < 1 < fresh) or (ratio > 1 > fresh)
    wanted = current if tolerance.holds(fresh) or turned else math.ceil(fresh * len(counted))
    if (fresh < 1 and wanted > current) or (fresh > 1 and wanted < current):
        wanted = current
    return wanted, present, average


def from_total(current: int, ready: int, usage: float, target: float, tolerance: Tolerance) -> int:
    """Replicas for one figure about the whole target (object and external metrics with a plain value)."""
    ratio = usage / target if target else 0.0
    if current == 0:
        return math.ceil(ratio)
    if tolerance.holds(ratio):
        return current
    return math.ceil(ratio * ready)


def from_average(current: int, usage: float, target: float, tolerance: Tolerance) -> int:
    """Replicas for one figure that is to be shared evenly (an average value per pod). current: the status's replicas."""
    if not target:
        return current
    ratio = usage / (target * current) if current else math.inf
    if tolerance.holds(ratio):
        return current
    return math.ceil(usage / target)


@dataclass(slots=True)
class Change:
    """A change of size that was made: by how much, and when."""

    amount: int
    at: float


def period_start(rules: Object, current: int, up: list[Change], down: list[Change], at: float, policy: Object) -> int:
    """How many replicas there were when a policy's period began."""
    begin = at - int(policy["periodSeconds"])
    added = sum(c.amount for c in up if c.at > begin)
    removed = sum(c.amount for c in down if c.at > begin)
    return current - added + removed


def up_limit(rules: Object, current: int, up: list[Change], down: list[Change], at: float) -> int:
    """The most replicas that scaling up may reach now."""
    if rules.get("selectPolicy") == "Disabled":
        return current
    results = []
    for policy in rules.get("policies") or ():
        start = period_start(rules, current, up, down, at, policy)
        value = int(policy["value"])
        results.append(start + value if policy["type"] == "Pods" else math.ceil(start * (1 + value / 100)))
    if not results:
        return MAX
    return min(results) if rules.get("selectPolicy") == "Min" else max(results)


def down_limit(rules: Object, current: int, up: list[Change], down: list[Change], at: float) -> int:
    """The fewest replicas that scaling down may reach now."""
    if rules.get("selectPolicy") == "Disabled":
        return current
    results = []
    for policy in rules.get("policies") or ():
        start = period_start(rules, current, up, down, at, policy)
        value = int(policy["value"])
        results.append(start - value if policy["type"] == "Pods" else int(start * (1 - value / 100)))
    if not results:
        return 0
    return max(results) if rules.get("selectPolicy") == "Min" else min(results)


def plain_limits(current: int, least: int, most: int, wanted: int) -> tuple[int, str, str]:
    """(replicas, reason, message) for an autoscaler without behaviour: at most twice as many as now, or four."""
    limit = max(2 * current, 4)
    if wanted < least:
        return least, "TooFewReplicas", "the desired replica count is less than the minimum replica count"
    if wanted > min(limit, most):
        if most > limit:
            text = "the desired replica count is increasing faster than the maximum scale rate"
            return limit, "ScaleUpLimit", text
        return most, "TooManyReplicas", "the desired replica count is more than the maximum replica count"
    return wanted, "DesiredWithinRange", "the desired count is within the acceptable range"
