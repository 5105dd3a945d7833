"""The devices that drivers publish in ResourceSlices, as the allocator sees them: pools, counters, what selectors read.

Source: k8s.io/dynamic-resource-allocation structured (pools) and cel (the `device` variable), described behaviour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from longshore.client.store import Object
from longshore.machinery.quantity import parse
from longshore.master.scheduler.nodes import NodeRow
from longshore.master.scheduler.terms import node_term

DeviceID = tuple[str, str, str]  # driver, pool, device
SELECTORS_KEPT = 256


class SelectorError(Exception):
    """A selector that cannot be evaluated; str() says why."""


def split_name(name: str, driver: str) -> tuple[str, str]:
    """(domain, identifier) of an attribute's name; the driver's own domain when it has none."""
    domain, slash, rest = name.rpartition("/")
    return (domain, rest) if slash else (driver, rest)


def attribute_value(attribute: Object) -> Any:
    """An attribute's value as an expression reads it."""
    from longshore.api.cel.values import parse_semver

    for kind in ("string", "bool", "int", "strings", "bools", "ints"):
        if kind in attribute:
            return attribute[kind]
    if "versions" in attribute:
        return [parse_semver(v) for v in attribute["versions"]]
    return parse_semver(str(attribute.get("version", "")))


@dataclass(slots=True)
class Device:
    """One device of one slice."""

    id: DeviceID
    spec: Object
    slice_spec: Object
    _variable: dict[str, Any] | None = None

    def taints(self) -> list[Object]:
        return self.spec.get("taints") or []

    def shared(self) -> bool:
        """Whether several claims may each take a part of it."""
        return bool(self.spec.get("allowMultipleAllocations"))

    def attribute(self, name: str) -> Any:
        """An attribute by its qualified name; None when the device lacks it."""
        found = (self.spec.get("attributes") or {}).get(name)
        if found is None:
            domain, identifier = split_name(name, "")
            if domain == self.id[0]:
                found = (self.spec.get("attributes") or {}).get(identifier)
        return None if found is None else attribute_value(found)

    def capacity(self, name: str) -> Object | None:
        """A capacity with its request policy."""
        found: Object | None = (self.spec.get("capacity") or {}).get(name)
        return found

    @property
    def variable(self) -> dict[str, Any]:
        """What `device` is in an expression."""
        if self._variable is None:
            from longshore.api.cel import Quantity

            # What nobody set in a domain is an empty domain, not an error.
            attributes: defaultdict[str, dict[str, Any]] = defaultdict(dict)
            capacity: defaultdict[str, dict[str, Any]] = defaultdict(dict)
            for name, value in (self.spec.get("attributes") or {}).items():
                domain, identifier = split_name(name, self.id[0])
                attributes[domain][identifier] = attribute_value(value)
            for name, value in (self.spec.get("capacity") or {}).items():
                domain, identifier = split_name(name, self.id[0])
                capacity[domain][identifier] = Quantity(parse(str(value["value"])))
            self._variable = {
                "driver": self.id[0],
                "attributes": attributes,
                "capacity": capacity,
                "allowMultipleAllocations": self.shared(),
            }
        return self._variable


@lru_cache(maxsize=SELECTORS_KEPT)
def _program(expression: str) -> Any:
    from longshore.api import cel

    return cel.compile(expression, {"device": "dyn"}, ("bool",))


def selected(device: Device, selectors: Iterable[Object]) -> bool:
    """Whether all selectors of a class or a request hold for a device. Raises SelectorError."""
    from longshore.api.cel import CompileError, EvalError

    for selector in selectors:
        expression = (selector.get("cel") or {}).get("expression", "")
        try:
            if _program(expression).run({"device": device.variable}) is not True:
                return False
        except (CompileError, EvalError) as error:
            raise SelectorError(str(error)) from None
    return True


@dataclass(slots=True)
class Pool:
    """The devices of one pool that a node can use."""

    driver: str
    name: str
    complete: bool
    devices: list[Device] = field(default_factory=list)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)  # counter set -> counter -> nano units


def reaches(spec: Object, node: NodeRow) -> bool:
    """Whether a slice (or a device of a slice that leaves it to its devices) is for a node."""
    if spec.get("nodeName"):
        return bool(spec["nodeName"] == node.name)
    if spec.get("allNodes"):
        return True
    terms = (spec.get("nodeSelector") or {}).get("nodeSelectorTerms") or ()
    return any(node_term(t)(node.labels, node.name) for t in terms)


class Inventory:
    """All published slices; `pools` says what a node can use. `changed` must be called when a slice changes."""

    def __init__(self, slices: Iterable[Object]) -> None:
        self._slices = slices
        self._newest: dict[tuple[str, str], list[Object]] | None = None
        self._devices: dict[DeviceID, Device] = {}  # made once: what selectors read of them is worth keeping
        self._by_node: dict[str, set[tuple[str, str]]] = {}
        self._everywhere: set[tuple[str, str]] = set()

    def changed(self) -> None:
        self._newest = None

    def _sort(self) -> dict[tuple[str, str], list[Object]]:
        """By driver and pool, the slices of the newest generation."""
        if self._newest is not None:
            return self._newest
        newest: dict[tuple[str, str], list[Object]] = {}
        self._by_node, self._everywhere, self._devices = {}, set(), {}
        for obj in self._slices:
            spec = obj["spec"]
            key = (spec["driver"], spec["pool"]["name"])
            known = newest.setdefault(key, [])
            generation = int(spec["pool"].get("generation") or 0)
            if known and generation < int(known[0]["pool"].get("generation") or 0):
                continue
            if known and generation > int(known[0]["pool"].get("generation") or 0):
                known.clear()
            known.append(spec)
        for key, specs in newest.items():
            for spec in specs:
                if spec.get("nodeName"):
                    self._by_node.setdefault(spec["nodeName"], set()).add(key)
                else:
                    self._everywhere.add(key)
        self._newest = newest
        return newest

    def pools(self, node: NodeRow) -> list[Pool]:
        """The pools that have something for a node, in order of their names."""
        newest = self._sort()
        found = []
        for key in sorted(self._by_node.get(node.name, set()) | self._everywhere):
            specs = newest[key]
            wanted = int(specs[0]["pool"].get("resourceSliceCount") or 0)
            pool = Pool(key[0], key[1], len(specs) == wanted)
            for spec in specs:
                for counter_set in spec.get("sharedCounters") or ():
                    pool.counters[counter_set["name"]] = amounts(counter_set.get("counters") or {})
                each = bool(spec.get("perDeviceNodeSelection"))
                if not each and not reaches(spec, node):
                    continue
                for device in spec.get("devices") or ():
                    if not each or reaches(device, node):
                        id = (*key, device["name"])
                        made = self._devices.get(id)
                        if made is None:
                            made = self._devices[id] = Device(id, device, spec)
                        pool.devices.append(made)
            if pool.devices:
                found.append(pool)
        return found


def amounts(counters: Mapping[str, Object]) -> dict[str, int]:
    """Counters in nano units."""
    return {name: parse(str(counter["value"])).nanos for name, counter in counters.items()}
