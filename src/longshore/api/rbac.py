"""rbac.authorization.k8s.io: roles and their bindings.

Source: k8s.io/kubernetes/pkg/apis/rbac/validation, pkg/apis/rbac/v1/defaults.go, pkg/printers/internalversion.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_subdomain, path_segment
from longshore.api.validation.selectors import label_selector

GROUP = "rbac.authorization.k8s.io"


class _Named(Strategy):
    status: ClassVar[bool] = False

    def name_check(self, name: str) -> list[str]:
        return path_segment(name)


class Role(_Named):
    """What may be done in one namespace."""

    namespaced: ClassVar[bool] = True

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        for i, rule in enumerate(obj.get("rules") or ()):
            self._rule(rule, f"rules[{i}]", errors)

    def _rule(self, rule: Object, path: str, errors: Errors) -> None:
        if not rule.get("verbs"):
            errors.required(f"{path}.verbs", "verbs must contain at least one value")
        urls = rule.get("nonResourceURLs")
        if urls:
            field = f"{path}.nonResourceURLs"
            if self.namespaced:
                errors.invalid(field, urls, "namespaced rules cannot apply to non-resource URLs")
            if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
                errors.invalid(field, urls, "rules cannot apply to both regular resources and non-resource URLs")
            return
        if not rule.get("apiGroups"):
            errors.required(f"{path}.apiGroups", "resource rules must supply at least one api group")
        if not rule.get("resources"):
            errors.required(f"{path}.resources", "resource rules must supply at least one resource")


class ClusterRole(Role):
    """What may be done everywhere, or in a namespace that binds it."""

    namespaced: ClassVar[bool] = False

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        super().validate(obj, errors, old)
        aggregation = obj.get("aggregationRule")
        if aggregation is None:
            return
        path = "aggregationRule.clusterRoleSelectors"
        selectors = aggregation.get("clusterRoleSelectors") or []
        if not selectors:
            errors.required(path, "at least one clusterRoleSelector required if aggregationRule is non-nil")
        for i, selector in enumerate(selectors):
            label_selector(errors, selector, f"{path}[{i}]")


class RoleBinding(_Named):
    """Who has a role in one namespace."""

    namespaced: ClassVar[bool] = True

    def default(self, obj: Object) -> None:
        reference = obj.setdefault("roleRef", {})
        if not reference.get("apiGroup"):
            reference["apiGroup"] = GROUP
        for subject in obj.get("subjects") or ():
            if not subject.get("apiGroup") and subject.get("kind") in ("User", "Group"):
                subject["apiGroup"] = GROUP

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        reference = obj.get("roleRef") or {}
        group, kind, name = (reference.get(k) or "" for k in ("apiGroup", "kind", "name"))
        if group != GROUP:
            errors.unsupported("roleRef.apiGroup", group, [GROUP])
        if kind not in ("Role", "ClusterRole") or (kind == "Role" and not self.namespaced):
            errors.unsupported("roleRef.kind", kind, ["Role", "ClusterRole"] if self.namespaced else ["ClusterRole"])
        if not name:
            errors.required("roleRef.name", "")
        for message in path_segment(name) if name else ():
            errors.invalid("roleRef.name", name, message)
        for i, subject in enumerate(obj.get("subjects") or ()):
            self._subject(subject, f"subjects[{i}]", errors)

    def _subject(self, subject: Object, path: str, errors: Errors) -> None:
        kind, name, group = (subject.get(k) or "" for k in ("kind", "name", "apiGroup"))
        if not name:
            errors.required(f"{path}.name", "")
        if kind == "ServiceAccount":
            for message in dns1123_subdomain(name) if name else ():
                errors.invalid(f"{path}.name", name, message)
            if group:
                errors.unsupported(f"{path}.apiGroup", group, [""])
            if not self.namespaced and not subject.get("namespace"):
                errors.required(f"{path}.namespace", "")
        elif kind in ("User", "Group"):
            if group != GROUP:
                errors.unsupported(f"{path}.apiGroup", group, [GROUP])
        else:
            errors.unsupported(f"{path}.kind", kind, ["ServiceAccount", "User", "Group"])

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        reference = new.get("roleRef") or {}
        if reference != (old.get("roleRef") or {}):
            shown = {k: reference.get(k[0].lower() + k[1:], "") for k in ("Kind", "Name")}
            errors.invalid("roleRef", {"APIGroup": reference.get("apiGroup", ""), **shown}, "cannot change roleRef")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        reference = obj.get("roleRef") or {}
        found: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
        for subject in obj.get("subjects") or ():
            name = subject.get("name", "")
            if subject.get("kind") == "ServiceAccount":
                name = f"{subject.get('namespace', '')}/{name}"
            found.get(subject.get("kind", ""), []).append(name)
        role = f"{reference.get('kind', '')}/{reference.get('name', '')}"
        return [obj["metadata"]["name"], role, age_of(obj, now), *(", ".join(names) for names in found.values())]


class ClusterRoleBinding(RoleBinding):
    """Who has a role everywhere."""

    namespaced: ClassVar[bool] = False


STRATEGIES = {
    "ClusterRole": ClusterRole,
    "ClusterRoleBinding": ClusterRoleBinding,
    "Role": Role,
    "RoleBinding": RoleBinding,
}
