"""Event, in the core group's form and in that of events.k8s.io."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from longshore.api import times
from longshore.api.strategy import Object, Strategy, age, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_subdomain, qualified_name

_RENAMED = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_RENAMED_BACK = {core: new for new, core in _RENAMED.items()}
NEW_GROUP = "events.k8s.io/v1"


class Event(Strategy):
    """Something that happened to an object. Both groups keep the core form."""

    def convert(self, obj: Object, source: str, target: str) -> Object:
        names = _RENAMED if source == NEW_GROUP else _RENAMED_BACK
        out = {names.get(key, key): value for key, value in obj.items()}
        if target == NEW_GROUP:
            # The core form always shows these; the newer one leaves them out when they are empty.
            for key in ("reportingController", "reportingInstance"):
                if not out.get(key):
                    out.pop(key, None)
            out.setdefault("eventTime", None)
            out.setdefault("deprecatedSource", {})
            out.setdefault("deprecatedFirstTimestamp", None)
            out.setdefault("deprecatedLastTimestamp", None)
            out.setdefault("regarding", {})
        else:
            out.setdefault("reportingComponent", "")
            out.setdefault("reportingInstance", "")
            out.setdefault("source", {})
            out.setdefault("firstTimestamp", None)
            out.setdefault("lastTimestamp", None)
            out.setdefault("involvedObject", {})
        return out

    # Upstream checks an event's metadata inside the rest, and more loosely.
    loose_metadata = True

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        self._legacy(obj, errors, "reportingComponent")

    @classmethod
    def _legacy(cls, obj: Object, errors: Errors, controller: str) -> None:
        involved = obj["involvedObject"].get("namespace", "")
        namespace = obj["metadata"].get("namespace", "")
        if obj.get("eventTime") is None:
            if namespace != involved if involved else namespace not in ("", "default"):
                errors.invalid("involvedObject.namespace", involved, "does not match event.namespace")
        else:
            if not involved and namespace not in ("default", "kube-system"):
                errors.invalid("involvedObject.namespace", involved, "does not match event.namespace")
            cls._modern(obj, errors, controller)
        for message in dns1123_subdomain(namespace):
            errors.invalid("namespace", namespace, message)

    @staticmethod
    def _modern(obj: Object, errors: Errors, controller: str) -> None:
        name = obj.get("reportingComponent", "")
        if not name:
            errors.required(controller)
        for message in qualified_name(name):
            errors.invalid(controller, name, message)
        for field in ("reportingInstance", "action", "reason"):
            text = obj.get(field, "")
            if not text:
                errors.required(field)
            # What is too long is not shown.
            if len(text.encode()) > 128:
                errors.invalid(field, "", "can have at most 128 characters")
        if len(obj.get("message", "").encode()) > 1024:
            errors.invalid("message", "", "can have at most 1024 characters")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        def micro(stamp: str) -> str:
            return age(times.parse(stamp).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), now)

        first = age(obj.get("firstTimestamp"), now)
        if not obj.get("firstTimestamp") and obj.get("eventTime"):
            first = micro(obj["eventTime"])
        last = age(obj["lastTimestamp"], now) if obj.get("lastTimestamp") else first
        count = obj.get("count", 0)
        series = obj.get("series")
        if series:
            if series.get("lastObservedTime"):
                last = micro(series["lastObservedTime"])
            count = series.get("count", 0)
        elif not count:
            count = 1
        involved = obj["involvedObject"]
        target = involved.get("kind", "").lower() + ("/" + involved["name"] if involved.get("name") else "")
        source = obj.get("source") or {}
        component, instance = (
            source.get("component", "") or obj.get("reportingComponent", ""),
            source.get("host", "") or obj.get("reportingInstance", ""),
        )
        shown = f"{component}, {instance}" if instance else component
        return [
            last,
            obj.get("type", ""),
            obj.get("reason", ""),
            target,
            involved.get("fieldPath", ""),
            shown,
            obj.get("message", "").strip(),
            first,
            count,
            obj["metadata"]["name"],
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        involved = obj.get("involvedObject") or {}
        source = (obj.get("source") or {}).get("component", "") or obj.get("reportingComponent", "")
        out = {
            f"involvedObject.{key}": involved.get(key, "")
            for key in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
        }
        out.update(
            reason=obj.get("reason", ""),
            reportingComponent=obj.get("reportingComponent", ""),
            source=source,
            type=obj.get("type", ""),
        )
        return out


__all__ = ["Event", "age_of"]
