"""events.k8s.io: Event, which is kept in the core group's form."""

from __future__ import annotations

from longshore.api.core.event import Event as CoreEvent
from longshore.api.strategy import Object
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors


class Event(CoreEvent):
    """The newer group's event; it asks for more than the old one."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        metadata.create(errors, obj["metadata"], True, self.name_check)
        if old is None:
            if obj.get("eventTime") is None:
                errors.required("eventTime")
            self._forbidden(obj, errors)
            if obj.get("type", "") not in ("Normal", "Warning"):
                errors.invalid("type", obj.get("type", ""), "has invalid value: " + obj.get("type", ""))
        self._legacy(obj, errors)
        if obj.get("eventTime") is not None:
            before = len(errors)
            self._modern(obj, errors)
            if old is None:
                errors[before:] = [e for e in errors[before:] if e.field != "type"]

    @staticmethod
    def _forbidden(obj: Object, errors: Errors) -> None:
        for core, field in (
            ("firstTimestamp", "deprecatedFirstTimestamp"),
            ("lastTimestamp", "deprecatedLastTimestamp"),
            ("count", "deprecatedCount"),
        ):
            if obj.get(core):
                errors.invalid(field, obj[core], "needs to be unset")
        if obj.get("source"):
            errors.invalid("deprecatedSource", obj["source"], "needs to be unset")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        for core, field in (
            ("involvedObject", "regarding"),
            ("reason", "reason"),
            ("action", "action"),
            ("reportingComponent", "reportingController"),
            ("reportingInstance", "reportingInstance"),
            ("eventTime", "eventTime"),
            ("message", "note"),
            ("type", "type"),
            ("related", "related"),
        ):
            if new.get(core) != old.get(core):
                errors.invalid(field, new.get(core), metadata.IMMUTABLE)
        self.validate(new, errors, old)


STRATEGIES = {"Event": Event}
