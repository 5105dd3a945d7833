"""Questions about access as API objects: the access reviews, TokenReview, SelfSubjectReview, SelfSubjectRulesReview.

Source: k8s.io/kubernetes/pkg/registry/authorization, pkg/registry/authentication, pkg/apis/authorization/validation.
"""

from __future__ import annotations

import json
from typing import Any

from longshore.machinery.errors import Cause, StatusError, bad_request, forbidden, internal_error, invalid
from longshore.master.apiserver.context import Attributes, Object, UserInfo

from .authentication import Authentication, TokenError
from .authorization import Authorization

AUTHORIZATION, AUTHENTICATION = "authorization.k8s.io", "authentication.k8s.io"


class Reviews:
    """Answers reviews. Each method takes the decoded object and gives it back with its status (without managedFields)."""

    def __init__(self, authentication: Authentication, authorization: Authorization, audiences: list[str]) -> None:
        self._authentication = authentication
        self._authorization = authorization
        self._audiences = audiences

    async def subject_access(self, obj: Object) -> Object:
        spec = obj.get("spec") or {}
        causes = [*_subject_causes(spec), *_access_causes(spec)]
        return await self._access(obj, spec, causes, _subject(spec))

    async def local_subject_access(self, obj: Object, namespace: str) -> Object:
        spec = obj.get("spec") or {}
        causes = [*_subject_causes(spec), *_access_causes(spec)]
        resource, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
        if resource is not None and (resource.get("namespace") or "") != namespace:
            causes.append(
                _cause(
                    "spec.resourceAttributes.namespace",
                    resource.get("namespace") or "",
                    "must match metadata.namespace",
                )
            )
        if other is not None:
            causes.append(
                _cause("spec.nonResourceAttributes", _path_value(other), "disallowed on this kind of request")
            )
        return await self._access(obj, spec, causes, _subject(spec))

    async def self_subject_access(self, obj: Object, user: UserInfo) -> Object:
        spec = obj.get("spec") or {}
        return await self._access(obj, spec, _access_causes(spec), user)

    async def _access(self, obj: Object, spec: dict[str, Any], causes: list[Cause], user: UserInfo) -> Object:
        if causes:
            raise invalid(AUTHORIZATION, "", "", causes)
        a = _attributes(spec, user)
        decision = await self._authorization.decide(a)
        status: dict[str, Any] = {"allowed": decision.allowed}
        if decision.verdict == "deny":
            status["denied"] = True
        if decision.reason:
            status["reason"] = decision.reason
        return {**obj, "status": status}

    def self_subject_rules(self, obj: Object, user: UserInfo) -> Object:
        namespace = (obj.get("spec") or {}).get("namespace") or ""
        if not namespace:
            raise bad_request("no namespace on request")
        found = self._authorization.resolve(user, namespace)
        status: dict[str, Any] = {
            "resourceRules": [_resource_rule(r.raw) for r in found.rules if r.raw.get("resources")],
            "nonResourceRules": [_path_rule(r.raw) for r in found.rules if r.raw.get("nonResourceURLs")],
            "incomplete": found.incomplete,
        }
        if found.problems:
            status["evaluationError"] = ", ".join(found.problems)
        return {"kind": obj["kind"], "apiVersion": obj["apiVersion"], "metadata": {}, "spec": {}, "status": status}

    def self_subject(self, obj: Object, user: UserInfo, now: str) -> Object:
        if user.is_anonymous:
            raise forbidden(AUTHENTICATION, "selfsubjectreviews", "", "anonymous users cannot review themselves")
        head = {"kind": obj["kind"], "apiVersion": obj["apiVersion"]}
        return {**head, "metadata": {"creationTimestamp": now}, "status": {"userInfo": user_object(user)}}

    async def token(self, obj: Object, namespace: str = "") -> Object:
        spec = obj.get("spec") or {}
        token = spec.get("token") or ""
        if not token:
            raise bad_request("token is required for TokenReview in authentication")
        wanted = list(spec.get("audiences") or ())
        try:
            found = await self._authentication.review(token, wanted or self._audiences)
        except TokenError as error:
            return {**obj, "status": {"user": {}, "error": str(error)}}
        except StatusError as error:
            raise internal_error(error.message) from error
        status: dict[str, Any] = {"authenticated": True, "user": user_object(found.user)}
        if found.audiences:
            status["audiences"] = found.audiences
        return {**obj, "status": status}


def user_object(user: UserInfo) -> dict[str, Any]:
    """A user as authentication.k8s.io/v1 UserInfo."""
    out: dict[str, Any] = {"username": user.name}
    if user.uid:
        out["uid"] = user.uid
    if user.groups:
        out["groups"] = list(user.groups)
    if user.extra:
        out["extra"] = {k: list(v) for k, v in user.extra.items()}
    return out


def _subject(spec: dict[str, Any]) -> UserInfo:
    return UserInfo(
        spec.get("user") or "", spec.get("uid") or "", tuple(spec.get("groups") or ()), spec.get("extra") or {}
    )


def _attributes(spec: dict[str, Any], user: UserInfo) -> Attributes:
    resource = spec.get("resourceAttributes")
    if resource is None:
        other = spec.get("nonResourceAttributes") or {}
        return Attributes(user, other.get("verb") or "", path=other.get("path") or "", is_resource=False)

    def get(name: str) -> str:
        return resource.get(name) or ""

    labels, fields = (_selector(resource.get(n)) for n in ("labelSelector", "fieldSelector"))
    names = ("verb", "group", "version", "resource", "subresource", "namespace", "name")
    verb, group, version, plural, sub, namespace, name = (get(n) for n in names)
    return Attributes(user, verb, group, version, plural, sub, namespace, name, "", True, labels, fields)


def _selector(value: dict[str, Any] | None) -> str:
    """A selector of a review as query text."""
    if not value:
        return ""
    if value.get("rawSelector"):
        return str(value["rawSelector"])
    parts = []
    for r in value.get("requirements") or ():
        key, operator, values = r.get("key", ""), r.get("operator", ""), list(r.get("values") or ())
        if operator == "In":
            parts.append(f"{key}={values[0]}" if len(values) == 1 else f"{key} in ({','.join(values)})")
        elif operator == "NotIn":
            parts.append(f"{key}!={values[0]}" if len(values) == 1 else f"{key} notin ({','.join(values)})")
        elif operator == "Exists":
            parts.append(key)
        elif operator == "DoesNotExist":
            parts.append(f"!{key}")
    return ",".join(parts)


# ---- validation


def _cause(
    field: str, value: Any, detail: str, reason: str = "FieldValueInvalid", word: str = "Invalid value"
) -> Cause:
    shown = value if isinstance(value, _Raw) else json.dumps(value, ensure_ascii=False)
    return Cause(reason, f"{word}: {shown}: {detail}", field)


class _Raw(str):
    """A value shown as it is."""


def _path_value(other: dict[str, Any]) -> _Raw:
    shown = {"Path": other.get("path") or "", "Verb": other.get("verb") or ""}
    return _Raw(json.dumps(shown, separators=(",", ":"), ensure_ascii=False))


def _subject_causes(spec: dict[str, Any]) -> list[Cause]:
    if not spec.get("user") and not spec.get("groups"):
        return [_cause("spec.user", "", "at least one of user or group must be specified")]
    return []


def _access_causes(spec: dict[str, Any]) -> list[Cause]:
    resource, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if resource is not None and other is not None:
        detail = "cannot be specified in combination with resourceAttributes"
        return [_cause("spec.nonResourceAttributes", _path_value(other), detail)]
    if resource is None and other is None:
        detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        return [_cause("spec.resourceAttributes", None, detail)]
    causes: list[Cause] = []
    for name in ("fieldSelector", "labelSelector"):
        selector = (resource or {}).get(name)
        if selector is None:
            continue
        field = f"spec.resourceAttributes.{name}"
        raw, requirements = selector.get("rawSelector") or "", selector.get("requirements") or []
        if raw and requirements:
            causes.append(_cause(f"{field}.rawSelector", raw, "may not specified at the same time as requirements"))
            continue
        if not raw and not requirements:
            causes.append(
                Cause(
                    "FieldValueRequired",
                    f"Required value: when {field} is specified, requirements or rawSelector is required",
                    f"{field}.requirements",
                )
            )
        for i, requirement in enumerate(requirements):
            causes += _requirement_causes(f"{field}.requirements[{i}]", requirement)
    return causes


def _requirement_causes(field: str, requirement: dict[str, Any]) -> list[Cause]:
    causes: list[Cause] = []
    if not requirement.get("key"):
        causes.append(Cause("FieldValueRequired", "Required value: must be specified", f"{field}.key"))
    operator, values = requirement.get("operator", ""), requirement.get("values") or []
    if operator in ("In", "NotIn"):
        if not values:
            detail = f"Required value: must be specified when `operator` is '{operator}'"
            causes.append(
                Cause("FieldValueRequired", detail.replace(f"'{operator}'", "'In' or 'NotIn'"), f"{field}.values")
            )
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            detail = "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            causes.append(Cause("FieldValueForbidden", detail, f"{field}.values"))
    else:
        causes.append(_cause(f"{field}.operator", operator, "not a valid selector operator"))
    return causes


def _resource_rule(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: raw[k] for k in ("verbs", "apiGroups", "resources", "resourceNames") if raw.get(k)}


def _path_rule(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: raw[k] for k in ("verbs", "nonResourceURLs") if raw.get(k)}
