"""CEL's macros over lists and maps: all, exists, exists_one, map, filter, and those with two variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from longshore.api.cel.compiler import MISSING, Code, CompileProblem, Compiler, Frame, spend
from longshore.api.cel.parser import Node
from longshore.api.cel.types import ObjectType, Type, of_node
from longshore.api.cel.values import NONE, EvalError, Optional


def build(compiler: Compiler, node: Node) -> tuple[Code, Type]:
    """The code of a macro call and its type."""
    name, arguments = node[3], node[4]
    source, type_ = compiler.compile(node[2])
    if name in ("optMap", "optFlatMap"):
        return _optional(compiler, source, name, arguments)
    two = (
        len(arguments) >= 3
        and arguments[1][0] == "id"
        and (name.startswith("transform") or name in ("all", "exists", "exists_one", "existsOne"))
    )
    if name == "map" and len(arguments) == 3:
        two = False
    variables = [arguments[0][2], arguments[1][2]] if two else [arguments[0][2]]
    bodies = arguments[len(variables) :]
    kept = {v: compiler.variables.get(v, MISSING) for v in variables}
    first, second = _element_types(type_, two)
    compiler.variables[variables[0]] = first
    if two:
        compiler.variables[variables[1]] = second
    compiled = [compiler.compile(b) for b in bodies]
    for variable, was in kept.items():
        compiler._restore(variable, was)
    codes = [c for c, _ in compiled]
    if name in ("all", "exists", "exists_one", "existsOne", "filter"):
        if isinstance(compiled[0][1], ObjectType) or compiled[0][1] not in ("bool", "dyn"):
            raise CompileProblem(bodies[0][1], f"expected type 'bool' but found '{compiled[0][1]}'")

    def frames(f: Frame) -> Any:
        value = source(f)
        if isinstance(value, dict):
            pairs: Any = value.items() if two else ((k, None) for k in value)
        elif isinstance(value, list):
            pairs = enumerate(value) if two else ((v, None) for v in value)
        else:
            raise EvalError("no such overload")
        for a, b in pairs:
            spend(f)
            inner = {**f, variables[0]: a}
            if two:
                inner[variables[1]] = b
            yield a, b, inner

    def predicate(f: Frame) -> bool:
        value = codes[0](f)
        if not isinstance(value, bool):
            raise EvalError("no such overload")
        return value

    if name in ("all", "exists"):
        return _quantifier(frames, predicate, name == "exists"), "bool"
    if name in ("exists_one", "existsOne"):
        return (lambda f: sum(predicate(inner) for _, _, inner in frames(f)) == 1), "bool"
    if name == "filter":
        return (lambda f: [a for a, _, inner in frames(f) if predicate(inner)]), type_ if isinstance(
            type_, ObjectType
        ) and type_.node.type == "array" else "list"
    if name == "sortBy":
        return (
            lambda f: [a for _, a in sorted(((codes[0](inner), a) for a, _, inner in frames(f)), key=lambda p: p[0])]
        ), type_
    transform = codes[-1]
    keep = predicate if len(codes) == 2 else None
    if name in ("map", "transformList"):
        return (lambda f: [transform(inner) for _, _, inner in frames(f) if keep is None or keep(inner)]), "list"
    if name == "transformMap":
        return (lambda f: {a: transform(inner) for a, _, inner in frames(f) if keep is None or keep(inner)}), "map"

    def entries(f: Frame) -> Any:
        out: dict[Any, Any] = {}
        for _, _, inner in frames(f):
            if keep is None or keep(inner):
                for key, value in transform(inner).items():
                    if key in out:
                        raise EvalError(f"insert failed: key '{key}' already exists")
                    out[key] = value
        return out

    return entries, "map"


def _element_types(type_: Type, two: bool) -> tuple[Type, Type]:
    if not isinstance(type_, ObjectType):
        return "dyn", "dyn"
    if type_.node.type == "array":
        item = of_node(type_.node.items)
        return ("int", item) if two else (item, "dyn")
    return "string", of_node(type_.node.values) if type_.node.values is not None else "dyn"


def _quantifier(frames: Any, predicate: Callable[[Frame], bool], existential: bool) -> Code:
    """all and exists: an error is forgotten when another element decides."""

    def decide(f: Frame) -> bool:
        problem: EvalError | None = None
        for _, _, inner in frames(f):
            try:
                if predicate(inner) is existential:
                    return existential
            except EvalError as error:
                if "cost limit" in str(error):
                    raise
                problem = error
        if problem is not None:
            raise problem
        return not existential

    return decide


def _optional(compiler: Compiler, source: Code, name: str, arguments: list[Node]) -> tuple[Code, Type]:
    variable = arguments[0][2]
    kept = compiler.variables.get(variable, MISSING)
    compiler.variables[variable] = "dyn"
    body, _ = compiler.compile(arguments[1])
    compiler._restore(variable, kept)

    def run(f: Frame) -> Any:
        value = source(f)
        if not isinstance(value, Optional):
            raise EvalError("no such overload")
        if not value.present:
            return NONE
        result = body({**f, variable: value.value})
        return result if name == "optFlatMap" else Optional(True, result)

    return run, "optional_type"
