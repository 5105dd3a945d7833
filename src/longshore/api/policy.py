"""policy: PodDisruptionBudget."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import intstr
from longshore.api.validation.errors import Errors
from longshore.api.validation.quantities import not_negative
from longshore.api.validation.selectors import label_selector


class PodDisruptionBudget(Strategy):
    """How many pods may be missing on purpose."""

    generation = True
    loose_metadata = True

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
        if least is not None and most is not None:
            errors.invalid(
                "spec",
                dump("io.k8s.api.policy.v1.PodDisruptionBudgetSpec", spec),
                "minAvailable and maxUnavailable cannot be both set",
            )
        for name, value in (("minAvailable", least), ("maxUnavailable", most)):
            if value is not None:
                intstr.positive_or_percent(errors, value, f"spec.{name}")
                intstr.at_most_100_percent(errors, value, f"spec.{name}")
        label_selector(errors, spec.get("selector"), "spec.selector")
        policy = spec.get("unhealthyPodEvictionPolicy")
        if policy is not None and policy not in ("AlwaysAllow", "IfHealthyBudget"):
            errors.unsupported("spec.unhealthyPodEvictionPolicy", policy, ("AlwaysAllow", "IfHealthyBudget"))

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        for key in ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"):
            not_negative(errors, new["status"].get(key, 0), f"status.{key}")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        cells = [str(spec[k]) if spec.get(k) is not None else "N/A" for k in ("minAvailable", "maxUnavailable")]
        return [obj["metadata"]["name"], *cells, obj["status"].get("disruptionsAllowed", 0), age_of(obj, now)]


STRATEGIES = {"PodDisruptionBudget": PodDisruptionBudget}
