"""Priority: a pod's class becomes its number; only one class is everybody's."""

from __future__ import annotations

from longshore.api.scheduling import SYSTEM
from longshore.master.apiserver.admission.base import Object, Plugin, object_name, refuse
from longshore.master.apiserver.context import API, AdmissionRequest

_CLASSES = ("scheduling.k8s.io", "priorityclasses")


class Priority(Plugin):
    """Source: plugin/pkg/admission/priority."""

    name = "Priority"
    operations = frozenset(("CREATE", "UPDATE", "DELETE"))
    resources = frozenset((("", "pods"), _CLASSES))

    def __init__(self) -> None:
        self._default: tuple[int, Object | None] = (-1, None)

    def _default_class(self, api: API) -> Object | None:
        generation = api.generation(*_CLASSES)
        if generation != self._default[0]:
            self._default = (generation, default_class(api))
        return self._default[1]

    async def admit(self, a: AdmissionRequest) -> None:
        if a.attributes.resource != "pods" or a.object is None:
            return
        if a.operation == "UPDATE":
            self._keep(a.object, a.old or {})
        elif a.operation == "CREATE":
            await self._resolve(a, a.object)

    @staticmethod
    def _keep(new: Object, old: Object) -> None:
        spec, before = new["spec"], old.get("spec") or {}
        if spec.get("priority") is None and before.get("priority") is not None:
            spec["priority"] = before["priority"]
        if spec.get("preemptionPolicy") is None and before.get("preemptionPolicy") is not None:
            spec["preemptionPolicy"] = before["preemptionPolicy"]

    async def _resolve(self, a: AdmissionRequest, pod: Object) -> None:
        spec = pod["spec"]
        name = spec.get("priorityClassName", "")
        value, policy = 0, "PreemptLowerPriority"
        if name:
            chosen = a.api.get(*_CLASSES, "", name) or await a.api.get_live(*_CLASSES, "", name)
            if chosen is None and name in SYSTEM:
                chosen = {"value": SYSTEM[name][0], "preemptionPolicy": policy}
            if chosen is None:
                raise refuse(a, f"no PriorityClass with name {name} was found")
            value, policy = chosen.get("value", 0), chosen.get("preemptionPolicy", policy)
        else:
            default = self._default_class(a.api)
            if default is not None:
                spec["priorityClassName"] = default["metadata"]["name"]
                value, policy = default.get("value", 0), default.get("preemptionPolicy", policy)
        given = spec.get("priority")
        if given is not None and given != value:
            raise refuse(
                a,
                f"the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            )
        spec["priority"] = value
        wanted = spec.get("preemptionPolicy")
        if wanted is not None and wanted != policy:
            raise refuse(
                a,
                f"the string value of PreemptionPolicy ({wanted}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name",
            )
        spec["preemptionPolicy"] = policy

    async def validate(self, a: AdmissionRequest) -> None:
        if a.attributes.resource == "pods":
            return
        if a.operation == "DELETE":
            if a.attributes.name in SYSTEM:
                raise refuse(a, "this is a system priority class and cannot be deleted")
            return
        if a.object is not None and a.object.get("globalDefault"):
            default = default_class(a.api)
            if default is not None and default["metadata"]["name"] != object_name(a):
                raise refuse(
                    a,
                    f"PriorityClass {default['metadata']['name']} is already marked as default. Only one default can exist",
                )


def default_class(api: API) -> Object | None:
    """The class of pods that name none: of several that claim it the lowest."""
    found = [c for c in api.list(*_CLASSES) if c.get("globalDefault")]
    return min(found, key=lambda c: c.get("value", 0)) if found else None
