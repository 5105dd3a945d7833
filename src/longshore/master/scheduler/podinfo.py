"""What the scheduler needs of a pod, read once and shared by all pods that are alike.

Equal pods (same labels, requests, affinity, tolerations, volumes...) share one `PodClass`: what was computed for one
of them holds for the next (Borg's equivalence classes).
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import orjson

from longshore.client.objects import containers, seconds
from longshore.client.store import Object, key_of
from longshore.machinery.quantity import parse
from longshore.master.scheduler.terms import (
    AffinityTerm,
    NodeTerms,
    SpreadConstraint,
    affinity_terms,
    spread_constraints,
)

DEFAULT_MILLI_CPU = 100
DEFAULT_MEMORY = 200 * 1024 * 1024
CPU, MEMORY, STORAGE = "cpu", "memory", "ephemeral-storage"

Port = tuple[str, str, int]  # address, protocol, number


def amount(name: str, value: Any) -> int:
    """A quantity in the unit that the scheduler counts in: thousandths of a CPU, else whole units."""
    quantity = parse(str(value))
    return quantity.milli_value if name == CPU else quantity.value


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def _most(total: dict[str, int], other: dict[str, int]) -> None:
    for name, value in other.items():
        if value > total.get(name, 0):
            total[name] = value


def _requests(container: Object) -> dict[str, int]:
    requests = (container.get("resources") or {}).get("requests") or {}
    return {name: amount(name, value) for name, value in requests.items()}


def pod_requests(pod: Object, *, filled: bool = False) -> dict[str, int]:
    """What the pod asks a node for (component-helpers resource.PodRequests).

    Containers and sidecars together, or the greatest init container with the sidecars before it; the pod-level
    request in their place where there is one; and the overhead. filled: count containers without a CPU or memory
    request as 100m and 200Mi, for scoring.
    """
    spec = pod.get("spec") or {}

    def of(container: Object) -> dict[str, int]:
        requests = _requests(container)
        if filled:
            requests.setdefault(CPU, DEFAULT_MILLI_CPU)
            requests.setdefault(MEMORY, DEFAULT_MEMORY)
        return requests

    total: dict[str, int] = {}
    for container in spec.get("containers") or ():
        _add(total, of(container))
    sidecars: dict[str, int] = {}
    greatest: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        requests = of(container)
        if container.get("restartPolicy") == "Always":
            _add(total, requests)
            _add(sidecars, requests)
            _most(greatest, sidecars)
        else:
            together = dict(sidecars)
            _add(together, requests)
            _most(greatest, together)
    _most(total, greatest)
    for name, value in ((spec.get("resources") or {}).get("requests") or {}).items():
        total[name] = amount(name, value)
    for name, value in (spec.get("overhead") or {}).items():
        total[name] = total.get(name, 0) + amount(name, value)
    return {name: value for name, value in total.items() if value}


class PodClass:
    """What equal pods have in common. `cache` holds what plugins and the evaluator computed for them."""

    __slots__ = (
        "__weakref__",
        "affinity",
        "anti_affinity",
        "best_effort",
        "cache",
        "claims",
        "filled",
        "images",
        "key",
        "labels",
        "namespace",
        "node_terms",
        "ports",
        "preemption_policy",
        "preferred_affinity",
        "preferred_anti_affinity",
        "priority",
        "requests",
        "scheduler",
        "spread",
        "tolerations",
        "volume_images",
        "volumes",
    )

    def __init__(self, key: bytes, pod: Object) -> None:
        spec, meta = pod["spec"], pod["metadata"]
        self.key = key
        self.namespace: str = meta.get("namespace", "")
        self.labels: dict[str, str] = meta.get("labels") or {}
        self.priority: int = int(spec.get("priority") or 0)
        self.preemption_policy: str = spec.get("preemptionPolicy") or "PreemptLowerPriority"
        self.scheduler: str = spec.get("schedulerName") or "default-scheduler"
        self.requests = pod_requests(pod)
        filled = pod_requests(pod, filled=True)
        self.filled = (filled.get(CPU, 0), filled.get(MEMORY, 0))
        self.best_effort = not any(
            (c.get("resources") or {}).get("requests") or (c.get("resources") or {}).get("limits")
            for c in containers(pod)
        )
        self.ports: tuple[Port, ...] = host_ports(pod)
        self.tolerations: list[Object] = spec.get("tolerations") or []
        affinity = spec.get("affinity") or {}
        self.node_terms = NodeTerms(spec.get("nodeSelector") or {}, affinity.get("nodeAffinity") or {})
        required, preferred = affinity_terms(pod, "podAffinity")
        self.affinity: list[AffinityTerm] = required
        self.preferred_affinity: list[AffinityTerm] = preferred
        required, preferred = affinity_terms(pod, "podAntiAffinity")
        self.anti_affinity: list[AffinityTerm] = required
        self.preferred_anti_affinity: list[AffinityTerm] = preferred
        self.spread: list[SpreadConstraint] = spread_constraints(pod)
        self.images = tuple(c.get("image") or "" for c in containers(pod))
        self.volume_images = tuple(_volume_images(spec))
        self.volumes: list[Object] = spec.get("volumes") or []
        self.claims = tuple(claim_names(pod))
        self.cache: dict[Any, Any] = {}


def claim_names(pod: Object) -> list[str]:
    """Names of the PersistentVolumeClaims that the pod mounts, its ephemeral ones included."""
    names = []
    for volume in pod["spec"].get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            names.append(volume["persistentVolumeClaim"]["claimName"])
        elif "ephemeral" in volume:
            names.append(f"{pod['metadata']['name']}-{volume['name']}")
    return names


def host_ports(pod: Object) -> tuple[Port, ...]:
    found = []
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in [*(spec.get("containers") or ()), *sidecars]:
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                found.append((port.get("hostIP") or "0.0.0.0", port.get("protocol") or "TCP", int(port["hostPort"])))
    return tuple(found)


def ports_collide(a: Port, b: Port) -> bool:
    return a[1:] == b[1:] and (a[0] == b[0] or "0.0.0.0" in (a[0], b[0]))


_classes: WeakValueDictionary[bytes, PodClass] = WeakValueDictionary()

_CONTAINER = ("resources", "ports", "image", "restartPolicy", "restartPolicyRules")
_SPEC = (
    "nodeSelector",
    "affinity",
    "tolerations",
    "topologySpreadConstraints",
    "priority",
    "preemptionPolicy",
    "overhead",
    "resources",
    "schedulerName",
    "resourceClaims",
    "hostNetwork",
    "hostUsers",
    "os",
)
# Volumes that need nothing of a node say nothing about where a pod fits (and carry random names).
_PLAIN = frozenset({"name", "projected", "configMap", "secret", "emptyDir", "downwardAPI", "hostPath", "image"})


def _volume_images(spec: Object) -> list[str]:
    """The images that are mounted as volumes."""
    return [v["image"].get("reference") or "" for v in spec.get("volumes") or () if v.get("image")]


def class_of(pod: Object) -> PodClass:
    """The class that pod shares with its equals."""
    spec, meta = pod["spec"], pod["metadata"]
    telling = [
        meta.get("namespace"),
        meta.get("labels"),
        [{k: c[k] for k in _CONTAINER if k in c} for c in spec.get("containers") or ()],
        [{k: c[k] for k in _CONTAINER if k in c} for c in spec.get("initContainers") or ()],
        [spec.get(k) for k in _SPEC],
        [v for v in spec.get("volumes") or () if not _PLAIN.issuperset(v)],
        _volume_images(spec),
    ]
    if any("ephemeral" in v for v in telling[5]):
        telling.append(meta["name"])
    key = orjson.dumps(telling, option=orjson.OPT_SORT_KEYS)
    found = _classes.get(key)
    if found is None:
        found = _classes[key] = PodClass(key, pod)
    return found


def start_time(pod: Object) -> float:
    """When a pod started (seconds since the epoch); one that has not started comes after all others."""
    return seconds((pod.get("status") or {}).get("startTime")) or 2**62


class PodInfo:
    """One pod and its class."""

    __slots__ = ("attempts", "cls", "key", "pod", "since", "unschedulable_by")

    def __init__(self, pod: Object, cls: PodClass | None = None) -> None:
        """cls: the pod's class, where it is known."""
        self.pod = pod
        self.key = key_of(pod)
        self.cls = cls if cls is not None else class_of(pod)
        self.attempts = 0
        self.since = 0.0  # when it came into the queue (loop time)
        self.unschedulable_by: frozenset[str] = frozenset()

    def as_bound(self, pod: Object) -> PodInfo:
        """This pod as it came back with a node: of the same class when nothing else has changed, which is quickly seen."""
        before, spec = self.pod["spec"], pod["spec"]
        if (
            len(spec) == len(before) + ("nodeName" not in before)
            and all(value == before.get(key) for key, value in spec.items() if key != "nodeName")
            and pod["metadata"].get("labels") == self.pod["metadata"].get("labels")
        ):
            return PodInfo(pod, self.cls)
        return PodInfo(pod)

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return self.cls.namespace

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"].get("uid", ""))

    @property
    def priority(self) -> int:
        return self.cls.priority

    @property
    def nominated(self) -> str:
        return str((self.pod.get("status") or {}).get("nominatedNodeName") or "")
