"""x-kubernetes-validations: compiling a schema's rules, and evaluating them on an object and its predecessor.

Source: apiextensions-apiserver pkg/apiserver/schema/cel and pkg/apis/apiextensions/validation.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from longshore.api import cel, times
from longshore.api.cel.types import ObjectType
from longshore.api.crd import celcost, fieldpath
from longshore.api.crd.structural import MISSING, Node, list_key, type_name
from longshore.api.validation.errors import OMITTED, Errors, FieldError

_REASONS = {
    "FieldValueInvalid": "Invalid",
    "FieldValueForbidden": "Forbidden",
    "FieldValueRequired": "Required",
    "FieldValueDuplicate": "Duplicate",
}


class Rule:
    """One compiled rule."""

    __slots__ = ("field", "message", "optional_old", "problem", "program", "raw", "text", "transition")

    def __init__(self, raw: dict[str, Any], node: Node, root: bool) -> None:
        self.raw = raw
        self.text = str(raw["rule"]).strip()
        self.problem = ""
        self.program: cel.Program | None = None
        self.message: cel.Program | None = None
        type_ = cel.of_node(node, root)
        self.optional_old = bool(raw.get("optionalOldSelf"))
        variables = {"self": type_, "oldSelf": "dyn" if self.optional_old else type_}
        try:
            self.program = cel.compile(self.text, variables, ("bool",))
        except cel.CompileError as error:
            self.problem = str(error)
        self.transition = self.program is not None and "oldSelf" in self.program.used
        expression = str(raw.get("messageExpression", "")).strip()
        if expression:
            try:
                self.message = cel.compile(expression, variables, ("string",))
            except cel.CompileError:
                self.message = None
        path = raw.get("fieldPath", "")
        self.field = (fieldpath.resolve(path, node.raw) or "") if path else ""


_compiled: dict[int, tuple[Node, list[Rule]]] = {}


def _rules(node: Node, root: bool) -> list[Rule]:
    kept = _compiled.get(id(node))
    if kept is None or kept[0] is not node:
        if len(_compiled) > 8192:
            _compiled.clear()
        kept = _compiled[id(node)] = (node, [Rule(r, node, root) for r in node.rules])
    return kept[1]


def _convert(value: Any, node: Node | None) -> Any:
    """A JSON value as CEL sees it by its schema: times, durations, bytes; null where nothing may be null is absent."""
    if node is None or value is None:
        return value
    if isinstance(value, str):
        form = node.raw.get("format") if node.type == "string" else None
        if form in ("date-time", "date", "duration", "byte"):
            return _formatted(value, form)
        return value
    if isinstance(value, dict):
        return {k: _convert(v, node.properties.get(k) or node.values) for k, v in value.items()}
    if isinstance(value, list):
        return [_convert(v, node.items) for v in value]
    if isinstance(value, int) and not isinstance(value, bool) and node.type == "number":
        return float(value)
    return value


def _formatted(value: str, form: str) -> Any:
    try:
        if form == "date-time":
            return times.parse(value)
        if form == "date":
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        if form == "duration":
            return cel.Duration(times.parse_duration(value))
        return base64.b64decode(value)
    except ValueError:
        return value


def evaluate(obj: dict[str, Any], old: Any, node: Node, errors: Errors) -> None:
    """Check obj, and obj against old (MISSING when there is none), by every rule."""
    _walk(obj, old, node, "", errors, [cel.TOTAL_LIMIT], root=True)


def _walk(
    value: Any, old: Any, node: Node, path: str, errors: Errors, budget: list[int], *, root: bool = False
) -> None:
    if not node.has_rules or value is None:
        return
    if node.rules:
        _apply(value, old, node, path, errors, budget, root)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        names = list(node.properties) if node.properties else list(value)
        for name in names:
            child = node.properties.get(name) or node.values
            if name not in value or child is None:
                continue
            here = (f"{path}.{name}" if path else name) if name in node.properties else f"{path}[{name}]"
            _walk(value[name], before.get(name, MISSING), child, here, errors, budget)
    elif isinstance(value, list) and node.items is not None:
        known = {list_key(i, node): i for i in old} if node.list_type == "map" and isinstance(old, list) else {}
        for index, item in enumerate(value):
            was = known.get(list_key(item, node), MISSING) if known else MISSING
            _walk(item, was, node.items, f"{path}[{index}]", errors, budget)


def _apply(value: Any, old: Any, node: Node, path: str, errors: Errors, budget: list[int], root: bool) -> None:
    rules = _rules(node, root or node.embedded)
    if old is not MISSING and old == value:
        # Nothing has changed: only transition rules could still complain.
        rules = [r for r in rules if r.transition]
    if not rules:
        return
    current = _convert(value, node)
    previous = MISSING if old is MISSING or old is None else _convert(old, node)
    for rule in rules:
        if rule.problem:
            errors.invalid(path or "<nil>", type_name(value), f"rule compile error: {rule.problem}")
            continue
        if rule.transition and previous is MISSING and not rule.optional_old:
            continue
        frame: dict[str, Any] = {"self": current}
        if rule.transition:
            frame["oldSelf"] = (
                (cel.NONE if previous is MISSING else cel.Optional(True, previous)) if rule.optional_old else previous
            )
        assert rule.program is not None
        try:
            good = rule.program.run(frame, budget)
        except cel.EvalError as error:
            if "cost limit" in str(error):
                errors.invalid(
                    path or "<nil>",
                    type_name(value),
                    "validation failed due to running out of cost budget, no further validation rules will be run",
                )
                return
            errors.invalid(path or "<nil>", type_name(value), f"{error} evaluating rule: {rule.text}")
            continue
        if good is not True:
            errors.append(_complaint(rule, value, path, frame, budget))


def _complaint(rule: Rule, value: Any, path: str, frame: dict[str, Any], budget: list[int]) -> FieldError:
    text = str(rule.raw.get("message", "")).strip()
    if rule.message is not None:
        try:
            said = rule.message.run({**frame, "oldSelf": frame.get("oldSelf")}, budget)
            if isinstance(said, str) and said.strip() and "\n" not in said and len(said) <= 5000:
                text = said.strip()
        except cel.EvalError:
            pass
    if not text:
        text = f"failed rule: {rule.text}"
    kind = _REASONS.get(rule.raw.get("reason") or "FieldValueInvalid", "Invalid")
    place = f"{path}{rule.field}" if path else rule.field.removeprefix(".")
    shown: Any = OMITTED if rule.field or isinstance(value, dict | list) else value
    if kind == "Duplicate":
        return FieldError(kind, place or "<nil>", shown, "")
    return FieldError(kind, place or "<nil>", shown, text)


def compile_schema(schema: dict[str, Any], errors: Errors, path: str) -> None:
    """Check the rules of a definition's schema: that they compile, where oldSelf may stand, and what they may cost."""
    total = celcost.Total()
    _compile(Node(schema), errors, path, total, celcost.Place(1, True, ""), root=True)
    for here, _ in total.contributors():
        errors.forbidden(
            here, "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
        )
    if total.cost > celcost.SCHEMA_LIMIT:
        errors.forbidden(
            path,
            celcost.excess(
                "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema",
                total.cost,
                celcost.SCHEMA_LIMIT,
            ),
        )


def _compile(
    node: Node, errors: Errors, path: str, total: celcost.Total, place: celcost.Place, *, root: bool = False
) -> None:
    for index, raw in enumerate(node.rules):
        here = f"{path}.x-kubernetes-validations[{index}]"
        rule = Rule(raw, node, root or node.embedded)
        if rule.problem:
            errors.invalid(f"{here}.rule", raw["rule"], rule.problem)
            continue
        expression = str(raw.get("messageExpression", "")).strip()
        if expression and rule.message is None:
            type_ = cel.of_node(node, root)
            try:
                cel.compile(expression, {"self": type_, "oldSelf": type_}, ("string",))
            except cel.CompileError as error:
                text = str(error)
                errors.invalid(
                    f"{here}.messageExpression",
                    expression,
                    "messageExpression must evaluate to a string" if text.startswith("must evaluate") else text,
                )
        cost = celcost.estimate(rule.text, node) * celcost.occurrences(node, place)
        total.add(f"{here}.rule", cost)
        if cost > celcost.RULE_LIMIT:
            errors.forbidden(f"{here}.rule", celcost.excess("estimated rule cost", cost, celcost.RULE_LIMIT))
        if rule.transition and not place.correlatable:
            errors.invalid(
                f"{here}.rule",
                raw["rule"],
                f"oldSelf cannot be used on the uncorrelatable portion of the schema within {place.within}",
            )
        if raw.get("optionalOldSelf") and not rule.transition:
            errors.invalid(f"{here}.optionalOldSelf", True, "may not be set if oldSelf is not used in rule")
    for name in sorted(node.properties):
        _compile(node.properties[name], errors, f"{path}.properties[{name}]", total, place)
    if node.items is not None:
        correlatable = place.correlatable and node.list_type == "map"
        within = place.within or (path if not correlatable else "")
        _compile(
            node.items,
            errors,
            f"{path}.items",
            total,
            celcost.Place(celcost.within(node, place), correlatable, within),
        )
    if node.values is not None:
        _compile(
            node.values,
            errors,
            f"{path}.additionalProperties",
            total,
            celcost.Place(celcost.within(node, place), place.correlatable, place.within),
        )


__all__ = ["ObjectType", "Rule", "compile_schema", "evaluate"]
