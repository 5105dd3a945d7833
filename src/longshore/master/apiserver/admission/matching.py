"""Whether a webhook or policy has to do with a request: rules, selectors, equivalent versions, match conditions.

Source: staging apiserver pkg/admission/plugin/webhook/{rules,predicates} and pkg/admission/plugin/policy/matching.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from longshore.api import cel
from longshore.machinery.selectors import SelectorError, from_object
from longshore.master.apiserver.context import AdmissionRequest, Attributes, Decision

Object = dict[str, Any]
EXEMPT = frozenset((
    "validatingwebhookconfigurations", "mutatingwebhookconfigurations", "validatingadmissionpolicies", "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies", "mutatingadmissionpolicybindings",
))  # fmt: skip


class Target(NamedTuple):
    """As what a request is shown: group, version, resource, kind."""

    group: str
    version: str
    resource: str
    kind: tuple[str, str, str]


def is_exempt(a: AdmissionRequest) -> bool:
    """The configurations of admission themselves are nobody's business."""
    return a.attributes.group == "admissionregistration.k8s.io" and a.attributes.resource in EXEMPT


def rule_matches(
    rule: Object,
    operation: str,
    group: str,
    version: str,
    resource: str,
    subresource: str,
    namespaced: bool,
    name: str = "",
) -> bool:
    """One rule of a webhook or of match constraints."""
    scope = rule.get("scope") or "*"
    if (scope == "Namespaced" and not namespaced) or (scope == "Cluster" and namespaced):
        return False
    for key, value in (("operations", operation), ("apiGroups", group), ("apiVersions", version)):
        listed = rule.get(key) or ()
        if "*" not in listed and value not in listed:
            return False
    names = rule.get("resourceNames")
    if names and name not in names:
        return False
    for pattern in rule.get("resources") or ():
        wanted, _, sub = pattern.partition("/")
        if wanted in ("*", resource) and (sub == subresource or sub == "*"):
            return True
    return False


def find_target(a: AdmissionRequest, rules: list[Object], exclude: list[Object], policy: str) -> Target | None:
    """The form in which the rules want the request: as it came, or as an equivalent version; None when they do not want it."""
    at = a.attributes
    # A Namespace counts as being in itself, but not for the scope of rules.
    namespaced = bool(at.namespace) and not (at.resource == "namespaces" and not at.group)
    own = Target(at.group, at.version, at.resource, a.kind)

    def wants(group: str, version: str, resource: str) -> bool:
        def any_of(listed: list[Object]) -> bool:
            return any(
                rule_matches(r, a.operation, group, version, resource, at.subresource, namespaced, at.name)
                for r in listed
            )

        return any_of(rules) and not any_of(exclude)

    if any(
        rule_matches(r, a.operation, at.group, at.version, at.resource, at.subresource, namespaced, at.name)
        for r in exclude
    ):
        return None
    if wants(at.group, at.version, at.resource):
        return own
    if policy != "Equivalent":
        return None
    resource = a.api.resource(at.group, at.resource)
    if resource is None:
        return None
    for version in resource.versions:
        if version != at.version and wants(at.group, version, at.resource):
            kind = a.kind if at.subresource else (resource.group, version, resource.kind)
            return Target(at.group, version, at.resource, kind)
    if at.resource == "events" and at.group in ("", "events.k8s.io"):
        other = "events.k8s.io" if not at.group else ""
        if wants(other, "v1", "events"):
            return Target(other, "v1", "events", (other, "v1", "Event"))
    return None


def selected(a: AdmissionRequest, item: Object) -> bool:
    """namespaceSelector and objectSelector. SelectorError when one is malformed."""
    if not _namespace_selected(a, item.get("namespaceSelector")):
        return False
    selector = from_object(item.get("objectSelector") if item.get("objectSelector") is not None else {})
    if not selector.requirements:
        return True
    for obj in (a.object, a.old):
        if obj is not None and selector.matches((obj.get("metadata") or {}).get("labels") or {}):
            return True
    return False


def _namespace_selected(a: AdmissionRequest, raw: Object | None) -> bool:
    at = a.attributes
    selector = from_object(raw if raw is not None else {})
    is_namespace = at.resource == "namespaces" and not at.group
    if not at.namespace and not is_namespace:
        return True
    if not selector.requirements:
        return True
    if is_namespace and a.operation != "DELETE" and not at.subresource and a.object is not None:
        return selector.matches((a.object.get("metadata") or {}).get("labels") or {})
    found = a.api.get("", "namespaces", "", at.name if is_namespace else at.namespace)
    return selector.matches(((found or {}).get("metadata") or {}).get("labels") or {})


def converted(a: AdmissionRequest, obj: Object | None, target: Target) -> Object | None:
    """obj in the target's version, its kind and version said in it."""
    if obj is None:
        return None
    at = a.attributes
    group, version, kind = target.kind
    api_version = f"{group}/{version}" if group else version
    if (target.group, target.version) == (at.group, at.version) or at.subresource:
        if obj.get("kind") and obj.get("apiVersion"):
            return obj
        return {"kind": kind, "apiVersion": api_version, **obj} if kind else obj
    resource = a.api.resource(target.group, target.resource)
    if resource is None:
        return obj
    return {**resource.convert(obj, target.version), "kind": kind, "apiVersion": api_version}


def request_value(a: AdmissionRequest, target: Target, uid: str) -> Object:
    """The request as webhooks and expressions see it."""
    at = a.attributes
    user: Object = {"username": at.user.name, "groups": list(at.user.groups)}
    if at.user.uid:
        user["uid"] = at.user.uid
    if at.user.extra:
        user["extra"] = {k: list(v) for k, v in at.user.extra.items()}
    name = at.name or ((a.object or {}).get("metadata") or {}).get("name", "")
    out: Object = {
        "uid": uid,
        "kind": dict(zip(("group", "version", "kind"), target.kind, strict=True)),
        "resource": {"group": target.group, "version": target.version, "resource": target.resource},
        "requestKind": dict(zip(("group", "version", "kind"), a.kind, strict=True)),
        "requestResource": {"group": at.group, "version": at.version, "resource": at.resource},
        "operation": a.operation,
        "userInfo": user,
        "dryRun": a.dry_run,
    }
    if name:
        out["name"] = name
    if at.namespace or (at.resource == "namespaces" and not at.group):
        out["namespace"] = at.namespace or name
    if at.subresource:
        out["subResource"] = out["requestSubResource"] = at.subresource
    return out


class Asked(BaseException):
    """An expression wants to know what somebody may do; the caller finds out and runs it again."""

    def __init__(self, attributes: Attributes) -> None:
        super().__init__("authorization needed")
        self.attributes = attributes


class Authorizer:
    """CEL's authorizer library: each method gives a narrower question; check() asks it."""

    def __init__(self, a: AdmissionRequest, known: dict[Attributes, Decision], **parts: Any) -> None:
        self.a = a
        self.known = known
        self.parts = parts

    def _with(self, **more: Any) -> Authorizer:
        return Authorizer(self.a, self.known, **{**self.parts, **more})

    def check(self, verb: str) -> Verdict:
        parts = self.parts
        user = parts.get("user", self.a.user)
        if "path" in parts:
            asked = Attributes(user, verb, path=parts["path"], is_resource=False)
        else:
            asked = Attributes(
                user, verb, parts.get("group", ""), parts.get("version", "*"), parts.get("resource", ""), parts.get("subresource", ""),
                parts.get("namespace", ""), parts.get("name", ""), label_selector=parts.get("label", ""), field_selector=parts.get("field", ""),
            )  # fmt: skip
        key = _key(asked)
        if key not in self.known:
            raise Asked(asked)
        return Verdict(self.known[key])


class Verdict:
    """An answer of the authorizer."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision


def _key(attributes: Attributes) -> Any:
    a = attributes
    return (
        a.user.name,
        a.verb,
        a.group,
        a.version,
        a.resource,
        a.subresource,
        a.namespace,
        a.name,
        a.path,
        a.label_selector,
        a.field_selector,
    )


def _service_account(authorizer: Authorizer, namespace: str, name: str) -> Authorizer:
    from longshore.master.apiserver.context import UserInfo

    user = UserInfo(
        f"system:serviceaccount:{namespace}:{name}",
        groups=("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"),
    )
    return authorizer._with(user=user)


METHODS: dict[str, Any] = {
    "path": lambda z, path: z._with(path=path),
    "group": lambda z, group: z._with(group=group),
    "resource": lambda z, resource: z._with(resource=resource),
    "subresource": lambda z, subresource: z._with(subresource=subresource),
    "namespace": lambda z, namespace: z._with(namespace=namespace),
    "name": lambda z, name: z._with(name=name),
    "fieldSelector": lambda z, text: z._with(field=text),
    "labelSelector": lambda z, text: z._with(label=text),
    "serviceAccount": _service_account,
    "check": lambda z, verb: z.check(verb),
    "allowed": lambda v: v.decision.allowed,
    "reason": lambda v: v.decision.reason,
    "errored": lambda v: False,
    "error": lambda v: "",
}


async def run(
    program: cel.Program, values: Object, a: AdmissionRequest, known: dict[Any, Decision], budget: list[int]
) -> Any:
    """Evaluate, finding out what the expression asks of the authorizer. cel.EvalError."""
    while True:
        try:
            return program.run(values, budget)
        except Asked as asked:
            known[_key(asked.attributes)] = await a.api.authorize(asked.attributes)


def frame(a: AdmissionRequest, target: Target, uid: str, known: dict[Any, Decision]) -> Object:
    """The variables that every expression has."""
    at = a.attributes
    authorizer = Authorizer(a, known)
    own = authorizer._with(
        group=target.group,
        version=target.version,
        resource=target.resource,
        subresource=at.subresource,
        namespace=at.namespace,
        name=at.name,
    )
    return {
        "object": converted(a, a.object, target),
        "oldObject": converted(a, a.old, target),
        "request": {**request_value(a, target, uid), "options": a.options},
        "authorizer": authorizer,
        "authorizer.requestResource": own,
    }


_programs: dict[tuple[str, tuple[str, ...], tuple[str, ...]], cel.Program | str] = {}


def program(text: str, variables: dict[str, Any], results: tuple[str, ...]) -> cel.Program:
    """A compiled expression, kept; cel.CompileError."""
    key = (text, tuple(sorted(variables)), results)
    found = _programs.get(key)
    if found is None:
        if len(_programs) > 4096:
            _programs.clear()
        try:
            found = cel.compile(text, variables, results, METHODS)
        except cel.CompileError as error:
            found = str(error)
        _programs[key] = found
    if isinstance(found, str):
        raise cel.CompileError(found)
    return found


async def conditions_hold(
    conditions: list[Object], variables: dict[str, Any], values: Object, a: AdmissionRequest, known: dict[Any, Decision]
) -> tuple[bool, str]:
    """Whether all match conditions hold, and what went wrong ("" for nothing): a false one outweighs an error."""
    problem = ""
    budget = [cel.TOTAL_LIMIT]
    for condition in conditions:
        try:
            code = program(condition["expression"], variables, ("bool",))
            if await run(code, values, a, known, budget) is not True:
                return False, ""
        except (cel.CompileError, cel.EvalError) as error:
            problem = problem or f"expression '{condition['expression']}' resulted in error: {error}"
    return not problem, problem


__all__ = [
    "METHODS",
    "SelectorError",
    "Target",
    "conditions_hold",
    "converted",
    "find_target",
    "frame",
    "is_exempt",
    "program",
    "request_value",
    "rule_matches",
    "run",
    "selected",
]
