"""coordination.k8s.io: Lease."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.quantities import not_negative


class Lease(Strategy):
    """Who holds an office, and until when."""

    create_on_update = True
    unconditional_update = False

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        seconds = spec.get("leaseDurationSeconds")
        if seconds is not None and seconds <= 0:
            errors.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0")
        not_negative(errors, spec.get("leaseTransitions"), "spec.leaseTransitions")
        strategy, preferred = spec.get("strategy"), spec.get("preferredHolder")
        if strategy is not None and strategy != "OldestEmulationVersion" and "/" not in strategy:
            errors.unsupported("spec.strategy", strategy, ("OldestEmulationVersion",))
        if preferred and not strategy:
            errors.forbidden("spec.preferredHolder", "may only be specified if `strategy` is defined")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], obj["spec"].get("holderIdentity", ""), age_of(obj, now)]


STRATEGIES = {"Lease": Lease}
