"""admissionregistration.k8s.io: webhook configurations and admission policies with their bindings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from longshore.api import cel
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import (
    c_identifier,
    dns1035_label,
    dns1123_subdomain,
    fully_qualified_name,
    qualified_name,
)
from longshore.api.validation.selectors import label_selector

_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
# What expressions of policies and match conditions may name.
VARIABLES: dict[str, Any] = {
    "object": "dyn",
    "oldObject": "dyn",
    "request": "dyn",
    "authorizer": "dyn",
    "authorizer.requestResource": "dyn",
    "namespaceObject": "dyn",
    "params": "dyn",
    "variables": "dyn",
}
_MATCH = {k: VARIABLES[k] for k in ("object", "oldObject", "request", "authorizer", "authorizer.requestResource")}


def authorizer_methods() -> dict[str, Any]:
    """The names of the authorizer library's methods, for compiling."""

    def unbound(*_: Any) -> Any:
        raise cel.EvalError("no such overload")

    names = (
        "path",
        "check",
        "group",
        "resource",
        "subresource",
        "namespace",
        "name",
        "serviceAccount",
        "fieldSelector",
        "labelSelector",
        "allowed",
        "reason",
        "errored",
        "error",
    )
    return dict.fromkeys(names, unbound)


def expression(
    errors: Errors, text: str, path: str, variables: Mapping[str, Any], results: tuple[str, ...]
) -> cel.Program | None:
    """Compile an expression and complain of it; the program when it is good."""
    try:
        return cel.compile(text, variables, results, authorizer_methods())
    except cel.CompileError as error:
        errors.invalid(path, text, str(error))
        return None


def default_matching(value: Object) -> None:
    """Selectors and the match policy of a webhook or of match constraints."""
    value.setdefault("matchPolicy", "Equivalent")
    value.setdefault("namespaceSelector", {})
    value.setdefault("objectSelector", {})
    for key in ("rules", "resourceRules", "excludeResourceRules"):
        for rule in value.get(key) or ():
            rule.setdefault("scope", "*")


def client_config(errors: Errors, client: Object, path: str) -> None:
    """Where a webhook is: a URL or a service."""
    url, service = client.get("url"), client.get("service")
    if (url is None) == (service is None):
        errors.required(path, "exactly one of url or service is required")
    elif url is not None:
        _url(errors, url, f"{path}.url")
    else:
        assert service is not None
        for key in ("name", "namespace"):
            if not service.get(key):
                errors.required(f"{path}.service.{key}")
        where = service.get("path")
        if where is not None:
            _path(errors, where, f"{path}.service.path")
        if service.get("port") is not None and not 1 <= service["port"] <= 65535:
            errors.invalid(
                f"{path}.service.port", service["port"], "port is not valid: must be between 1 and 65535, inclusive"
            )


def _url(errors: Errors, url: str, path: str) -> None:
    form = "desired format: https://host[/path]"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        errors.required(path, f"url must be a valid URL: {error}; {form}")
        return
    if parts.scheme != "https":
        errors.invalid(path, parts.scheme, f"'https' is the only allowed URL scheme; {form}")
    if not parts.netloc.rpartition("@")[2]:
        errors.invalid(path, "", f"host must be specified; {form}")
    if "@" in parts.netloc:
        errors.invalid(path, parts.netloc.rpartition("@")[0], "user information is not permitted in the URL")
    if parts.fragment:
        errors.invalid(path, parts.fragment, "fragments are not permitted in the URL")
    if parts.query:
        errors.invalid(path, parts.query, "query parameters are not permitted in the URL")


def _path(errors: Errors, text: str, path: str) -> None:
    if text == "/" or not text:
        return
    if text == "//":
        errors.invalid(path, text, "segment[0] may not be empty")
    if not text.startswith("/"):
        errors.invalid(path, text, "must start with a '/'")
    steps = text[1:].rstrip("/").split("/")
    for index, step in enumerate(steps):
        if not step:
            errors.invalid(path, text, f"segment[{index}] may not be empty")
            continue
        for message in dns1123_subdomain(step):
            errors.invalid(path, text, f"segment[{index}]: {message}")


def rules(errors: Errors, rule: Object, path: str, *, policy: bool = False) -> None:
    """Operations, groups, versions, resources and scope."""
    operations = rule.get("operations") or []
    if not operations:
        errors.required(f"{path}.operations")
    elif "*" in operations and len(operations) > 1:
        errors.invalid(f"{path}.operations", operations, "if '*' is present, must not specify other operations")
    for index, one in enumerate(operations):
        if one not in _OPERATIONS:
            errors.unsupported(f"{path}.operations[{index}]", one, _OPERATIONS)
    for key, what in (("apiGroups", "API groups"), ("apiVersions", "API versions")):
        values = rule.get(key) or []
        if not values:
            errors.required(f"{path}.{key}")
        elif "*" in values and len(values) > 1:
            errors.invalid(f"{path}.{key}", values, f"if '*' is present, must not specify other {what}")
        if key == "apiVersions":
            for index, value in enumerate(values):
                if not value:
                    errors.required(f"{path}.{key}[{index}]")
    _resources(errors, rule.get("resources") or [], f"{path}.resources")
    scope = rule.get("scope")
    if scope is not None and scope not in ("*", "Cluster", "Namespaced"):
        errors.unsupported(f"{path}.scope", scope, ("*", "Cluster", "Namespaced"))


def _resources(errors: Errors, values: list[str], path: str) -> None:
    if not values:
        errors.required(path)
        return
    wildcard = {v.partition("/")[2] for v in values if v.startswith("*/")}
    whole = {v.partition("/")[0] for v in values if v.endswith("/*")}
    for index, value in enumerate(values):
        here = f"{path}[{index}]"
        if not value:
            errors.required(here)
        elif value == "*/*" and len(values) > 1:
            errors.invalid(path, values, "if '*/*' is present, must not specify other resources")
        elif value == "*" and any("/" not in v for v in values if v != "*"):
            errors.invalid(path, values, "if '*' is present, must not specify other resources without subresources")
        elif "/" in value:
            left, _, right = value.partition("/")
            if left != "*" and right in wildcard:
                errors.invalid(here, value, f"if '*/{right}' is present, must not specify {value}")
            if right != "*" and left in whole:
                errors.invalid(here, value, f"if '{left}/*' is present, must not specify {value}")


def match_conditions(errors: Errors, conditions: list[Object], path: str, variables: Mapping[str, Any]) -> None:
    """CEL conditions under which a webhook or policy is asked at all."""
    if len(conditions) > 64:
        errors.too_many(path, len(conditions), 64)
    names: set[str] = set()
    for index, condition in enumerate(conditions):
        here = f"{path}[{index}]"
        text = condition.get("expression", "")
        if not text.strip():
            errors.required(f"{here}.expression")
        else:
            expression(errors, text, f"{here}.expression", variables, ("bool",))
        name = condition.get("name", "")
        if not name:
            errors.required(f"{here}.name")
        elif name in names:
            errors.duplicate(f"{here}.name", name)
        else:
            for message in qualified_name(name):
                errors.invalid(f"{here}.name", name, message)
        names.add(name)


def _selectors(errors: Errors, value: Object, path: str) -> None:
    for key in ("namespaceSelector", "objectSelector"):
        if value.get(key) is not None:
            label_selector(errors, value[key], f"{path}.{key}")


class _WebhookConfiguration(Strategy):
    generation = True
    mutating = False

    def default(self, obj: Object) -> None:
        for hook in obj.get("webhooks") or ():
            hook.setdefault("failurePolicy", "Fail")
            default_matching(hook)
            hook.setdefault("timeoutSeconds", 10)
            if self.mutating:
                hook.setdefault("reinvocationPolicy", "Never")
            service = hook["clientConfig"].get("service")
            if service is not None:
                service.setdefault("port", 443)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        names: set[str] = set()
        for index, hook in enumerate(obj.get("webhooks") or ()):
            path = f"webhooks[{index}]"
            self._hook(errors, hook, path)
            name = hook.get("name", "")
            if name in names:
                errors.duplicate(f"{path}.name", name)
            names.add(name)

    def _hook(self, errors: Errors, hook: Object, path: str) -> None:
        name = hook.get("name", "")
        if not name:
            errors.required(f"{path}.name")
        else:
            for message in fully_qualified_name(name):
                errors.invalid(f"{path}.name", name, message)
        for index, rule in enumerate(hook.get("rules") or ()):
            rules(errors, rule, f"{path}.rules[{index}]")
        for key, allowed in (("failurePolicy", ("Fail", "Ignore")), ("matchPolicy", ("Equivalent", "Exact"))):
            if hook.get(key) is not None and hook[key] not in allowed:
                errors.unsupported(f"{path}.{key}", hook[key], allowed)
        effects = hook.get("sideEffects")
        if effects is None:
            errors.required(f"{path}.sideEffects", "must specify one of None, NoneOnDryRun")
        elif effects not in ("None", "NoneOnDryRun"):
            errors.unsupported(f"{path}.sideEffects", effects, ("None", "NoneOnDryRun"))
        seconds = hook.get("timeoutSeconds")
        if seconds is not None and not 1 <= seconds <= 30:
            errors.invalid(f"{path}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds")
        _selectors(errors, hook, path)
        if self.mutating:
            again = hook.get("reinvocationPolicy")
            if again is not None and again not in ("IfNeeded", "Never"):
                errors.unsupported(f"{path}.reinvocationPolicy", again, ("IfNeeded", "Never"))
        client_config(errors, hook["clientConfig"], f"{path}.clientConfig")
        match_conditions(errors, hook.get("matchConditions") or [], f"{path}.matchConditions", _MATCH)
        self._versions(errors, hook.get("admissionReviewVersions") or [], f"{path}.admissionReviewVersions")

    @staticmethod
    def _versions(errors: Errors, versions: list[str], path: str) -> None:
        if not versions:
            errors.required(path, "must specify one of v1, v1beta1")
            return
        for index, version in enumerate(versions):
            if version in versions[:index]:
                errors.invalid(f"{path}[{index}]", version, "duplicate version")
                continue
            for message in dns1035_label(version):
                errors.invalid(f"{path}[{index}]", version, message)
        if not {"v1", "v1beta1"} & set(versions):
            errors.invalid(path, versions, "must include at least one of v1, v1beta1")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], len(obj.get("webhooks") or ()), age_of(obj, now)]


class MutatingWebhookConfiguration(_WebhookConfiguration):
    """Servers that may change what is written."""

    mutating = True


class ValidatingWebhookConfiguration(_WebhookConfiguration):
    """Servers that may refuse what is written."""


def _constraints(errors: Errors, value: Object, path: str) -> None:
    _selectors(errors, value, path)
    for key in ("resourceRules", "excludeResourceRules"):
        for index, rule in enumerate(value.get(key) or ()):
            here = f"{path}.{key}[{index}]"
            names: set[str] = set()
            for at, name in enumerate(rule.get("resourceNames") or ()):
                if name in names:
                    errors.duplicate(f"{here}.resourceNames[{at}]", name)
                names.add(name)
            rules(errors, rule, here, policy=True)
    policy = value.get("matchPolicy")
    if policy is None:
        errors.required(f"{path}.matchPolicy")
    elif policy not in ("Equivalent", "Exact"):
        errors.unsupported(f"{path}.matchPolicy", policy, ("Equivalent", "Exact"))


def _param_kind(errors: Errors, kind: Object, path: str) -> None:
    version = kind.get("apiVersion", "")
    if not version:
        errors.required(f"{path}.apiVersion")
    elif version.count("/") > 1:
        errors.invalid(f"{path}.apiVersion", version, f"unexpected GroupVersion string: {version}")
    else:
        group, _, served = version.rpartition("/")
        if group and (messages := dns1123_subdomain(group)):
            errors.invalid(f"{path}.apiVersion", group, ",".join(messages))
        if not served:
            errors.invalid(f"{path}.apiVersion", version, "version must be specified")
        elif messages := dns1035_label(served):
            errors.invalid(f"{path}.apiVersion", served, ",".join(messages))
    text = kind.get("kind", "")
    if not text:
        errors.required(f"{path}.kind")
    elif messages := dns1035_label(text.lower()):
        errors.invalid(f"{path}.kind", text, "may have mixed case, but should otherwise match: " + ",".join(messages))


def policy_variables(spec: Object, *, params: bool) -> dict[str, Any]:
    """What the expressions of a policy may name."""
    return {k: v for k, v in VARIABLES.items() if params or k != "params"}


class _Policy(Strategy):
    generation = True

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        spec.setdefault("failurePolicy", "Fail")
        if spec.get("matchConstraints") is not None:
            default_matching(spec["matchConstraints"])

    def _common(self, errors: Errors, spec: Object) -> dict[str, Any]:
        policy = spec.get("failurePolicy")
        if policy is None:
            errors.required("spec.failurePolicy")
        elif policy not in ("Fail", "Ignore"):
            errors.unsupported("spec.failurePolicy", policy, ("Fail", "Ignore"))
        if spec.get("paramKind") is not None:
            _param_kind(errors, spec["paramKind"], "spec.paramKind")
        constraints = spec.get("matchConstraints")
        if constraints is None:
            errors.required("spec.matchConstraints")
        else:
            _constraints(errors, constraints, "spec.matchConstraints")
            if not constraints.get("resourceRules"):
                errors.required("spec.matchConstraints.resourceRules")
        return policy_variables(spec, params=spec.get("paramKind") is not None)

    @staticmethod
    def _variables(errors: Errors, spec: Object, known: Mapping[str, Any]) -> None:
        for index, variable in enumerate(spec.get("variables") or ()):
            here = f"spec.variables[{index}]"
            name, text = variable.get("name", ""), variable.get("expression", "")
            if not name.strip():
                errors.required(f"{here}.name", "name is not specified")
            elif c_identifier(name):
                errors.invalid(f"{here}.name", name, "must be a valid CEL identifier")
            if not text.strip():
                errors.required(f"{here}.expression", "expression is not specified")
            else:
                expression(errors, text, f"{here}.expression", known, ())

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj["spec"]
        kind = spec.get("paramKind")
        shown = "<unset>" if kind is None else f"{kind.get('apiVersion', '')}/{kind.get('kind', '')}"
        return [
            obj["metadata"]["name"],
            len(spec.get("validations") or spec.get("mutations") or ()),
            shown,
            age_of(obj, now),
        ]


class ValidatingAdmissionPolicy(_Policy):
    """CEL expressions that refuse."""

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        known = self._common(errors, spec)
        match_conditions(
            errors,
            spec.get("matchConditions") or [],
            "spec.matchConditions",
            {k: v for k, v in known.items() if k != "variables"},
        )
        self._variables(errors, spec, known)
        validations, annotations = spec.get("validations") or [], spec.get("auditAnnotations") or []
        if not validations and not annotations:
            text = "validations or auditAnnotations must contain at least one item"
            errors.required("spec.validations", text)
            errors.required("spec.auditAnnotations", text)
        for index, one in enumerate(validations):
            self._validation(errors, one, f"spec.validations[{index}]", known)
        if len(annotations) > 20:
            errors.too_many("spec.auditAnnotations", len(annotations), 20)
        keys: set[str] = set()
        for index, one in enumerate(annotations):
            here = f"spec.auditAnnotations[{index}]"
            key = f"{obj['metadata'].get('name', '')}/{one.get('key', '')}"
            if not obj["metadata"].get("name"):
                errors.invalid(f"{here}.key", one.get("key", ""), "requires metadata.name be non-empty")
            else:
                for message in qualified_name(key):
                    errors.invalid(f"{here}.key", key, message)
            text = one.get("valueExpression", "")
            if not text.strip():
                errors.required(f"{here}.valueExpression", "valueExpression is not specified")
            else:
                expression(errors, text, f"{here}.valueExpression", known, ("string", "null_type"))
            if one.get("key") in keys:
                errors.duplicate(f"{here}.key", one["key"])
            keys.add(one.get("key", ""))

    @staticmethod
    def _validation(errors: Errors, one: Object, here: str, known: Mapping[str, Any]) -> None:
        text, message, said = (
            one.get("expression", "").strip(),
            one.get("message", ""),
            one.get("messageExpression", ""),
        )
        if not text:
            errors.required(f"{here}.expression", "expression is not specified")
        else:
            expression(errors, one["expression"], f"{here}.expression", known, ("bool",))
        if said and not said.strip():
            errors.invalid(f"{here}.messageExpression", said, "must be non-empty if specified")
        elif said:
            expression(
                errors,
                said,
                f"{here}.messageExpression",
                {k: v for k, v in known.items() if not k.startswith("authorizer")},
                ("string",),
            )
        if message and not message.strip():
            errors.invalid(f"{here}.message", message, "must be non-empty if specified")
        elif "\n" in message.strip():
            errors.invalid(f"{here}.message", message, "message must not contain line breaks")
        elif "\n" in text and not message and not said:
            errors.required(f"{here}.message", "message must be specified if expression contains line breaks")
        reason = one.get("reason")
        if reason is not None and reason not in ("Forbidden", "Invalid", "RequestEntityTooLarge"):
            errors.unsupported(f"{here}.reason", reason, ("Forbidden", "Invalid", "RequestEntityTooLarge"))


class MutatingAdmissionPolicy(_Policy):
    """CEL expressions that change."""

    def default(self, obj: Object) -> None:
        super().default(obj)
        obj["spec"].setdefault("reinvocationPolicy", "Never")

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        known = self._common(errors, spec)
        match_conditions(
            errors,
            spec.get("matchConditions") or [],
            "spec.matchConditions",
            {k: v for k, v in known.items() if k != "variables"},
        )
        self._variables(errors, spec, known)
        mutations = spec.get("mutations") or []
        if not mutations:
            errors.required("spec.mutations", "mutations must contain at least one item")
        for index, one in enumerate(mutations):
            here = f"spec.mutations[{index}]"
            kind = one.get("patchType", "")
            if not kind:
                errors.required(f"{here}.patchType")
            elif kind not in ("ApplyConfiguration", "JSONPatch"):
                errors.unsupported(f"{here}.patchType", kind, ("ApplyConfiguration", "JSONPatch"))
            else:
                field = "applyConfiguration" if kind == "ApplyConfiguration" else "jsonPatch"
                other = "jsonPatch" if kind == "ApplyConfiguration" else "applyConfiguration"
                body = one.get(field)
                if body is None:
                    errors.required(f"{here}.{field}", f"must be specified when patchType is {kind}")
                elif not body.get("expression", "").strip():
                    errors.required(f"{here}.{field}.expression", "expression is not specified")
                else:
                    expression(
                        errors,
                        body["expression"],
                        f"{here}.{field}.expression",
                        known,
                        ("Object",) if field == "applyConfiguration" else ("list",),
                    )
                if one.get(other) is not None:
                    errors.invalid(f"{here}.{other}", one[other], f"must not be specified when patchType is {kind}")
        again = spec.get("reinvocationPolicy", "")
        if again not in ("IfNeeded", "Never"):
            if again:
                errors.unsupported("spec.reinvocationPolicy", again, ("IfNeeded", "Never"))
            else:
                errors.required("spec.reinvocationPolicy")


class _Binding(Strategy):
    generation = True
    actions = False

    def default(self, obj: Object) -> None:
        if obj["spec"].get("matchResources") is not None:
            default_matching(obj["spec"]["matchResources"])

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        name = spec.get("policyName", "")
        if not name:
            errors.required("spec.policyName")
        else:
            for message in dns1123_subdomain(name):
                errors.invalid("spec.policyName", name, message)
        if spec.get("paramRef") is not None:
            _param_ref(errors, spec["paramRef"], "spec.paramRef")
        if spec.get("matchResources") is not None:
            _constraints(errors, spec["matchResources"], "spec.matchResources")
        if self.actions:
            _actions(errors, spec.get("validationActions") or [], "spec.validationActions")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        reference = obj["spec"].get("paramRef")
        shown = "<unset>"
        if reference is not None:
            where = reference.get("namespace") or "*"
            shown = f"{where}/{reference['name']}" if reference.get("name") else f"{where}/<selector>"
        return [obj["metadata"]["name"], obj["spec"].get("policyName", ""), shown, age_of(obj, now)]


def _param_ref(errors: Errors, reference: Object, path: str) -> None:
    name, selector = reference.get("name"), reference.get("selector")
    if name:
        for message in _path_segment(name):
            errors.invalid(f"{path}.name", name, message)
        if selector is not None:
            errors.forbidden(f"{path}.name", "name and selector are mutually exclusive")
    if selector is not None:
        label_selector(errors, selector, f"{path}.selector")
        if name:
            errors.forbidden(f"{path}.selector", "name and selector are mutually exclusive")
    if not name and selector is None:
        errors.required(path, "one of name or selector must be specified")
    action = reference.get("parameterNotFoundAction")
    if not action:
        errors.required(f"{path}.parameterNotFoundAction")
    elif action not in ("Allow", "Deny"):
        errors.unsupported(f"{path}.parameterNotFoundAction", action, ("Deny", "Allow"))


def _path_segment(name: str) -> list[str]:
    from longshore.api.validation.names import path_segment

    return path_segment(name)


def _actions(errors: Errors, actions: list[str], path: str) -> None:
    if not actions:
        errors.required(path, "at least one validation action is required")
    for index, action in enumerate(actions):
        if action not in ("Audit", "Deny", "Warn"):
            errors.unsupported(f"{path}[{index}]", action, ("Audit", "Deny", "Warn"))
        if action in actions[:index]:
            errors.duplicate(f"{path}[{index}]", action)
    if "Deny" in actions and "Warn" in actions:
        errors.invalid(
            path,
            actions,
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        )


class ValidatingAdmissionPolicyBinding(_Binding):
    """Where a validating policy holds."""

    actions = True


class MutatingAdmissionPolicyBinding(_Binding):
    """Where a mutating policy holds."""


STRATEGIES = {
    "MutatingAdmissionPolicy": MutatingAdmissionPolicy,
    "MutatingAdmissionPolicyBinding": MutatingAdmissionPolicyBinding,
    "MutatingWebhookConfiguration": MutatingWebhookConfiguration,
    "ValidatingAdmissionPolicy": ValidatingAdmissionPolicy,
    "ValidatingAdmissionPolicyBinding": ValidatingAdmissionPolicyBinding,
    "ValidatingWebhookConfiguration": ValidatingWebhookConfiguration,
}
__all__ = ["STRATEGIES", "VARIABLES", "authorizer_methods", "client_config"]
