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

    def validate_meta(self, obj: Object, errors: Errors, namespaced: bool) -> None:
        # Upstream checks an event's metadata inside the rest, and more loosely.
        return

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        self._legacy(obj, errors)
        if obj.get("eventTime") is not None:
            self._modern(obj, errors)

    @staticmethod
    def _legacy(obj: Object, errors: Errors) -> None:
        involved = obj["involvedObject"]
        namespace = obj["metadata"].get("namespace", "")
        if obj.get("eventTime") is None:
            if not involved.get("namespace"):
                if namespace not in ("", "default"):
                    errors.invalid(
                        "involvedObject.namespace", involved.get("namespace", ""), "does not match event.namespace"
                    )
            elif namespace != involved["namespace"]:
                errors.invalid("involvedObject.namespace", involved["namespace"], "does not match event.namespace")
        elif not involved.get("namespace"):
            if namespace not in ("", "default", "kube-system"):
                errors.invalid(
                    "involvedObject.namespace", involved.get("namespace", ""), "does not match event.namespace"
                )
        elif namespace != involved["namespace"]:
            errors.invalid("involvedObject.namespace", involved["namespace"], "does not match event.namespace")
        for message in dns1123_subdomain(namespace):
            errors.invalid("namespace", namespace, message)

    @staticmethod
    def _modern(obj: Object, errors: Errors) -> None:
        controller, instance = obj.get("reportingComponent", ""), obj.get("reportingInstance", "")
        if not controller:
            errors.required("reportingController")
        for message in qualified_name(controller):
            errors.invalid("reportingController", controller, message)
        if not instance:
            errors.required("reportingInstance")
        if len(instance) > 128:
            errors.invalid("reportingInstance", instance, "can have at most 128 characters")
        if not obj.get("action"):
            errors.required("action")
        if len(obj.get("action", "")) > 128:
            errors.invalid("action", obj["action"], "can have at most 128 characters")
        if not obj.get("reason"):
            errors.required("reason")
        if len(obj.get("reason", "")) > 128:
            errors.invalid("reason", obj["reason"], "can have at most 128 characters")
        if len(obj.get("message", "").encode()) > 1024:
            errors.invalid("message", obj["message"], "can have at most 1024 characters")
        if obj.get("type", "") not in ("Normal", "Warning"):
            errors.invalid("type", obj.get("type", ""), "has invalid value: " + obj.get("type", ""))

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
