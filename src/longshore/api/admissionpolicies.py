"""admissionregistration.k8s.io: admission policies in CEL, validating and mutating, and their bindings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from longshore.api.admissionmatching import VARIABLES, default_matching, expression, match_conditions, rules, selectors
from longshore.api.strategy import Object, Strategy, age_of
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import c_identifier, dns1035_label, dns1123_subdomain, path_segment, qualified_name
from longshore.api.validation.selectors import label_selector


def _constraints(errors: Errors, value: Object, path: str) -> None:
    selectors(errors, value, path)
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


def policy_variables(*, params: bool) -> dict[str, Any]:
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
        known = policy_variables(params=spec.get("paramKind") is not None)
        match_conditions(
            errors,
            spec.get("matchConditions") or [],
            "spec.matchConditions",
            {k: v for k, v in known.items() if k != "variables"},
        )
        self._variables(errors, spec, known)
        return known

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
        for message in path_segment(name):
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
