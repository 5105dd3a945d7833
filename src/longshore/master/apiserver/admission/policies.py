"""ValidatingAdmissionPolicy and MutatingAdmissionPolicy: CEL expressions in objects of their own, bound to what they judge.

Source: staging apiserver pkg/admission/plugin/policy/{generic,validating,mutating}.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from longshore.api import cel, definitions
from longshore.api.admissionmatching import VARIABLES
from longshore.machinery.errors import StatusError, qualified
from longshore.machinery.patch import jsonpatch, typed
from longshore.machinery.patch.schema import Node, SchemaBuilder
from longshore.machinery.selectors import SelectorError, from_object
from longshore.master.apiserver.admission import matching
from longshore.master.apiserver.admission.base import Object, Plugin, object_name
from longshore.master.apiserver.context import AdmissionRequest

_GROUP = "admissionregistration.k8s.io"
_CODES = {"Forbidden": 403, "Invalid": 422, "RequestEntityTooLarge": 413, "Unauthorized": 401}
_NO_PARAMS = {k: v for k, v in VARIABLES.items() if k != "params"}


class Variables(dict[str, Any]):
    """The composed variables of a policy, each evaluated when it is first asked for."""

    def __init__(self, listed: list[Object], known: dict[str, Any], values: Object, budget: list[int]) -> None:
        super().__init__()
        self._expressions = {v["name"]: v["expression"] for v in listed}
        self._known, self._values, self._budget = known, values, budget

    def __contains__(self, key: object) -> bool:
        return key in self._expressions

    def __getitem__(self, key: str) -> Any:
        if not super().__contains__(key):
            try:
                code = matching.program(self._expressions[key], self._known, ())
            except cel.CompileError as error:
                raise cel.EvalError(f'composited variable "{key}" fails to compile: {error}') from None
            try:
                self[key] = code.run(self._values, self._budget)
            except cel.EvalError as error:
                raise cel.EvalError(f'composited variable "{key}" fails to evaluate: {error}') from None
        return super().__getitem__(key)


class Evaluation:
    """One policy, with one of its parameters, held against one request. What it may cost is counted over all expressions.

    target: the rule that the request fell under. params: the parameter object, None without any.
    """

    def __init__(self, a: AdmissionRequest, target: matching.Target, policy: Object, params: Any) -> None:
        self.request, self.policy = a, policy
        self._known: dict[Any, Any] = {}
        self._budget = [cel.TOTAL_LIMIT]
        self._values = matching.frame(a, target, str(uuid.uuid4()), self._known)
        namespace = a.attributes.namespace
        self._values["namespaceObject"] = a.api.get("", "namespaces", "", namespace) if namespace else None
        self._variables = VARIABLES if policy["spec"].get("paramKind") is not None else _NO_PARAMS
        if "params" in self._variables:
            self._values["params"] = params
        listed = policy["spec"].get("variables") or []
        self._values["variables"] = Variables(listed, self._variables, self._values, self._budget)

    async def conditions_hold(self) -> tuple[bool, str]:
        """Whether the policy's match conditions hold, and what went wrong."""
        variables = {k: v for k, v in self._variables.items() if k != "variables"}
        conditions = self.policy["spec"].get("matchConditions") or []
        return await matching.conditions_hold(conditions, variables, self._values, self.request, self._known)

    async def run(self, text: str, kinds: tuple[str, ...], *, authorizer: bool = True) -> Any:
        """The value of an expression, of one of these kinds. authorizer: may it ask who may do what. CompileError, EvalError."""
        variables = self._variables
        if not authorizer:
            variables = {k: v for k, v in variables.items() if not k.startswith("authorizer")}
        code = matching.program(text, variables, kinds)
        return await matching.run(code, self._values, self.request, self._known, self._budget)

    def replace(self, changed: Object) -> None:
        """Show later expressions the object as it is now."""
        self._values["object"] = changed


class _Policies(Plugin):
    """What both kinds of policies do: find the bound policies that have to do with a request."""

    operations = frozenset(("CREATE", "UPDATE", "DELETE", "CONNECT"))
    subresources = None
    policies = ""
    bindings = ""

    def __init__(self, api: Any) -> None:
        self.api = api
        self._generation: tuple[int, int] = (-1, -1)
        self._bound: list[tuple[Object, list[Object]]] = []

    def _current(self) -> list[tuple[Object, list[Object]]]:
        generation = (self.api.generation(_GROUP, self.policies), self.api.generation(_GROUP, self.bindings))
        if generation != self._generation:
            bindings: dict[str, list[Object]] = {}
            for binding in sorted(self.api.list(_GROUP, self.bindings), key=lambda b: b["metadata"]["name"]):
                bindings.setdefault(binding["spec"].get("policyName", ""), []).append(binding)
            policies = sorted(self.api.list(_GROUP, self.policies), key=lambda p: p["metadata"]["name"])
            self._bound = [(p, bindings[p["metadata"]["name"]]) for p in policies if p["metadata"]["name"] in bindings]
            self._generation = generation
        return self._bound

    @staticmethod
    def _target(a: AdmissionRequest, constraints: Object) -> matching.Target | None:
        if not matching.selected(a, constraints):
            return None
        rules = constraints.get("resourceRules") or [
            {"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*", "*/*"]}
        ]
        return matching.find_target(
            a, rules, constraints.get("excludeResourceRules") or [], constraints.get("matchPolicy") or "Equivalent"
        )

    def _bound_target(self, a: AdmissionRequest, policy: Object, binding: Object) -> matching.Target | None:
        """The policy's rule that the request falls under, None when it or the binding leaves the request out."""
        target = self._target(a, policy["spec"].get("matchConstraints") or {})
        narrower = binding["spec"].get("matchResources")
        return target if narrower is None or self._target(a, narrower) is not None else None

    def _params(self, a: AdmissionRequest, policy: Object, binding: Object) -> tuple[list[Any], str]:
        """The parameters of a binding ([None] without any), and what went wrong."""
        kind, reference = policy["spec"].get("paramKind"), binding["spec"].get("paramRef")
        if kind is None:
            return [None], ""
        if reference is None:
            return [None], ""
        group, _, version = kind["apiVersion"].rpartition("/")
        from longshore.api.kinds import BY_KIND

        resource = BY_KIND.get((group, kind["kind"]))
        plural = resource.plural if resource is not None else ""
        if resource is None:
            for crd in a.api.list("apiextensions.k8s.io", "customresourcedefinitions"):
                if crd["spec"]["group"] == group and crd["spec"]["names"]["kind"] == kind["kind"]:
                    plural = crd["spec"]["names"]["plural"]
                    resource = a.api.resource(group, plural)
        if resource is None:
            return (
                [],
                f"failed to configure binding: unable to find parameter kind {kind['kind']} in {kind['apiVersion']}",
            )
        namespace = ""
        if resource.namespaced:
            namespace = reference.get("namespace") or a.attributes.namespace
            if not namespace:
                return (
                    [],
                    "failed to configure binding: cannot use namespaced paramRef in policy binding that matches cluster-scoped resources",
                )
        elif reference.get("namespace"):
            return (
                [],
                "failed to configure binding: paramRef.namespace must not be provided for a cluster-scoped `paramKind`",
            )
        found: list[Any] = []
        if reference.get("name"):
            one = a.api.get(group, plural, namespace, reference["name"])
            found = [one] if one is not None else []
        else:
            selector = from_object(reference.get("selector"))
            found = [
                o for o in a.api.list(group, plural, namespace) if selector.matches(o["metadata"].get("labels") or {})
            ]
        if not found and (reference.get("parameterNotFoundAction") or "Deny") == "Deny":
            return (
                [],
                "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction",
            )
        return [resource.convert(o, version) for o in found], ""


class ValidatingAdmissionPolicy(_Policies):
    """Refuses, warns or records what expressions find wrong."""

    name = "ValidatingAdmissionPolicy"
    policies = "validatingadmissionpolicies"
    bindings = "validatingadmissionpolicybindings"

    async def validate(self, a: AdmissionRequest) -> None:
        bound = self._current()
        if not bound or matching.is_exempt(a):
            return
        denied: list[tuple[str, str]] = []
        for policy, bindings in bound:
            await self._policy(a, policy, bindings, denied)
        if denied:
            text, reason = denied[0]
            at = a.attributes
            name = object_name(a)
            message = (
                f"{qualified(at.group, at.resource)}{f' {chr(34)}{name}{chr(34)}' if name else ''} is forbidden: {text}"
            )
            details: Object = {"name": name} if name else {}
            if at.group:
                details["group"] = at.group
            details["kind"] = at.resource
            details["causes"] = [{"message": text}]
            raise StatusError(_CODES.get(reason, 422), reason, message, details)

    async def _policy(
        self, a: AdmissionRequest, policy: Object, bindings: list[Object], denied: list[tuple[str, str]]
    ) -> None:
        fail = policy["spec"].get("failurePolicy", "Fail") == "Fail"
        for binding in bindings:
            try:
                target = self._bound_target(a, policy, binding)
                if target is None:
                    continue
            except SelectorError as error:
                if fail:
                    self._deny(policy, binding, f"failed to configure binding: {error}", "Invalid", denied)
                continue
            params, problem = self._params(a, policy, binding)
            if problem:
                if fail:
                    self._deny(policy, binding, problem, "Invalid", denied)
                continue
            for one in params:
                await self._evaluate(Evaluation(a, target, policy, one), binding, fail, denied)

    @staticmethod
    def _deny(policy: Object, binding: Object, text: str, reason: str, denied: list[tuple[str, str]]) -> None:
        denied.append(
            (
                f"ValidatingAdmissionPolicy '{policy['metadata']['name']}' with binding '{binding['metadata']['name']}' denied request: {text}",
                reason,
            )
        )

    async def _evaluate(
        self, evaluation: Evaluation, binding: Object, fail: bool, denied: list[tuple[str, str]]
    ) -> None:
        a, policy = evaluation.request, evaluation.policy
        holds, problem = await evaluation.conditions_hold()
        if problem and fail:
            self._deny(policy, binding, problem, "Invalid", denied)
            return
        if not holds:
            return
        actions = binding["spec"].get("validationActions") or []
        failures: list[tuple[str, str]] = []
        for one in policy["spec"].get("validations") or ():
            found = await self._one(evaluation, one, fail)
            if found is not None:
                failures.append(found)
        names = f"ValidatingAdmissionPolicy '{policy['metadata']['name']}' with binding '{binding['metadata']['name']}'"
        for text, reason in failures:
            if "Deny" in actions:
                self._deny(policy, binding, text, reason, denied)
            if "Warn" in actions:
                a.warnings.append(f"Validation failed for {names}: {text}")
        if failures and "Audit" in actions:
            a.annotations["validation.policy.admission.k8s.io/validation_failure"] = _audit(policy, binding, failures)
        await self._annotate(evaluation)

    @staticmethod
    async def _one(evaluation: Evaluation, one: Object, fail: bool) -> tuple[str, str] | None:
        """What is wrong by one validation, and the reason for it; None: nothing."""
        text, reason = one["expression"], one.get("reason") or "Invalid"
        try:
            good = await evaluation.run(text, ("bool",))
        except (cel.CompileError, cel.EvalError) as error:
            return (f"expression '{text}' resulted in error: {error}", reason) if fail else None
        if good is True:
            return None
        message = str(one.get("message", "")).strip()
        if expression := one.get("messageExpression", ""):
            # A message that cannot be made is no reason to say nothing: the fixed one stands.
            with contextlib.suppress(cel.CompileError, cel.EvalError):
                said = await evaluation.run(expression, ("string",), authorizer=False)
                if isinstance(said, str) and said.strip() and "\n" not in said and len(said) <= 5000:
                    message = said.strip()
        return message or f"failed expression: {text.strip()}", reason

    @staticmethod
    async def _annotate(evaluation: Evaluation) -> None:
        policy = evaluation.policy
        for one in policy["spec"].get("auditAnnotations") or ():
            try:
                value = await evaluation.run(one["valueExpression"], ("string", "null_type"))
            except (cel.CompileError, cel.EvalError):
                continue
            if isinstance(value, str) and value.strip():
                evaluation.request.annotations[f"{policy['metadata']['name']}/{one['key']}"] = value.strip()


def _audit(policy: Object, binding: Object, failures: list[tuple[str, str]]) -> str:
    import orjson

    return orjson.dumps(
        [
            {
                "message": text,
                "policy": policy["metadata"]["name"],
                "binding": binding["metadata"]["name"],
                "expressionIndex": index,
                "validationActions": binding["spec"].get("validationActions"),
            }
            for index, (text, _) in enumerate(failures)
        ]
    ).decode()


_builder = SchemaBuilder(lambda name: definitions.definition(name)[0])


def _node(a: AdmissionRequest) -> Node:
    group, version, kind = a.kind
    name = definitions.by_kind().get((group, version, kind))
    if name is not None:
        return _builder.definition(name)
    resource = a.api.resource(a.attributes.group, a.attributes.resource)
    schema = resource.openapi(version) if resource is not None else {}
    properties = {
        **(schema.get("properties") or {}),
        "metadata": {"$ref": "#/x/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
    }
    return _builder.build({**schema, "type": "object", "properties": properties})


class MutatingAdmissionPolicy(_Policies):
    """Changes what expressions say: by an apply configuration or a JSON patch."""

    name = "MutatingAdmissionPolicy"
    operations = frozenset(("CREATE", "UPDATE"))
    policies = "mutatingadmissionpolicies"
    bindings = "mutatingadmissionpolicybindings"

    async def admit(self, a: AdmissionRequest) -> None:
        bound = self._current()
        if not bound or matching.is_exempt(a) or a.object is None:
            return
        done: list[tuple[Object, Object]] = []
        for policy, bindings in bound:
            for binding in bindings:
                before = a.object
                await self._binding(a, policy, binding)
                if policy["spec"].get("reinvocationPolicy") == "IfNeeded" and a.object is before:
                    done.append((policy, binding))
        # Those that want to see what others did after them.
        for policy, binding in done:
            await self._binding(a, policy, binding)

    async def _binding(self, a: AdmissionRequest, policy: Object, binding: Object) -> None:
        fail = policy["spec"].get("failurePolicy", "Fail") == "Fail"
        target = self._bound_target(a, policy, binding)
        if target is None:
            return
        params, problem = self._params(a, policy, binding)
        if problem:
            if fail:
                raise self._refused(a, policy, binding, problem)
            return
        for one in params:
            evaluation = Evaluation(a, target, policy, one)
            holds, problem = await evaluation.conditions_hold()
            if problem and fail:
                raise self._refused(a, policy, binding, problem)
            if not holds:
                continue
            for mutation in policy["spec"].get("mutations") or ():
                await self._mutate(evaluation, binding, mutation, fail)

    async def _mutate(self, evaluation: Evaluation, binding: Object, mutation: Object, fail: bool) -> None:
        a, policy = evaluation.request, evaluation.policy
        apply = mutation.get("patchType") == "ApplyConfiguration"
        text = (mutation.get("applyConfiguration") or mutation.get("jsonPatch") or {}).get("expression", "")
        try:
            result = await evaluation.run(text, ("Object",) if apply else ("list",))
        except (cel.CompileError, cel.EvalError) as error:
            if fail:
                raise self._refused(a, policy, binding, f"expression '{text}' resulted in error: {error}") from None
            return
        import orjson

        assert a.object is not None
        try:
            if apply:
                if {"apiVersion", "kind", "metadata"} & result.keys() and ("apiVersion" in result or "kind" in result):
                    raise ValueError("apiVersion and kind may not be set")
                changed = typed.merge(_node(a), a.object, result)
            else:
                changed = jsonpatch.apply(orjson.loads(orjson.dumps(a.object)), orjson.loads(orjson.dumps(result)))
            resource = a.api.resource(a.attributes.group, a.attributes.resource)
            if resource is not None and not a.attributes.subresource:
                head = {k: a.object[k] for k in ("apiVersion", "kind") if k in a.object}
                changed = {**resource.decode(changed, a.attributes.version), **head}
                resource.default(changed, a.attributes.version)
        except StatusError:
            raise
        except Exception as error:
            if fail:
                raise self._refused(a, policy, binding, f"error applying patch: {error}") from None
            return
        a.object = changed
        evaluation.replace(changed)

    @staticmethod
    def _refused(a: AdmissionRequest, policy: Object, binding: Object, text: str) -> StatusError:
        message = (
            f"policy '{policy['metadata']['name']}' with binding '{binding['metadata']['name']}' denied request: {text}"
        )
        at, name = a.attributes, object_name(a)
        details: Object = {"name": name} if name else {}
        if at.group:
            details["group"] = at.group
        details["kind"] = at.resource
        details["causes"] = [{"message": message}]
        return StatusError(403, "Invalid", message, details)
