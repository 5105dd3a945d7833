"""events.k8s.io: Event, which is kept in the core group's form."""

from __future__ import annotations

from longshore.api.core.event import Event as CoreEvent
from longshore.api.gotypes import dump
from longshore.api.strategy import Object
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors

_TYPES = {"involvedObject": "ObjectReference", "related": "ObjectReference", "source": "EventSource"}


class Event(CoreEvent):
    """The newer group's event; it asks for more than the old one."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        self._legacy(obj, errors, "reportingController")
        metadata.create(errors, obj["metadata"], True, self.name_check)
        metadata.standard_finalizers(errors, obj["metadata"])
        self._series(obj, errors)
        if obj.get("eventTime") is None:
            errors.required("eventTime")
        if obj.get("type", "") not in ("Normal", "Warning"):
            errors.invalid("type", "", "has invalid value: " + obj.get("type", ""))
        for field in ("firstTimestamp", "lastTimestamp", "count", "source"):
            if obj.get(field):
                errors.invalid(field, "", "needs to be unset")

    @staticmethod
    def _series(obj: Object, errors: Errors) -> None:
        series = obj.get("series")
        if series is not None:
            if series.get("count", 0) < 2:
                errors.invalid("series.count", "", "should be at least 2")
            if series.get("lastObservedTime") is None:
                errors.required("series.lastObservedTime")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self._legacy(new, errors, "reportingController")
        if new.get("series") != old.get("series"):
            self._series(new, errors)
        for field in (
            "involvedObject", "reason", "message", "source", "firstTimestamp", "lastTimestamp", "count", "reason", "type",
            "eventTime", "action", "related", "reportingComponent", "reportingInstance",
        ):  # fmt: skip
            if new.get(field) != old.get(field):
                shown = "reportingController" if field == "reportingComponent" else field
                value = new.get(field)
                if field in _TYPES:
                    value = dump(f"io.k8s.api.core.v1.{_TYPES[field]}", value)
                errors.invalid(shown, value, metadata.IMMUTABLE)


STRATEGIES = {"Event": Event}
