"""Structured allocation of devices: which devices of a node can serve some claims together.

A depth-first search over the claims' requests, with the constraints, counters and shared capacities kept up to date on
the way down and back. Source: k8s.io/dynamic-resource-allocation structured, described behaviour.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from longshore.client.objects import now, tolerates
from longshore.client.store import Object
from longshore.machinery.quantity import Quantity, parse
from longshore.master.scheduler.devices import Device, DeviceID, Pool, amounts, selected
from longshore.master.scheduler.nodes import NodeRow

MOST_DEVICES = 32  # results of one claim (resource/v1 AllocationResultsMaxSize)
MOST_STEPS = 20_000  # devices tried in one search: what takes longer would hold up every other pod


class NotAllocatable(Exception):
    """The claims cannot be had together, whatever the node; str() says why."""


@dataclass(slots=True)
class Taken:
    """What all claims together hold now."""

    devices: set[DeviceID] = field(default_factory=set)
    capacity: dict[DeviceID, dict[str, int]] = field(default_factory=dict)  # of shared devices, nano units

    def add(self, allocation: Object) -> None:
        """Count one claim's allocation in."""
        for result in (allocation.get("devices") or {}).get("results") or ():
            if result.get("adminAccess"):
                continue
            device = (result["driver"], result["pool"], result["device"])
            if result.get("shareID"):
                _count(self.capacity.setdefault(device, {}), _nanos(result.get("consumedCapacity") or {}), 1)
            else:
                self.devices.add(device)


def _nanos(capacities: Object) -> dict[str, int]:
    return {name: parse(str(value)).nanos for name, value in capacities.items()}


def _count(total: dict[str, int], more: dict[str, int], sign: int) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + sign * value


@dataclass(slots=True)
class Choice:
    """One way to serve a request: the request itself, or one of its alternatives."""

    name: str  # "request" or "request/alternative"
    spec: Object
    class_spec: Object


@dataclass(slots=True)
class Pick:
    """A device given to a request."""

    claim: int
    choice: Choice
    device: Device
    consumed: dict[str, Quantity]


class Constraint:
    """matchAttribute or distinctAttribute over some of a claim's requests."""

    def __init__(self, spec: Object) -> None:
        self.requests = frozenset(spec.get("requests") or ())
        self.match: str = spec.get("matchAttribute") or ""
        self.distinct: str = spec.get("distinctAttribute") or ""
        self.values: list[Any] = []

    def concerns(self, name: str) -> bool:
        return not self.requests or name in self.requests or name.partition("/")[0] in self.requests

    def add(self, device: Device) -> bool:
        """Take a device in; False (and nothing changed) when it breaks the constraint."""
        value = device.attribute(self.match or self.distinct)
        if value is None:
            return False
        same = [v for v in self.values if type(v) is type(value) and v == value]
        if (self.match and self.values and not same) or (self.distinct and same):
            return False
        self.values.append(value)
        return True

    def remove(self) -> None:
        self.values.pop()


def choices_of(request: Object, classes: Callable[[str], Object | None]) -> list[Choice]:
    """The ways to serve a request. Raises NotAllocatable when a class is missing."""
    plain = request.get("exactly")
    found = []
    for name, spec in (
        [(request["name"], plain)]
        if plain is not None
        else [(f"{request['name']}/{s['name']}", s) for s in request.get("firstAvailable") or ()]
    ):
        known = classes(spec["deviceClassName"])
        if known is None:
            raise NotAllocatable(f"request {name}: device class {spec['deviceClassName']} does not exist")
        found.append(Choice(name, spec, known.get("spec") or {}))
    return found


def tolerated(device: Device, tolerations: Iterable[Object]) -> bool:
    """Whether every taint that keeps new users away is tolerated."""
    return all(
        tolerates(tolerations, taint) for taint in device.taints() if taint.get("effect") in ("NoSchedule", "NoExecute")
    )


def consumption(device: Device, spec: Object) -> dict[str, Quantity] | None:
    """What a request takes of a shared device's capacities; None when the policy does not allow that much."""
    asked = (spec.get("capacity") or {}).get("requests") or {}
    result: dict[str, Quantity] = {}
    for name in asked:
        if device.capacity(name) is None:
            return None
    for name, capacity in (device.spec.get("capacity") or {}).items():
        whole = parse(str(capacity["value"]))
        policy = capacity.get("requestPolicy") or {}
        if name in asked:
            wanted = parse(str(asked[name]))
        elif "default" in policy:
            wanted = parse(str(policy["default"]))
        else:
            wanted = whole
        rounded = _by_policy(wanted, policy)
        if rounded is None or rounded.nanos > whole.nanos:
            return None
        result[name] = rounded
    return result


def _by_policy(wanted: Quantity, policy: Object) -> Quantity | None:
    """The least amount that the policy knows and that is enough."""
    if policy.get("validValues"):
        enough = [q for v in policy["validValues"] if (q := parse(str(v))).nanos >= wanted.nanos]
        return min(enough, key=lambda q: q.nanos) if enough else None
    limits = policy.get("validRange")
    if limits:
        least = parse(str(limits["min"]))
        nanos = max(wanted.nanos, least.nanos)
        if limits.get("step"):
            step = parse(str(limits["step"])).nanos
            nanos = least.nanos - (least.nanos - nanos) // step * step
        if limits.get("max") and nanos > parse(str(limits["max"])).nanos:
            return None
        return Quantity(nanos, wanted.format)
    return wanted


class Allocator:
    """One search: claims that have no devices yet, on one node."""

    def __init__(
        self,
        claims: list[Object],
        classes: Callable[[str], Object | None],
        pools: list[Pool],
        taken: Taken,
    ) -> None:
        self.claims, self.pools = claims, pools
        self.used = set(taken.devices)
        self.shared = {device: dict(amount) for device, amount in taken.capacity.items()}
        self.counters = {(p.driver, p.name, s): dict(values) for p in pools for s, values in p.counters.items()}
        for pool in pools:
            for device in pool.devices:
                if device.id in self.used or device.id in self.shared:
                    self._consume(device, 1)
        self.picks: list[Pick] = []
        self.constraints = [
            [Constraint(c) for c in claim["spec"].get("devices", {}).get("constraints") or ()] for claim in claims
        ]
        self.requests = [
            (index, choices_of(request, classes))
            for index, claim in enumerate(claims)
            for request in (claim["spec"].get("devices") or {}).get("requests") or ()
        ]
        self._fits: dict[tuple[int, DeviceID], bool] = {}
        self._steps = 0

    def allocate(self, node: NodeRow) -> list[Object] | None:
        """An allocation for each claim, or None. Raises NotAllocatable, SelectorError."""
        if not self._request(0):
            return None
        return [self._result(index, node) for index in range(len(self.claims))]

    def _request(self, number: int) -> bool:
        if number == len(self.requests):
            return True
        claim, choices = self.requests[number]
        for choice in choices:
            if choice.spec.get("allocationMode") == "All":
                if self._all(claim, choice, number):
                    return True
            elif self._some(claim, choice, number, int(choice.spec.get("count") or 1), self._candidates(choice), 0):
                return True
        return False

    def _candidates(self, choice: Choice) -> list[Device]:
        return [d for pool in self.pools if pool.complete for d in pool.devices if self._matches(choice, d)]

    def _matches(self, choice: Choice, device: Device) -> bool:
        key = (id(choice), device.id)
        known = self._fits.get(key)
        if known is None:
            known = self._fits[key] = selected(device, choice.class_spec.get("selectors") or ()) and selected(
                device, choice.spec.get("selectors") or ()
            )
        return known

    def _some(self, claim: int, choice: Choice, number: int, left: int, candidates: list[Device], start: int) -> bool:
        """Give `left` of the candidates from `start` on to a request, and serve those after it."""
        if left == 0:
            return self._request(number + 1)
        for index in range(start, len(candidates) - left + 1):
            if self._take(claim, choice, candidates[index]):
                # Those before this one were tried: only those after it make new combinations.
                if self._some(claim, choice, number, left - 1, candidates, index + 1):
                    return True
                self._give_back()
        return False

    def _all(self, claim: int, choice: Choice, number: int) -> bool:
        wanted = []
        for pool in self.pools:
            matching = [d for d in pool.devices if self._matches(choice, d)]
            if matching and not pool.complete:
                return False  # the pool is being changed: what all of it is nobody knows
            wanted.extend(matching)
        if not wanted:
            return False
        taken = 0
        for device in wanted:
            if not self._take(claim, choice, device):
                break
            taken += 1
        if taken == len(wanted) and self._request(number + 1):
            return True
        for _ in range(taken):
            self._give_back()
        return False

    def _take(self, claim: int, choice: Choice, device: Device) -> bool:
        admin = bool(choice.spec.get("adminAccess"))
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise NotAllocatable("timed out trying to allocate devices")
        if sum(p.claim == claim for p in self.picks) >= MOST_DEVICES:
            return False
        if not tolerated(device, choice.spec.get("tolerations") or ()):
            return False
        consumed: dict[str, Quantity] = {}
        if any(p.device.id == device.id and (p.claim == claim or not device.shared()) for p in self.picks):
            return False
        if not admin:
            if device.id in self.used:
                return False
            if device.shared():
                found = consumption(device, choice.spec)
                if found is None or not self._has_room(device, found):
                    return False
                consumed = found
            elif device.id in self.shared or not self._counters_allow(device):
                return False
            if device.shared() and device.id not in self.shared and not self._counters_allow(device):
                return False
        added: list[Constraint] = []
        for constraint in self.constraints[claim]:
            if constraint.concerns(choice.name):
                if not constraint.add(device):
                    for other in added:
                        other.remove()
                    return False
                added.append(constraint)
        if not admin:
            if device.shared():
                if device.id not in self.shared:
                    self._consume(device, 1)
                _count(self.shared.setdefault(device.id, {}), {n: q.nanos for n, q in consumed.items()}, 1)
            else:
                self.used.add(device.id)
                self._consume(device, 1)
        self.picks.append(Pick(claim, choice, device, consumed))
        return True

    def _give_back(self) -> None:
        pick = self.picks.pop()
        for constraint in self.constraints[pick.claim]:
            if constraint.concerns(pick.choice.name):
                constraint.remove()
        if pick.choice.spec.get("adminAccess"):
            return
        device = pick.device
        if device.shared():
            _count(self.shared[device.id], {n: q.nanos for n, q in pick.consumed.items()}, -1)
            if not any(self.shared[device.id].values()):
                del self.shared[device.id]
                self._consume(device, -1)
        else:
            self.used.discard(device.id)
            self._consume(device, -1)

    def _has_room(self, device: Device, wanted: dict[str, Quantity]) -> bool:
        held = self.shared.get(device.id, {})
        return all(
            held.get(name, 0) + quantity.nanos <= parse(str((device.capacity(name) or {})["value"])).nanos
            for name, quantity in wanted.items()
        )

    def _counters_allow(self, device: Device) -> bool:
        for entry in device.spec.get("consumesCounters") or ():
            have = self.counters.get((device.id[0], device.id[1], entry["counterSet"]), {})
            if any(have.get(name, 0) < value for name, value in amounts(entry.get("counters") or {}).items()):
                return False
        return True

    def _consume(self, device: Device, sign: int) -> None:
        for entry in device.spec.get("consumesCounters") or ():
            have = self.counters.setdefault((device.id[0], device.id[1], entry["counterSet"]), {})
            _count(have, amounts(entry.get("counters") or {}), -sign)

    # -- what is written into the claim

    def _result(self, index: int, node: NodeRow) -> Object:
        picks = [p for p in self.picks if p.claim == index]
        results = []
        for pick in picks:
            spec, device = pick.choice.spec, pick.device
            entry: Object = dict(zip(("driver", "pool", "device"), device.id, strict=True))
            entry["request"] = pick.choice.name
            if spec.get("adminAccess"):
                entry["adminAccess"] = True
            if spec.get("tolerations"):
                entry["tolerations"] = spec["tolerations"]
            if device.shared() and not spec.get("adminAccess"):
                entry["shareID"] = str(uuid.uuid4())
                entry["consumedCapacity"] = {name: str(quantity) for name, quantity in pick.consumed.items()}
            for name in ("bindingConditions", "bindingFailureConditions"):
                if device.spec.get(name):
                    entry[name] = device.spec[name]
            results.append(entry)
        devices: Object = {"results": results}
        config = self._config(self.claims[index], picks)
        if config:
            devices["config"] = config
        allocation: Object = {"devices": devices, "allocationTimestamp": now()}
        selector = node_selector([p.device for p in picks], node)
        if selector is not None:
            allocation["nodeSelector"] = selector
        return allocation

    @staticmethod
    def _config(claim: Object, picks: list[Pick]) -> list[Object]:
        config: list[Object] = []
        done = set()
        for pick in picks:
            if pick.choice.name in done:
                continue
            done.add(pick.choice.name)
            for entry in pick.choice.class_spec.get("config") or ():
                config.append({"source": "FromClass", "requests": [pick.choice.name], **entry})
        chosen = done | {name.partition("/")[0] for name in done}
        for entry in (claim["spec"].get("devices") or {}).get("config") or ():
            if not entry.get("requests") or chosen.intersection(entry["requests"]):
                config.append({"source": "FromClaim", **entry})
        return config


def node_selector(devices: list[Device], node: NodeRow) -> Object | None:
    """Where the devices can be used from; None for everywhere."""
    expressions: list[Object] = []
    fields: list[Object] = []
    for device in devices:
        spec = device.spec if device.slice_spec.get("perDeviceNodeSelection") else device.slice_spec
        if spec.get("nodeName") or any(d.get("bindsToNode") for d in (device.spec,)):
            one = {"key": "metadata.name", "operator": "In", "values": [node.name]}
            return {"nodeSelectorTerms": [{"matchFields": [one]}]}
        for term in (spec.get("nodeSelector") or {}).get("nodeSelectorTerms") or ():
            expressions.extend(e for e in term.get("matchExpressions") or () if e not in expressions)
            fields.extend(f for f in term.get("matchFields") or () if f not in fields)
    if not expressions and not fields:
        return None
    merged: Object = {}
    if expressions:
        merged["matchExpressions"] = expressions
    if fields:
        merged["matchFields"] = fields
    return {"nodeSelectorTerms": [merged]}
