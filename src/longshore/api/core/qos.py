"""A pod's quality of service class (upstream pkg/apis/core/v1/helper/qos)."""

from __future__ import annotations

from typing import Any

from longshore.machinery import quantity

_COUNTED = ("cpu", "memory")


def qos_class(spec: dict[str, Any]) -> str:
    """Guaranteed, Burstable or BestEffort, from requests and limits of cpu and memory."""
    whole = spec.get("resources")
    if whole and (whole.get("requests") or whole.get("limits")):
        parts = [whole]
    else:
        parts = [
            c.get("resources") or {} for c in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
        ]
    requests: dict[str, int] = {}
    limits: dict[str, int] = {}
    guaranteed = True
    for resources in parts:
        for name in _COUNTED:
            amount = (resources.get("requests") or {}).get(name)
            if amount is not None and (nanos := quantity.parse(amount).nanos) > 0:
                requests[name] = requests.get(name, 0) + nanos
        found = 0
        for name in _COUNTED:
            amount = (resources.get("limits") or {}).get(name)
            if amount is not None and (nanos := quantity.parse(amount).nanos) > 0:
                found += 1
                limits[name] = limits.get(name, 0) + nanos
        if found < len(_COUNTED):
            guaranteed = False
    if not requests and not limits:
        return "BestEffort"
    if guaranteed and requests == limits and len(requests) == len(_COUNTED):
        return "Guaranteed"
    return "Burstable"
