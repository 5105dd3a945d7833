"""Namespace, LimitRange and ResourceQuota."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, qualified_name
from longshore.api.validation.quantities import (
    STANDARD_FINALIZERS,
    container_resource_name,
    quota_resource_name,
    resource_name,
)
from longshore.machinery import quantity


class Namespace(Strategy):
    """A room of names."""

    def name_check(self, name: str) -> list[str]:
        # Upstream checks this name by another rule than labels, with a word of its own.
        return [m.replace("63 bytes", "63 characters") for m in dns1123_label(name)]

    def default(self, obj: Object) -> None:
        labels = obj["metadata"].setdefault("labels", {})
        name = obj["metadata"].get("name", "")
        if name:
            labels["kubernetes.io/metadata.name"] = name
        elif not labels:
            del obj["metadata"]["labels"]

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {"phase": "Active"}
        obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"].get("name", "")
        finalizers = obj["spec"].get("finalizers") or []
        if "kubernetes" not in finalizers:
            obj["spec"]["finalizers"] = [*finalizers, "kubernetes"]

    def prepare_update(self, new: Object, old: Object) -> None:
        new["spec"] = dict(new["spec"])
        if "finalizers" in old["spec"]:
            new["spec"]["finalizers"] = old["spec"]["finalizers"]
        else:
            new["spec"].pop("finalizers", None)

    def prepare_subresource(self, new: Object, old: Object, subresource: str) -> None:
        # finalize: only the spec's finalizers are taken.
        new["status"] = old["status"]

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        for name in obj["spec"].get("finalizers") or ():
            if name == "kubernetes":
                continue
            self._finalizer(errors, name)

    @staticmethod
    def _finalizer(errors: Errors, name: str) -> None:
        problems = qualified_name(name)
        for message in problems:
            errors.invalid("spec.finalizers", name, message)
        if "/" not in name and name not in STANDARD_FINALIZERS:
            errors.invalid(
                "spec.finalizers", name, "name is neither a standard finalizer name nor is it fully qualified"
            )

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        return

    def validate_subresource(self, new: Object, old: Object, subresource: str, errors: Errors) -> None:
        for name in new["spec"].get("finalizers") or ():
            if name != "kubernetes":
                self._finalizer(errors, name)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        phase = new["status"].get("phase", "")
        if not new["metadata"].get("deletionTimestamp"):
            if phase != "Active":
                errors.invalid("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty")
        elif phase != "Terminating":
            errors.invalid("status.Phase", phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("status", {}).get("phase", ""), age_of(obj, now)]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"status.phase": obj.get("status", {}).get("phase", ""), "name": obj["metadata"].get("name", "")}


class ResourceQuota(Strategy):
    """Limits on what a namespace may hold."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        self._spec(obj["spec"], errors)
        status = obj.get("status") or {}
        for name in ("hard", "used"):
            self._amounts(status.get(name), f"status.{name}", errors)

    def _spec(self, spec: Object, errors: Errors) -> None:
        self._amounts(spec.get("hard"), "spec.hard", errors)
        scopes = spec.get("scopes") or ()
        if scopes:
            self._scopes(spec, [*scopes], errors)
        selector = spec.get("scopeSelector")
        if selector is not None:
            self._selector(spec, selector, errors)

    @staticmethod
    def _amounts(amounts: dict[str, str] | None, path: str, errors: Errors) -> None:
        for name in sorted(amounts or ()):
            assert amounts is not None
            here = f"{path}[{name}]"
            quota_resource_name(errors, name, here)
            resource_quantity(errors, name, amounts[name], here)

    @staticmethod
    def _scopes(spec: Object, scopes: list[str], errors: Errors) -> None:
        hard = set(spec.get("hard") or ())
        for scope in scopes:
            if scope not in QUOTA_SCOPES:
                errors.invalid("spec.scopes", [*spec["scopes"]], "unsupported scope")
            for name in sorted(hard):
                if _standard_quota(name) and not _scope_allows(scope, name):
                    errors.invalid("spec.scopes", [*spec["scopes"]], "unsupported scope applied to resource")
        for one, two in (("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")):
            if one in scopes and two in scopes:
                errors.invalid("spec.scopes", [*spec["scopes"]], "conflicting scopes")

    @staticmethod
    def _selector(spec: Object, selector: Object, errors: Errors) -> None:
        path = "spec.scopeSelector.matchExpressions"
        scopes = set()
        for expression in selector.get("matchExpressions") or ():
            scope, operator, values = (
                expression.get("scopeName", ""),
                expression.get("operator", ""),
                expression.get("values") or [],
            )
            here = f"{path}.scopeName"
            if scope not in QUOTA_SCOPES:
                errors.invalid(here, scope, "unsupported scope")
            for name in sorted(spec.get("hard") or ()):
                if _standard_quota(name) and not _scope_allows(scope, name):
                    errors.invalid(
                        here,
                        [_go_requirement(e) for e in selector["matchExpressions"]],
                        "unsupported scope applied to resource",
                    )
            if (
                scope in ("BestEffort", "NotBestEffort", "Terminating", "NotTerminating", "CrossNamespacePodAffinity")
                and operator != "Exists"
            ):
                errors.invalid(
                    f"{path}.operator",
                    operator,
                    "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
                )
            if operator in ("In", "NotIn"):
                if not values:
                    errors.required(
                        f"{path}.values",
                        "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                    )
            elif operator in ("Exists", "DoesNotExist"):
                if values:
                    errors.invalid(
                        f"{path}.values",
                        values,
                        "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                    )
            else:
                errors.invalid(f"{path}.operator", operator, "not a valid selector operator")
            scopes.add(scope)
        for one, two in (("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")):
            if one in scopes and two in scopes:
                errors.invalid(path, [_go_requirement(e) for e in selector["matchExpressions"]], "conflicting scopes")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self._spec(new["spec"], errors)
        if sorted(new["spec"].get("scopes") or ()) != sorted(old["spec"].get("scopes") or ()):
            errors.invalid("spec.scopes", new["spec"].get("scopes"), "field is immutable")

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        if not new["metadata"].get("resourceVersion"):
            errors.required("resourceVersion")
        for name in ("hard", "used"):
            self._amounts((new.get("status") or {}).get(name), f"status.{name}", errors)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        hard, used = obj.get("status", {}).get("hard") or {}, obj.get("status", {}).get("used") or {}
        requests: list[str] = []
        limits: list[str] = []
        for name in sorted(hard):
            text = f"{name}: {used.get(name, '0')}/{hard[name]}"
            (limits if name.startswith("limits") else requests).append(text)
        return [obj["metadata"]["name"], ", ".join(requests), ", ".join(limits), age_of(obj, now)]


def _go_requirement(expression: Object) -> Object:
    return {
        "ScopeName": expression.get("scopeName", ""),
        "Operator": expression.get("operator", ""),
        "Values": expression.get("values"),
    }


QUOTA_SCOPES = (
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
)
_POD_QUOTA = frozenset(
    (
        "pods",
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "count/pods",
    )
)


def _standard_quota(name: str) -> bool:
    from longshore.api.validation.quantities import STANDARD_QUOTA

    return name in STANDARD_QUOTA


def _scope_allows(scope: str, name: str) -> bool:
    if scope == "BestEffort":
        return name == "pods"
    if scope in ("NotBestEffort", "Terminating", "NotTerminating", "PriorityClass", "CrossNamespacePodAffinity"):
        return name in _POD_QUOTA
    if scope == "VolumeAttributesClass":
        return name in ("persistentvolumeclaims", "requests.storage")
    return True


def resource_quantity(errors: Errors, name: str, amount: str, path: str) -> None:
    """An amount of a resource: not negative, whole where the resource is counted."""
    from longshore.api.validation.quantities import is_integer_resource

    parsed = quantity.parse(amount)
    if parsed.nanos < 0:
        errors.invalid(path, amount, "must be greater than or equal to 0")
    if is_integer_resource(name) and parsed.nanos % quantity.NANO:
        errors.invalid(path, amount, "must be an integer")


class LimitRange(Strategy):
    """Defaults and bounds for what pods of a namespace ask for."""

    def default(self, obj: Object) -> None:
        for item in obj["spec"].get("limits") or ():
            if item.get("type") != "Container":
                continue
            default, request = item.get("default") or {}, item.get("defaultRequest") or {}
            for name, amount in (item.get("max") or {}).items():
                default.setdefault(name, amount)
            for name, amount in default.items():
                request.setdefault(name, amount)
            for name, amount in (item.get("min") or {}).items():
                request.setdefault(name, amount)
            if default:
                item["default"] = default
            if request:
                item["defaultRequest"] = request

    def prepare_create(self, obj: Object) -> None:
        if not obj["metadata"].get("name"):
            obj["metadata"]["name"] = obj["metadata"]["uid"]

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        seen = set()
        for index, item in enumerate(obj["spec"].get("limits") or ()):
            path = f"spec.limits[{index}]"
            kind = item.get("type", "")
            for message in _limit_type(kind):
                errors.invalid(f"{path}.type", kind, message)
            if kind in seen:
                errors.duplicate(f"{path}.type", kind)
            seen.add(kind)
            self._item(item, kind, path, errors)

    @staticmethod
    def _item(item: Object, kind: str, path: str, errors: Errors) -> None:
        keys: set[str] = set()
        named = container_resource_name if kind in ("Pod", "Container") else resource_name
        maps = {
            name: item.get(name) or {} for name in ("min", "max", "default", "defaultRequest", "maxLimitRequestRatio")
        }
        for name in ("max", "min"):
            for key in sorted(maps[name]):
                named(errors, key, f"{path}.{name}[{key}]")
                keys.add(key)
        if kind == "Pod":
            for name in ("default", "defaultRequest"):
                if maps[name]:
                    errors.forbidden(f"{path}.{name}", "may not be specified when `type` is 'Pod'")
        else:
            for name in ("default", "defaultRequest"):
                for key in sorted(maps[name]):
                    named(errors, key, f"{path}.{name}[{key}]")
                    keys.add(key)
        if kind == "PersistentVolumeClaim" and "storage" not in maps["min"] and "storage" not in maps["max"]:
            errors.required(
                f"{path}.limits", "either minimum or maximum storage value is required, but neither was provided"
            )
        for key in sorted(maps["maxLimitRequestRatio"]):
            named(errors, key, f"{path}.maxLimitRequestRatio[{key}]")
            keys.add(key)
        for key in sorted(keys):
            low, high, default, request, ratio = (
                maps[n].get(key) for n in ("min", "max", "default", "defaultRequest", "maxLimitRequestRatio")
            )

            def compare(
                field: str,
                small: str | None,
                large: str | None,
                shown: str | None,
                first: str,
                second: str,
                key: str = key,
            ) -> None:
                if small is not None and large is not None and quantity.parse(small) > quantity.parse(large):
                    errors.invalid(
                        f"{path}.{field}[{key}]", shown, f"{first} value {small} is greater than {second} value {large}"
                    )

            compare("min", low, high, low, "min", "max")
            compare("defaultRequest", low, request, request, "min", "default request")
            compare("defaultRequest", request, high, request, "default request", "max")
            compare("defaultRequest", request, default, request, "default request", "default limit")
            compare("default", low, default, low, "min", "default")
            compare("default", default, high, high, "default", "max")
            if ratio is not None and quantity.parse(ratio).nanos < quantity.NANO:
                errors.invalid(f"{path}.maxLimitRequestRatio[{key}]", ratio, f"ratio {ratio} is less than 1")
            if ratio is not None and low is not None and high is not None:
                a, b, r = quantity.parse(low), quantity.parse(high), quantity.parse(ratio)
                if a.nanos and r.nanos / quantity.NANO > b.nanos / a.nanos:
                    limit = float(f"{b.nanos / a.nanos:.6f}")
                    errors.invalid(
                        f"{path}.maxLimitRequestRatio[{key}]",
                        ratio,
                        f"ratio {ratio} is greater than max/min = {limit:f}",
                    )


def _limit_type(kind: str) -> list[str]:
    found = qualified_name(kind)
    if not found and "/" not in kind and kind not in ("Pod", "Container", "PersistentVolumeClaim"):
        found = ["must be a standard limit type or fully qualified"]
    return found
