"""What the expressions of a ValidatingAdmissionPolicy say of the kinds that it matches: fields that are not there, and the
like. A warning is advice: the policy works as before.

The types of `object`, `oldObject` and `params` are known; `request`, `namespaceObject` and `variables` may be anything.
Source: k8s.io/apiserver/pkg/admission/plugin/policy/validating/typechecking.go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from longshore.api import cel, schema
from longshore.api.admissionmatching import VARIABLES, authorizer_methods
from longshore.api.crd import structural
from longshore.api.kinds import KINDS, kind_schema

Object = dict[str, Any]
Kind = tuple[str, str, str]
#: A path of the API -> the JSON document there, None when there is none.
Fetch = Callable[[str], Awaitable[Object | None]]
_MAX_KINDS = 10
_STRINGS = {schema.TIME: "date-time", schema.MICRO_TIME: "date-time", schema.BYTES: "byte", schema.DURATION: "duration"}
_NAMES = {schema.STRUCT: "object", schema.MAP: "object", schema.LIST: "array", schema.INTEGER: "integer",
          schema.NUMBER: "number", schema.BOOLEAN: "boolean", schema.STRING: "string"}  # fmt: skip


class _Typed:
    """A built-in type as expressions look at schemas (longshore.api.crd.structural.Node)."""

    embedded = False

    def __init__(self, of: schema.Schema) -> None:
        self._of = of
        self.type = "string" if of.kind in _STRINGS else _NAMES.get(of.kind, "")
        self.int_or_string = of.kind in (schema.INT_OR_STRING, schema.QUANTITY)
        self.preserve = of.kind in (schema.ANY, schema.UNION)
        self.raw = {"format": _STRINGS[of.kind]} if of.kind in _STRINGS else {}

    @property
    def properties(self) -> dict[str, _Typed]:
        return {name: _Typed(field.type) for name, field in self._of.fields.items()}

    @property
    def items(self) -> _Typed | None:
        return _Typed(self._of.items) if self._of.kind == schema.LIST and self._of.items is not None else None

    @property
    def values(self) -> _Typed | None:
        return _Typed(self._of.items) if self._of.kind == schema.MAP and self._of.items is not None else None


def _custom(raw: Object) -> structural.Node:
    """A published schema of a custom resource, with the whole metadata."""
    properties = {k: v for k, v in (raw.get("properties") or {}).items() if k != "metadata"}
    node = structural.Node({**raw, "type": "object", "properties": properties})
    metadata: Any = _Typed(kind_schema("", "v1", "Pod").fields["metadata"].type)
    text = structural.Node({"type": "string"})
    node.properties = {"apiVersion": text, "kind": text, **node.properties, "metadata": metadata}
    return node


class TypeChecker:
    """Checks policies; documents of custom kinds are fetched from the API server for each."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def check(self, policy: Object) -> list[dict[str, str]]:
        """The expression warnings of a policy: fieldRef, warning."""
        spec = policy["spec"]
        kinds = await self._kinds(spec)
        types = [(kind, found) for kind in kinds if (found := await self._type(kind)) is not None]
        params = spec.get("paramKind")
        params_type: Any = "dyn"
        if params:
            group, _, version = params.get("apiVersion", "").rpartition("/")
            params_type = await self._type((group, version, params.get("kind", ""))) or "dyn"
        out = []
        for i, validation in enumerate(spec.get("validations") or ()):
            for field in ("expression", "messageExpression"):
                text = validation.get(field)
                found = [w for kind, type_ in types if text and (w := _warning(text, kind, type_, params_type))]
                if found:
                    out.append({"fieldRef": f"spec.validations[{i}].{field}", "warning": "\n".join(found)})
        return out

    async def _kinds(self, spec: Object) -> list[Kind]:
        """The kinds that the rules name without wildcards, at most ten of each rule."""
        found: set[Kind] = set()
        for rule in (spec.get("matchConstraints") or {}).get("resourceRules") or ():
            groups, versions = rule.get("apiGroups") or (), rule.get("apiVersions") or ()
            if any("*" in name for name in (*groups, *versions)):
                continue
            resources = [r for r in rule.get("resources") or () if "*" not in r and "/" not in r]
            count = 0
            for group, version, resource in (
                (g, v, r) for g in sorted(groups) for v in sorted(versions) for r in sorted(resources)
            ):
                kind = await self._kind(group, version, resource)
                if kind and count < _MAX_KINDS:
                    found.add((group, version, kind))
                    count += 1
        return sorted(found)

    async def _kind(self, group: str, version: str, resource: str) -> str:
        known = KINDS.get((group, resource))
        if known is not None:
            return known.kind if version in known.versions else ""
        listed = await self._fetch(f"/apis/{group}/{version}") if group else None
        return next((str(r["kind"]) for r in (listed or {}).get("resources") or () if r.get("name") == resource), "")

    async def _type(self, kind: Kind) -> Any:
        """The CEL type of a kind, None when nothing is known of it."""
        group, version, name = kind
        try:
            return cel.ObjectType(_Typed(kind_schema(group, version, name)))
        except KeyError:
            pass
        document = await self._fetch(f"/openapi/v3/apis/{group}/{version}") if group else None
        for raw in ((document or {}).get("components") or {}).get("schemas", {}).values():
            wanted = {"group": group, "version": version, "kind": name}
            if wanted in (raw.get("x-kubernetes-group-version-kind") or ()):
                return cel.ObjectType(_custom(raw))
        return None


def _warning(text: str, kind: Kind, type_: Any, params: Any) -> str:
    """What is wrong with an expression for one kind, "" when nothing is."""
    variables = {**VARIABLES, "object": type_, "oldObject": type_, "params": params}
    try:
        cel.compile(text, variables, (), authorizer_methods())
    except cel.CompileError as error:
        group, version, name = kind
        return f"{group}/{version}, Kind={name}: {str(error).removeprefix('compilation failed: ')}\n"
    return ""
