"""scheduling.k8s.io: PriorityClass."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors

HIGHEST_USER_PRIORITY = 1000000000
SYSTEM = {
    "system-node-critical": (
        2000001000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    "system-cluster-critical": (
        2000000000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
}


class PriorityClass(Strategy):
    """How important pods are."""

    def prepare_create(self, obj: Object) -> None:
        obj["metadata"]["generation"] = 1

    def default(self, obj: Object) -> None:
        obj.setdefault("preemptionPolicy", "PreemptLowerPriority")

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        name, value = obj["metadata"].get("name", ""), obj.get("value", 0)
        if name.startswith("system-"):
            known = SYSTEM.get(name)
            why = "" if known else f"{name} is not a known system priority class"
            if known and known[0] != value:
                why = f"value of {name} PriorityClass must be {known[0]}"
            elif known and obj.get("globalDefault"):
                why = f"globalDefault of {name} PriorityClass must be false"
            if why:
                errors.forbidden(
                    "metadata.name",
                    f"priority class names with 'system-' prefix are reserved for system use only. error: {why}",
                )
        elif value > HIGHEST_USER_PRIORITY:
            errors.forbidden("value", f"maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}")
        policy = obj.get("preemptionPolicy")
        if policy == "":
            errors.required("preemptionPolicy")
        elif policy is not None and policy not in ("PreemptLowerPriority", "Never"):
            errors.unsupported("preemptionPolicy", policy, ("PreemptLowerPriority", "Never"))

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        if new.get("value", 0) != old.get("value", 0):
            errors.forbidden("value", "may not be changed in an update.")
        if new.get("preemptionPolicy") != old.get("preemptionPolicy"):
            errors.invalid("preemptionPolicy", new.get("preemptionPolicy"), metadata.IMMUTABLE)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [
            obj["metadata"]["name"],
            obj.get("value", 0),
            bool(obj.get("globalDefault")),
            age_of(obj, now),
            obj.get("preemptionPolicy", ""),
        ]


STRATEGIES = {"PriorityClass": PriorityClass}
