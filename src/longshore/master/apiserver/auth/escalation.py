"""Nobody gives away rights that they do not have: checks on writes of roles and bindings.

A mutating-phase admission plugin that stands last, so that it sees what will be stored, before validation, where
upstream has the check. Source: k8s.io/kubernetes/pkg/registry/rbac/*/policybased, rbac/validation ConfirmNoEscalation.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from longshore.machinery.errors import forbidden, not_found
from longshore.master.apiserver.context import AdmissionRequest, Authorizer, Object

from .rbac import GROUP, RBAC
from .rules import Rule, compact, covers, describe
from .users import MASTERS, quoted, quoted_list

EVERYTHING = [
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    {"nonResourceURLs": ["*"], "verbs": ["*"]},
]
_BINDINGS = ("rolebindings", "clusterrolebindings")


class EscalationCheck:
    """The admission plugin."""

    name = "RBACEscalation"

    def __init__(self, rbac: RBAC, authorizer: Authorizer) -> None:
        self._rbac = rbac
        self._authorizer = authorizer

    def handles(self, operation: str, resource: str, subresource: str = "", group: str = "") -> bool:
        return (
            group == GROUP
            and not subresource
            and operation in ("CREATE", "UPDATE")
            and resource in ("roles", "clusterroles", *_BINDINGS)
        )

    async def admit(self, a: AdmissionRequest) -> None:
        obj = a.object
        if obj is None or MASTERS in a.user.groups or (a.old is not None and _only_garbage_fields(obj, a.old)):
            return
        if a.attributes.resource in _BINDINGS:
            await self._binding(a, obj)
        else:
            await self._role(a, obj)

    async def validate(self, a: AdmissionRequest) -> None:
        return

    async def _role(self, a: AdmissionRequest, obj: Object) -> None:
        asked = a.attributes
        if a.old is not None and (obj.get("rules") or []) == (a.old.get("rules") or []):
            if obj.get("aggregationRule") == a.old.get("aggregationRule"):
                return
        name = obj["metadata"].get("name", "")
        if await self._may(replace(asked, verb="escalate", name=name, subresource="")):
            return
        self._confirm(a, obj.get("rules") or [], name)
        if asked.resource == "clusterroles" and obj.get("aggregationRule") is not None:
            owned, _ = self._rbac.rules_for(a.user, "")
            if covers(owned, EVERYTHING):
                why = "must have cluster-admin privileges to use the aggregationRule"
                raise forbidden(GROUP, asked.resource, name, why)

    async def _binding(self, a: AdmissionRequest, obj: Object) -> None:
        asked = a.attributes
        reference = obj.get("roleRef") or {}
        kind, role = reference.get("kind", ""), reference.get("name", "")
        plural = {"Role": "roles", "ClusterRole": "clusterroles"}.get(kind)
        if plural is None:
            return  # validation says what is wrong with it
        if await self._may(replace(asked, verb="bind", resource=plural, name=role, subresource="")):
            return
        rules = self._rbac.role_rules(kind, role, asked.namespace)
        if rules is None:
            raise not_found(GROUP, asked.resource, role)
        self._confirm(a, [r.raw for r in rules], obj["metadata"].get("name", ""))

    async def _may(self, a: Any) -> bool:
        answer = self._authorizer.authorize(a)
        decision = await answer if inspect.isawaitable(answer) else answer
        return bool(decision.allowed)

    def _confirm(self, a: AdmissionRequest, wanted: list[dict[str, Any]], name: str) -> None:
        owned: list[Rule]
        owned, problems = self._rbac.rules_for(a.user, a.attributes.namespace)
        missing = covers(owned, wanted)
        if not missing:
            return
        lines = "\n".join(sorted({describe(r) for r in compact(missing)}))
        message = (
            f"user {quoted(a.user.name)} (groups={quoted_list(a.user.groups)}) "
            f"is attempting to grant RBAC permissions not currently held:\n{lines}"
        )
        if problems:
            message += f"; resolution errors: [{' '.join(problems)}]"
        raise forbidden(GROUP, a.attributes.resource, name, message)


def _only_garbage_fields(new: Object, old: Object) -> bool:
    """Whether an update changes nothing but what the garbage collector changes (IsOnlyMutatingGCFields)."""

    def rest(obj: Object) -> Object:
        ignored = ("ownerReferences", "finalizers", "resourceVersion", "managedFields", "generation")
        meta = {k: v for k, v in obj.get("metadata", {}).items() if k not in ignored}
        return {**{k: v for k, v in obj.items() if k not in ("kind", "apiVersion")}, "metadata": meta}

    return rest(new) == rest(old)
