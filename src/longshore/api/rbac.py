"""rbac.authorization.k8s.io: Role, ClusterRole and their bindings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api.gotypes import dump
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_subdomain, path_segment
from longshore.api.validation.selectors import label_selector

GROUP = "rbac.authorization.k8s.io"


class _Rbac(Strategy):
    def name_check(self, name: str) -> list[str]:
        return path_segment(name)


def policy_rule(errors: Errors, rule: Object, path: str, *, namespaced: bool) -> None:
    """One rule of a role."""
    if not rule.get("verbs"):
        errors.required(f"{path}.verbs", "verbs must contain at least one value")
    urls = rule.get("nonResourceURLs") or []
    if urls:
        if namespaced:
            errors.invalid(f"{path}.nonResourceURLs", urls, "namespaced rules cannot apply to non-resource URLs")
        if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
            errors.invalid(
                f"{path}.nonResourceURLs", urls, "rules cannot apply to both regular resources and non-resource URLs"
            )
        return
    if not rule.get("apiGroups"):
        errors.required(f"{path}.apiGroups", "resource rules must supply at least one api group")
    if not rule.get("resources"):
        errors.required(f"{path}.resources", "resource rules must supply at least one resource")


class Role(_Rbac):
    """What may be done in a namespace."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        for index, rule in enumerate(obj.get("rules") or ()):
            policy_rule(errors, rule, f"rules[{index}]", namespaced=True)


class ClusterRole(_Rbac):
    """What may be done anywhere, or outside namespaces."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        for index, rule in enumerate(obj.get("rules") or ()):
            policy_rule(errors, rule, f"rules[{index}]", namespaced=False)
        aggregation = obj.get("aggregationRule")
        if aggregation is not None:
            selectors = aggregation.get("clusterRoleSelectors") or []
            if not selectors:
                errors.required(
                    "aggregationRule.clusterRoleSelectors",
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                )
            for index, selector in enumerate(selectors):
                where = f"aggregationRule.clusterRoleSelectors[{index}]"
                if not label_selector(errors, selector, where):
                    errors.invalid(where, None, "invalid label selector.")


class _Binding(_Rbac):
    namespaced = True
    kinds: tuple[str, ...] = ("Role", "ClusterRole")

    def default(self, obj: Object) -> None:
        if not obj["roleRef"].get("apiGroup"):
            obj["roleRef"]["apiGroup"] = GROUP
        for subject in obj.get("subjects") or ():
            if not subject.get("apiGroup") and subject.get("kind") in ("User", "Group"):
                subject["apiGroup"] = GROUP

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        reference = obj["roleRef"]
        if reference.get("apiGroup") != GROUP:
            errors.unsupported("roleRef.apiGroup", reference.get("apiGroup", ""), (GROUP,))
        if reference.get("kind") not in self.kinds:
            errors.unsupported("roleRef.kind", reference.get("kind", ""), self.kinds)
        if not reference.get("name"):
            errors.required("roleRef.name")
        else:
            for message in path_segment(reference["name"]):
                errors.invalid("roleRef.name", reference["name"], message)
        for index, subject in enumerate(obj.get("subjects") or ()):
            _subject(errors, subject, f"subjects[{index}]", self.namespaced)

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        self.validate(new, errors, old)
        if new["roleRef"] != old["roleRef"]:
            errors.invalid("roleRef", dump("io.k8s.api.rbac.v1.RoleRef", new["roleRef"]), "cannot change roleRef")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        named: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
        for subject in obj.get("subjects") or ():
            kind = subject.get("kind", "")
            if kind == "ServiceAccount":
                named[kind].append(f"{subject.get('namespace', '')}/{subject.get('name', '')}")
            elif kind in named:
                named[kind].append(subject.get("name", ""))
        role = f"{obj['roleRef'].get('kind', '')}/{obj['roleRef'].get('name', '')}"
        return [obj["metadata"]["name"], role, age_of(obj, now), *(", ".join(names) for names in named.values())]


def _subject(errors: Errors, subject: Object, path: str, namespaced: bool) -> None:
    name, kind, group = subject.get("name", ""), subject.get("kind", ""), subject.get("apiGroup", "")
    if not name:
        errors.required(f"{path}.name")
    if kind == "ServiceAccount":
        for message in dns1123_subdomain(name) if name else ():
            errors.invalid(f"{path}.name", name, message)
        if group:
            errors.unsupported(f"{path}.apiGroup", group, ("",))
        if not namespaced and not subject.get("namespace"):
            errors.required(f"{path}.namespace")
    elif kind in ("User", "Group"):
        if group != GROUP:
            errors.unsupported(f"{path}.apiGroup", group, (GROUP,))
    else:
        errors.unsupported(f"{path}.kind", kind, ("ServiceAccount", "User", "Group"))


class RoleBinding(_Binding):
    """A role for somebody in a namespace."""


class ClusterRoleBinding(_Binding):
    """A cluster role for somebody everywhere."""

    namespaced = False
    kinds = ("ClusterRole",)


STRATEGIES = {
    "ClusterRole": ClusterRole,
    "ClusterRoleBinding": ClusterRoleBinding,
    "Role": Role,
    "RoleBinding": RoleBinding,
}
