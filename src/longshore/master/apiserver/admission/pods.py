"""Small plugins about pods and nodes: tolerations, taints of new nodes, runtime classes, topology labels."""

from __future__ import annotations

from longshore.api.validation.errors import quote
from longshore.machinery import quantity
from longshore.machinery.errors import StatusError
from longshore.master.apiserver.admission.base import PODS, Object, Plugin, refuse
from longshore.master.apiserver.context import AdmissionRequest

NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"


class DefaultTolerationSeconds(Plugin):
    """Pods bear a lost node for five minutes. Source: plugin/pkg/admission/defaulttolerationseconds."""

    name = "DefaultTolerationSeconds"
    resources = PODS

    def __init__(self, not_ready: int = 300, unreachable: int = 300) -> None:
        self.seconds = {NOT_READY: not_ready, UNREACHABLE: unreachable}

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        spec = a.object["spec"]
        given = spec.get("tolerations") or []
        missing = []
        for key, seconds in self.seconds.items():
            if not any(t.get("key", "") in (key, "") and t.get("effect", "") in ("NoExecute", "") for t in given):
                missing.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds})
        if missing:
            spec["tolerations"] = [*given, *missing]


class TaintNodesByCondition(Plugin):
    """A new node is not ready until something says it is. Source: plugin/pkg/admission/nodetaint."""

    name = "TaintNodesByCondition"
    operations = frozenset(("CREATE",))
    resources = frozenset((("", "nodes"),))

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        spec = a.object["spec"]
        taints = spec.get("taints") or []
        if not any(t.get("key") == NOT_READY and t.get("effect") == "NoSchedule" for t in taints):
            spec["taints"] = [*taints, {"key": NOT_READY, "effect": "NoSchedule"}]


class RuntimeClass(Plugin):
    """A pod's runtime class brings its overhead and its place. Source: plugin/pkg/admission/runtimeclass."""

    name = "RuntimeClass"
    operations = frozenset(("CREATE",))
    resources = PODS

    async def _found(self, a: AdmissionRequest, pod: Object) -> Object | None:
        name = pod["spec"].get("runtimeClassName")
        if name is None:
            return None
        # Upstream's plugin asks its client for it, which refuses what cannot be a part of a path.
        if not name:
            raise StatusError(500, "", "resource name may not be empty")
        for part in ("/", "%"):
            if part in name:
                raise StatusError(500, "", f"invalid resource name {quote(name)}: [may not contain '{part}']")
        found = a.api.get("node.k8s.io", "runtimeclasses", "", name)
        if found is None:
            found = await a.api.get_live("node.k8s.io", "runtimeclasses", "", name)
        if found is None:
            raise refuse(a, f'pod rejected: RuntimeClass "{name}" not found')
        return found

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        found = await self._found(a, a.object)
        if found is None:
            return
        spec = a.object["spec"]
        overhead = (found.get("overhead") or {}).get("podFixed")
        if overhead:
            if spec.get("overhead") and not same_amounts(spec["overhead"], overhead):
                raise refuse(a, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
            spec["overhead"] = dict(overhead)
        scheduling = found.get("scheduling")
        if scheduling is None:
            return
        selector = dict(scheduling.get("nodeSelector") or {})
        for key, value in (spec.get("nodeSelector") or {}).items():
            if key in selector and selector[key] != value:
                raise refuse(
                    a,
                    f"conflict: runtimeClass.scheduling.nodeSelector[{key}] = {selector[key]}; pod.spec.nodeSelector[{key}] = {value}",
                )
        merged = {**selector, **(spec.get("nodeSelector") or {})}
        if merged:
            spec["nodeSelector"] = merged
        tolerations = spec.get("tolerations") or []
        added = [t for t in scheduling.get("tolerations") or () if t not in tolerations]
        if added:
            spec["tolerations"] = [*tolerations, *added]

    async def validate(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        found = await self._found(a, a.object)
        given = a.object["spec"].get("overhead")
        if found is None:
            if given:
                raise refuse(a, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
            return
        overhead = (found.get("overhead") or {}).get("podFixed")
        if given and not overhead:
            raise refuse(a, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
        if overhead and not same_amounts(given or {}, overhead):
            raise refuse(a, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")


def same_amounts(one: Object, other: Object) -> bool:
    """Equal resource amounts, however they are written."""
    return one.keys() == other.keys() and all(
        quantity.parse(one[k]).nanos == quantity.parse(other[k]).nanos for k in one
    )


class PodTopologyLabels(Plugin):
    """A pod that is bound takes over its node's zone and region. Source: plugin/pkg/admission/podtopologylabels."""

    name = "PodTopologyLabels"
    operations = frozenset(("CREATE", "UPDATE"))
    resources = PODS
    subresources = frozenset(("", "binding"))
    keys = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")

    def handles(self, operation: str, resource: str, subresource: str = "", group: str = "") -> bool:
        return group == "" and resource == "pods" and operation == "CREATE" and subresource in ("", "binding")

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        if a.attributes.subresource == "binding":
            node = (a.object.get("target") or {}).get("name", "")
        else:
            node = a.object["spec"].get("nodeName", "")
        if not node:
            return
        found = a.api.peek("", "nodes", "", node)
        given = (found or {}).get("metadata", {}).get("labels") or {}
        labels = {key: given[key] for key in self.keys if key in given}
        if labels:
            a.object["metadata"]["labels"] = {**(a.object["metadata"].get("labels") or {}), **labels}
