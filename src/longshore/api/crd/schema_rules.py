"""Checks of the schemas in definitions: what is allowed in them, and that they are structural."""

from __future__ import annotations

from typing import Any

from longshore.api.crd import structural
from longshore.api.crd.patterns import PatternError, compile_go
from longshore.api.validation.errors import Errors

Object = dict[str, Any]
_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_VALUE_FIELDS = (
    "description",
    "type",
    "default",
    "additionalProperties",
    "nullable",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
)
_REASONS = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")


def validate(schema: Object, errors: Errors, path: str, *, root: bool = False, status: bool = False) -> None:
    """A version's schema. status: whether it has that subresource."""
    before = len(errors)
    kind = schema.get("type")
    if status and kind and kind != "object":
        errors.invalid(
            f"{path}.type",
            kind,
            'only "object" is allowed as the type at the root of the schema if the status subresource is enabled',
        )
    if root and schema.get("nullable"):
        errors.forbidden(f"{path}.nullable", "nullable cannot be true at the root")
    if not kind:
        errors.required(f"{path}.type", "must not be empty at the root")
    elif kind != "object":
        errors.invalid(f"{path}.type", kind, "must be object at the root")
    _structural(schema, errors, path, root=True)
    _allowed(schema, errors, path)
    if len(errors) == before:
        _defaults(schema, errors, path)
    rules_only = len(errors) == before
    if rules_only and structural.Node(schema).has_rules:
        from longshore.api.crd import celrules

        celrules.compile_schema(schema, errors, path)


def _pattern_problem(text: str) -> str:
    """Go's complaint about a pattern, "" when it is good (as far as Python's parser can tell)."""
    try:
        compile_go(text)
    except PatternError as error:
        return str(error)
    return ""


def _allowed(schema: Object, errors: Errors, path: str) -> None:
    """What may stand in a schema at all, this node and below."""
    if schema.get("uniqueItems"):
        errors.forbidden(
            f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        )
    values = schema.get("additionalProperties")
    if values is not None and schema.get("properties") and (isinstance(values, dict) or values is False):
        if isinstance(values, dict):
            errors.forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
    for name in sorted(schema.get("properties") or ()):
        _allowed(schema["properties"][name], errors, f"{path}.properties[{name}]")
    if isinstance(values, dict):
        _allowed(values, errors, f"{path}.additionalProperties")
    items = schema.get("items")
    if isinstance(items, dict):
        _allowed(items, errors, f"{path}.items")
    elif isinstance(items, list):
        errors.forbidden(f"{path}.items", "items must be a schema object and not an array")
    for key in ("allOf", "anyOf", "oneOf"):
        for index, child in enumerate(schema.get(key) or ()):
            _allowed(child, errors, f"{path}.{key}[{index}]")
    if schema.get("not"):
        _allowed(schema["not"], errors, f"{path}.not")
    for key in ("id", "$ref", "patternProperties", "definitions", "dependencies", "additionalItems", "$schema"):
        if schema.get(key):
            errors.forbidden(f"{path}.{key}", f"{key} is not supported")
    kind = schema.get("type", "")
    if kind and kind not in _TYPES:
        errors.unsupported(f"{path}.type", kind, _TYPES)
    if schema.get("pattern"):
        problem = _pattern_problem(schema["pattern"])
        if problem:
            errors.invalid(
                f"{path}.pattern", schema["pattern"], f"must be a valid regular expression, but isn't: {problem}"
            )
    if schema.get("x-kubernetes-preserve-unknown-fields") is False:
        errors.invalid(f"{path}.x-kubernetes-preserve-unknown-fields", False, "must be true or undefined")
    map_type = schema.get("x-kubernetes-map-type")
    if map_type is not None and map_type not in ("atomic", "granular"):
        errors.unsupported(f"{path}.x-kubernetes-map-type", map_type, ("atomic", "granular"))
    _list_type(schema, errors, path)
    _rules(schema, errors, path)


def _list_type(schema: Object, errors: Errors, path: str) -> None:
    kind, keys, items = (
        schema.get("x-kubernetes-list-type"),
        schema.get("x-kubernetes-list-map-keys") or [],
        schema.get("items"),
    )
    if kind is not None and schema.get("type") != "array":
        errors.invalid(
            f"{path}.type", schema.get("type", ""), "must be array if x-kubernetes-list-type is specified"
        ) if schema.get("type") else errors.required(
            f"{path}.type", "must be array if x-kubernetes-list-type is specified"
        )
    if kind is not None and kind not in ("atomic", "set", "map"):
        errors.unsupported(f"{path}.x-kubernetes-list-type", kind, ("atomic", "set", "map"))
    if keys:
        if kind is None:
            errors.required(f"{path}.x-kubernetes-list-type", "must be map if x-kubernetes-list-map-keys is non-empty")
        elif kind != "map":
            errors.invalid(
                f"{path}.x-kubernetes-list-type", kind, "must be map if x-kubernetes-list-map-keys is non-empty"
            )
    if kind == "map":
        if not keys:
            errors.required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
        if not isinstance(items, dict):
            errors.required(f"{path}.items", "must have a schema if x-kubernetes-list-type is map")
        elif items.get("type") != "object":
            errors.invalid(
                f"{path}.items.type",
                items.get("type", ""),
                "must be object if parent array's x-kubernetes-list-type is map",
            )
        else:
            properties = items.get("properties") or {}
            here = f"{path}.x-kubernetes-list-map-keys"
            if len(set(keys)) != len(keys):
                errors.invalid(here, keys, "must not contain duplicate entries")
            for key in keys:
                if key not in properties:
                    errors.invalid(here, keys, "entries must all be names of item properties")
                elif properties[key].get("type") in ("array", "object"):
                    errors.invalid(
                        f"{path}.items.properties[{key}].type",
                        properties[key]["type"],
                        "must be a scalar type if parent array's x-kubernetes-list-type is map",
                    )
                if (
                    key in properties
                    and key not in (items.get("required") or ())
                    and properties[key].get("default") is None
                ):
                    errors.required(
                        f"{path}.items.properties[{key}].default",
                        "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                    )
    if kind == "set" and isinstance(items, dict):
        if items.get("type") == "object" and items.get("x-kubernetes-map-type") != "atomic":
            errors.invalid(
                f"{path}.items.x-kubernetes-map-type",
                items.get("x-kubernetes-map-type"),
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            )
        if items.get("type") == "array" and items.get("x-kubernetes-list-type") not in (None, "atomic"):
            errors.invalid(
                f"{path}.items.x-kubernetes-list-type",
                items.get("x-kubernetes-list-type"),
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            )


def _rules(schema: Object, errors: Errors, path: str) -> None:
    for index, rule in enumerate(schema.get("x-kubernetes-validations") or ()):
        here = f"{path}.x-kubernetes-validations[{index}]"
        text, message = rule.get("rule", ""), rule.get("message", "")
        if not text.strip():
            errors.required(f"{here}.rule", "rule is not specified")
        elif "\n" in text.strip() and not message and not rule.get("messageExpression"):
            errors.required(f"{here}.message", "message must be specified if rule contains line breaks")
        if message and not message.strip():
            errors.invalid(f"{here}.message", message, "message must be non-empty if specified")
        if "\n" in message.strip():
            errors.invalid(f"{here}.message", message, "must not contain line breaks")
        expression = rule.get("messageExpression", "")
        if expression and not expression.strip():
            errors.required(f"{here}.messageExpression", "messageExpression must be non-empty if specified")
        reason = rule.get("reason")
        if reason is not None and reason not in _REASONS:
            errors.unsupported(f"{here}.reason", reason, _REASONS)
        field = rule.get("fieldPath", "")
        if field:
            from longshore.api.crd.fieldpath import resolve

            if resolve(field, schema) is None:
                errors.invalid(f"{here}.fieldPath", field, "must be a valid path")


def _structural(schema: Object, errors: Errors, path: str, *, root: bool = False) -> None:
    """That the schema is structural: every node typed, nothing but value checks in the junctors."""
    items, values = schema.get("items"), schema.get("additionalProperties")
    if isinstance(items, dict):
        _structural(items, errors, f"{path}.items")
    for name in sorted(schema.get("properties") or ()):
        child = schema["properties"][name]
        here = f"{path}.properties[{name}]"
        if root and name == "metadata":
            _metadata(child, errors, here)
        _structural(child, errors, here) if not (
            root
            and name in ("apiVersion", "kind", "metadata")
            and not child.get("properties")
            and not child.get("type")
        ) else None
    if isinstance(values, dict):
        _structural(values, errors, f"{path}.additionalProperties")
    for key in ("allOf", "anyOf", "oneOf"):
        for index, child in enumerate(schema.get(key) or ()):
            _junctor(
                child,
                errors,
                f"{path}.{key}[{index}]",
                free=schema.get("x-kubernetes-int-or-string") and key in ("anyOf", "allOf"),
            )
    if schema.get("not"):
        _junctor(schema["not"], errors, f"{path}.not", free=False)
    free = (
        schema.get("$ref")
        or schema.get("x-kubernetes-int-or-string")
        or schema.get("x-kubernetes-preserve-unknown-fields")
    )
    if schema.get("type") == "array" and items is None:
        errors.required(f"{path}.items", "must be specified")
    if not schema.get("type") and not free and not root:
        what = (
            "object fields"
            if ".properties[" in path.rsplit(".", 1)[-1] or path.endswith("]")
            else "array items"
            if path.endswith(".items")
            else "object fields"
        )
        errors.required(f"{path}.type", f"must not be empty for specified {what}")
    if schema.get("x-kubernetes-embedded-resource"):
        if schema.get("type") != "object":
            errors.invalid(
                f"{path}.type", schema.get("type", ""), "must be object if x-kubernetes-embedded-resource is true"
            )
        if not schema.get("x-kubernetes-preserve-unknown-fields") and not schema.get("properties"):
            errors.required(
                f"{path}.properties",
                "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            )


def _metadata(schema: Object, errors: Errors, path: str) -> None:
    extra = set(schema) - {"type", "description", "properties"}
    properties = schema.get("properties") or {}
    if extra or any(name not in ("name", "generateName") for name in properties):
        errors.forbidden(
            path, "must not specify anything other than name and generateName, but metadata is implicitly specified"
        )


def _junctor(schema: Object, errors: Errors, path: str, *, free: Any) -> None:
    for key in _VALUE_FIELDS:
        if key in schema and schema[key] not in (None, "", False) and not (free and key == "type"):
            errors.forbidden(f"{path}.{key}", "must be empty to be structural")
    for name in sorted(schema.get("properties") or ()):
        _junctor(schema["properties"][name], errors, f"{path}.properties[{name}]", free=False)
    if isinstance(schema.get("items"), dict):
        _junctor(schema["items"], errors, f"{path}.items", free=False)
    for key in ("allOf", "anyOf", "oneOf"):
        for index, child in enumerate(schema.get(key) or ()):
            _junctor(child, errors, f"{path}.{key}[{index}]", free=free)


def _defaults(schema: Object, errors: Errors, path: str) -> None:
    """Defaults must be valid and pruned."""
    if schema.get("default") is not None:
        node = structural.Node(schema)
        value = structural._copy(schema["default"])
        unknown: list[str] = []
        structural.prune(value, node, unknown)
        for name in unknown:
            errors.invalid(f"{path}.default", schema["default"], f"contains unknown fields: {name}")
        found = Errors()
        structural.check(schema["default"], node, found, f"{path}.default")
        for error in found:
            # A default is looked at by itself: it has no place in an object.
            error.detail = error.detail.replace(f"{path}.default in body", " in body", 1)
        errors.extend(found)
    for name in sorted(schema.get("properties") or ()):
        _defaults(schema["properties"][name], errors, f"{path}.properties[{name}]")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _defaults(schema[key], errors, f"{path}.{key}")
