"""apiregistration.k8s.io: APIService."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1035_label, dns1123_subdomain, path_segment, port_number


class APIService(Strategy):
    """A group version, and who serves it."""

    standard_finalizers = False

    def name_check(self, name: str) -> list[str]:
        return path_segment(name)

    def default(self, obj: Object) -> None:
        service = obj["spec"].get("service")
        if service is not None and service.get("port") is None:
            service["port"] = 443

    def validate_meta(self, obj: Object, errors: Errors, namespaced: bool) -> None:
        super().validate_meta(obj, errors, namespaced)
        spec, name = obj["spec"], obj["metadata"].get("name", "")
        want = f"{spec.get('version', '')}.{spec.get('group', '')}"
        if name and name != want and not path_segment(name):
            errors.invalid("metadata.name", name, f'must be `spec.version+"."+spec.group`: "{want}"')

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}
        if obj["spec"].get("service") is None:
            obj["status"]["conditions"] = [local_condition()]

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        if not spec.get("group") and spec.get("version") != "v1":
            errors.required("spec.group", "only v1 may have an empty group and it better be legacy kube")
        if spec.get("group"):
            for message in dns1123_subdomain(spec["group"]):
                errors.invalid("spec.group", spec["group"], message)
        for message in dns1035_label(spec.get("version", "")):
            errors.invalid("spec.version", spec.get("version", ""), message)
        minimum, version = spec.get("groupPriorityMinimum", 0), spec.get("versionPriority", 0)
        if not 0 < minimum <= 20000:
            errors.invalid("spec.groupPriorityMinimum", minimum, "must be positive and less than 20000")
        if not 0 < version <= 1000:
            errors.invalid("spec.versionPriority", version, "must be positive and less than 1000")
        service = spec.get("service")
        if service is None:
            if spec.get("caBundle"):
                errors.invalid(
                    "spec.caBundle",
                    f"{len(spec['caBundle']) * 3 // 4} bytes",
                    "local APIServices may not have a caBundle",
                )
            if spec.get("insecureSkipTLSVerify"):
                errors.invalid(
                    "spec.insecureSkipTLSVerify", True, "local APIServices may not have insecureSkipTLSVerify"
                )
            return
        for key in ("namespace", "name"):
            if not service.get(key):
                errors.required(f"spec.service.{key}")
        for message in port_number(service.get("port", 443)):
            errors.invalid("spec.service.port", service.get("port", 443), "port is not valid: " + message)
        if spec.get("insecureSkipTLSVerify") and spec.get("caBundle"):
            errors.invalid("spec.insecureSkipTLSVerify", True, "may not be true if caBundle is present")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        service = obj["spec"].get("service")
        shown = f"{service.get('namespace', '')}/{service.get('name', '')}" if service is not None else "Local"
        state = "Unknown"
        for condition in obj["status"].get("conditions") or ():
            if condition.get("type") == "Available":
                state = condition.get("status", "")
                if state != "True":
                    state = f"{state} ({condition.get('reason', '')})"
        return [obj["metadata"]["name"], shown, state, age_of(obj, now)]


def local_condition() -> Object:
    """The condition of an APIService that this server serves itself."""
    from longshore.api import times

    return {
        "type": "Available",
        "status": "True",
        "lastTransitionTime": times.now(),
        "reason": "Local",
        "message": "Local APIServices are always available",
    }


STRATEGIES = {"APIService": APIService}
