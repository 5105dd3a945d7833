"""node.k8s.io: RuntimeClass."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.core.container_validation import resources
from longshore.api.core.scheduling_validation import tolerations
from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label

_TOLERATION = "io.k8s.api.core.v1.Toleration"


class RuntimeClass(Strategy):
    """Which runtime runs a pod."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        handler = obj.get("handler", "")
        if not handler:
            errors.required("handler")
        else:
            for message in dns1123_label(handler):
                errors.invalid("handler", handler, message)
        overhead = obj.get("overhead")
        if overhead is not None and overhead.get("podFixed"):
            resources(errors, {"limits": overhead["podFixed"]}, "overhead", None)
        scheduling = obj.get("scheduling")
        if scheduling is not None:
            metadata.labels(errors, scheduling.get("nodeSelector") or {}, "scheduling.nodeSelector")
            listed = scheduling.get("tolerations") or []
            tolerations(errors, listed, "scheduling.tolerations")
            for index, one in enumerate(listed):
                if one in listed[:index]:
                    errors.duplicate(f"scheduling.tolerations[{index}]", dump(_TOLERATION, one))

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if new.get("handler") != old.get("handler"):
            errors.invalid("handler", new.get("handler", ""), metadata.IMMUTABLE)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("handler", ""), age_of(obj, now)]


STRATEGIES = {"RuntimeClass": RuntimeClass}
