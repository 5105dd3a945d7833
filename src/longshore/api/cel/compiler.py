"""CEL trees to Python closures, with the part of type checking that tells people of their mistakes early.

A compiled expression is a function of a frame (a dict of variables, with the running cost under `COST`). Types are
names ("int", "string", "list", "dyn" ...) or an `ObjectType` of a schema; "dyn" is checked when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from longshore.api.cel.operators import (
    arithmetic,
    bounded,
    compare_values,
    equal,
    get_field,
    get_index,
    no_overload,
)
from longshore.api.cel.parser import Node
from longshore.api.cel.types import METADATA, ObjectType, Type, of_node, unescape
from longshore.api.cel.values import NONE, CelType, Duration, EvalError, Optional, Uint

Frame = dict[str, Any]
Code = Callable[[Frame], Any]
COST = "\0cost"
LIMIT = "\0limit"
_SCALARS = frozenset(("bool", "int", "uint", "double", "string", "bytes", "null_type", "timestamp", "duration"))
_MACROS = frozenset(
    [
        "all",
        "exists",
        "exists_one",
        "existsOne",
        "map",
        "filter",
        "optMap",
        "optFlatMap",
        "sortBy",
        "transformList",
        "transformMap",
        "transformMapEntry",
    ]
)
_OPERATORS = {
    "+": "_+_",
    "-": "_-_",
    "*": "_*_",
    "/": "_/_",
    "%": "_%_",
    "==": "_==_",
    "!=": "_!=_",
    "<": "_<_",
    "<=": "_<=_",
    ">": "_>_",
    ">=": "_>=_",
    "in": "@in",
    "&&": "_&&_",
    "||": "_||_",
}
TYPE_NAMES = {
    n: CelType(n)
    for n in (
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "kubernetes.Quantity",
        "net.IP",
        "net.CIDR",
        "kubernetes.URL",
        "kubernetes.Semver",
    )
}


class CompileProblem(ValueError):
    """A complaint at a position of the source."""

    def __init__(self, position: int, text: str) -> None:
        super().__init__(text)
        self.position = position


def spend(frame: Frame, amount: int = 1) -> None:
    """Charge cost; EvalError past the limit."""
    cost = frame[COST]
    cost[0] += amount
    if cost[0] > cost[1]:
        raise EvalError("operation cancelled: actual cost limit exceeded")


def _size(value: Any) -> int:
    return len(value) // 10 if isinstance(value, str | bytes | list | dict) else 0


class Compiler:
    """Compiles one expression with the variables that it may use (name -> type)."""

    def __init__(
        self,
        variables: dict[str, Type],
        functions: dict[str, Callable[..., Any]],
        methods: dict[str, Callable[..., Any]],
        results: dict[str, str],
    ) -> None:
        self.variables = dict(variables)
        self.functions = functions
        self.methods = methods
        self.results = results
        self.used: set[str] = set()

    def compile(self, node: Node) -> tuple[Code, Type]:
        """The code of a node and its type."""
        found: tuple[Code, Type] = getattr(self, "_" + node[0])(node)
        return found

    def _lit(self, node: Node) -> tuple[Code, Type]:
        value = Uint(node[2]) if node[3] == "uint" else node[2]
        return (lambda f: value), node[3]

    def _id(self, node: Node) -> tuple[Code, Type]:
        name = node[2]
        if name in self.variables:
            self.used.add(name)
            type_ = self.variables[name]

            def load(f: Frame) -> Any:
                value = f[name]
                if callable(value) and getattr(value, "lazy", False):
                    value = f[name] = value()
                return value

            return load, type_
        if name in TYPE_NAMES:
            constant = TYPE_NAMES[name]
            return (lambda f: constant), "type"
        raise CompileProblem(node[1], f"undeclared reference to '{name}' (in container '')")

    def _qualified(self, node: Node) -> str:
        if node[0] == "id":
            return str(node[2])
        if node[0] == "sel":
            left = self._qualified(node[2])
            return f"{left}.{node[3]}" if left else ""
        return ""

    def _sel(self, node: Node) -> tuple[Code, Type]:
        qualified = self._qualified(node)
        if qualified in TYPE_NAMES:
            constant = TYPE_NAMES[qualified]
            return (lambda f: constant), "type"
        if qualified and qualified in self.variables:
            self.used.add(qualified)
            return (lambda f: f[qualified]), self.variables[qualified]
        operand, type_ = self.compile(node[2])
        field, result = self._field(node, type_)

        def select(f: Frame) -> Any:
            spend(f)
            return get_field(operand(f), field)

        return select, result

    def _field(self, node: Node, type_: Type) -> tuple[str, Type]:
        name = unescape(node[3])
        if isinstance(type_, str) and type_ in _SCALARS:
            raise CompileProblem(node[1], f"type '{type_}' does not support field selection")
        if not isinstance(type_, ObjectType):
            return name, "dyn"
        schema = type_.node
        if schema.type == "array":
            raise CompileProblem(node[1], "type 'list' does not support field selection")
        if type_.root and name in ("apiVersion", "kind", "metadata"):
            if name != "metadata":
                return name, "string"
            return name, METADATA
        if name in schema.properties:
            return name, of_node(schema.properties[name])
        if schema.values is not None:
            return name, of_node(schema.values)
        raise CompileProblem(node[1], f"undefined field '{node[3]}'")

    def _optsel(self, node: Node) -> tuple[Code, Type]:
        operand, _ = self.compile(node[2])
        name = unescape(node[3])

        def select(f: Frame) -> Any:
            value = operand(f)
            if isinstance(value, Optional):
                if not value.present:
                    return NONE
                value = value.value
            return Optional(True, value[name]) if isinstance(value, dict) and name in value else NONE

        return select, "optional_type"

    def _idx(self, node: Node) -> tuple[Code, Type]:
        operand, type_ = self.compile(node[2])
        index, _ = self.compile(node[3])
        result: Type = "dyn"
        if isinstance(type_, ObjectType):
            if type_.node.type == "array":
                result = of_node(type_.node.items)
            elif type_.node.values is not None:
                result = of_node(type_.node.values)

        def at(f: Frame) -> Any:
            spend(f)
            return get_index(operand(f), index(f))

        return at, result

    def _optidx(self, node: Node) -> tuple[Code, Type]:
        operand, _ = self.compile(node[2])
        index, _ = self.compile(node[3])

        def at(f: Frame) -> Any:
            value = operand(f)
            if isinstance(value, Optional):
                if not value.present:
                    return NONE
                value = value.value
            try:
                return Optional(True, get_index(value, index(f)))
            except EvalError:
                return NONE

        return at, "optional_type"

    def _list(self, node: Node) -> tuple[Code, Type]:
        items = [(self.compile(item)[0], optional) for item, optional in node[2]]

        def make(f: Frame) -> Any:
            spend(f, 10)
            out = []
            for item, optional in items:
                value = item(f)
                if optional:
                    if value.present:
                        out.append(value.value)
                else:
                    out.append(value)
            return out

        return make, "list"

    def _map(self, node: Node) -> tuple[Code, Type]:
        pairs = [(self.compile(k)[0], self.compile(v)[0], optional) for k, v, optional in node[2]]

        def make(f: Frame) -> Any:
            spend(f, 30)
            out: dict[Any, Any] = {}
            for key, item, optional in pairs:
                name, value = key(f), item(f)
                if optional:
                    if value.present:
                        out[name] = value.value
                else:
                    if name in out:
                        raise EvalError("Failed with repeated key")
                    out[name] = value
            return out

        return make, "map"

    def _msg(self, node: Node) -> tuple[Code, Type]:
        if node[2].split(".")[0] not in ("Object", "JSONPatch"):
            raise CompileProblem(node[1], f"undeclared reference to '{node[2]}' (in container '')")
        fields = [(unescape(name), self.compile(value)[0], optional) for name, value, optional in node[3]]

        def make(f: Frame) -> Any:
            spend(f, 40)
            out = {}
            for name, item, optional in fields:
                value = item(f)
                if optional:
                    if not value.present:
                        continue
                    value = value.value
                out[name] = value
            return out

        return make, node[2]

    def _cond(self, node: Node) -> tuple[Code, Type]:
        condition, type_ = self.compile(node[2])
        if type_ not in ("bool", "dyn"):
            raise CompileProblem(node[1], f"found no matching overload for '_?_:_' applied to '({type_}, ...)'")
        yes, yes_type = self.compile(node[3])
        no, no_type = self.compile(node[4])

        def choose(f: Frame) -> Any:
            value = condition(f)
            if value is True:
                return yes(f)
            if value is False:
                return no(f)
            raise no_overload()

        return choose, yes_type if yes_type == no_type else "dyn"

    def _not(self, node: Node) -> tuple[Code, Type]:
        operand, type_ = self.compile(node[2])
        if type_ not in ("bool", "dyn"):
            raise CompileProblem(node[1], f"found no matching overload for '!_' applied to '({type_})'")

        def negate(f: Frame) -> Any:
            value = operand(f)
            if not isinstance(value, bool):
                raise no_overload()
            return not value

        return negate, "bool"

    def _neg(self, node: Node) -> tuple[Code, Type]:
        operand, type_ = self.compile(node[2])

        def negative(f: Frame) -> Any:
            value = operand(f)
            if isinstance(value, Duration):
                return Duration(-value.nanoseconds)
            if isinstance(value, bool | Uint) or not isinstance(value, int | float):
                raise no_overload()
            return bounded(-value) if isinstance(value, int) else -value

        return negative, type_

    def _op(self, node: Node) -> tuple[Code, Type]:
        operator = node[2]
        left, left_type = self.compile(node[3])
        right, right_type = self.compile(node[4])
        known = (
            isinstance(left_type, str)
            and isinstance(right_type, str)
            and left_type in _SCALARS
            and right_type in _SCALARS
        )
        if operator in ("&&", "||"):
            if any(isinstance(t, ObjectType) or t not in ("bool", "dyn") for t in (left_type, right_type)):
                raise CompileProblem(
                    node[1],
                    f"found no matching overload for '{_OPERATORS[operator]}' applied to '({left_type}, {right_type})'",
                )
            return _logical(left, right, operator == "&&"), "bool"
        if known and left_type != right_type and operator != "in":
            pair = {left_type, right_type}
            fine = (
                (pair <= {"int", "uint", "double"} and operator in ("<", "<=", ">", ">="))
                or (pair == {"timestamp", "duration"} and operator in ("+", "-"))
                or "null_type" in pair
            )
            if not fine:
                raise CompileProblem(
                    node[1],
                    f"found no matching overload for '{_OPERATORS[operator]}' applied to '({left_type}, {right_type})'",
                )
        if operator in ("==", "!="):
            same = operator == "=="

            def compare(f: Frame) -> Any:
                a, b = left(f), right(f)
                spend(f, 1 + min(_size(a), _size(b)))
                return equal(a, b) is same

            return compare, "bool"
        if operator == "in":

            def contains(f: Frame) -> Any:
                a, b = left(f), right(f)
                if isinstance(b, dict):
                    spend(f)
                    return any(equal(a, k) for k in b) if isinstance(a, float) else a in b
                if not isinstance(b, list):
                    raise no_overload()
                spend(f, 1 + len(b))
                return any(equal(a, x) for x in b)

            return contains, "bool"
        if operator in ("<", "<=", ">", ">="):

            def order(f: Frame) -> Any:
                a, b = left(f), right(f)
                spend(f, 1 + min(_size(a), _size(b)))
                return compare_values(operator, a, b)

            return order, "bool"

        def calculate(f: Frame) -> Any:
            a, b = left(f), right(f)
            spend(f, 1 + _size(a) + _size(b))
            return arithmetic(operator, a, b)

        if "timestamp" in (left_type, right_type):
            times = left_type == right_type or right_type == "duration" or operator == "+"
            return calculate, ("duration" if left_type == right_type else "timestamp") if times else "dyn"
        return calculate, left_type if left_type == right_type else "dyn"

    def _call(self, node: Node) -> tuple[Code, Type]:
        name, arguments = node[2], node[3]
        if name == "has" and len(arguments) == 1:
            return self._has(node, arguments[0])
        function = self.functions.get(name)
        if function is None:
            raise CompileProblem(node[1], f"undeclared reference to '{name}' (in container '')")
        codes = [self.compile(a)[0] for a in arguments]
        return _caller(function, codes), self.results.get(name, "dyn")

    def _has(self, node: Node, target: Node) -> tuple[Code, Type]:
        if target[0] != "sel":
            raise CompileProblem(target[1], "invalid argument to has() macro")
        operand, type_ = self.compile(target[2])
        # As in cel-go, where the macro's expansion stands at the call.
        name, _ = self._field((target[0], node[1], *target[2:]), type_)

        def present(f: Frame) -> Any:
            spend(f)
            value = operand(f)
            if isinstance(value, Optional):
                value = value.value if value.present else {}
            if not isinstance(value, dict):
                raise no_overload()
            return name in value and value[name] is not None

        return present, "bool"

    def _mcall(self, node: Node) -> tuple[Code, Type]:
        target, name, arguments = node[2], node[3], node[4]
        qualified = self._qualified(target)
        space = f"{qualified}.{name}" if qualified else ""
        if space == "cel.bind" and len(arguments) == 3 and arguments[0][0] == "id":
            return self._bind(arguments)
        if space in self.functions and qualified.split(".")[0] not in self.variables:
            return _caller(self.functions[space], [self.compile(a)[0] for a in arguments]), self.results.get(
                space, "dyn"
            )
        if name in _MACROS and len(arguments) >= 2 and arguments[0][0] == "id":
            return self._macro(node)
        operand, _ = self.compile(target)
        method = self.methods.get(name)
        if method is None:
            raise CompileProblem(node[1], f"undeclared reference to '{name}' (in container '')")
        codes = [operand, *(self.compile(a)[0] for a in arguments)]
        return _caller(method, codes), self.results.get("." + name, "dyn")

    def _bind(self, arguments: list[Node]) -> tuple[Code, Type]:
        name = arguments[0][2]
        value, type_ = self.compile(arguments[1])
        kept = self.variables.get(name, MISSING)
        self.variables[name] = type_
        body, result = self.compile(arguments[2])
        self._restore(name, kept)

        def bind(f: Frame) -> Any:
            return body({**f, name: value(f)})

        return bind, result

    def _restore(self, name: str, kept: Any) -> None:
        if kept is MISSING:
            del self.variables[name]
        else:
            self.variables[name] = kept

    def _macro(self, node: Node) -> tuple[Code, Type]:
        from longshore.api.cel import macros

        return macros.build(self, node)


class _Missing:
    pass


MISSING = _Missing()


def _caller(function: Callable[..., Any], codes: list[Code]) -> Code:
    def call(f: Frame) -> Any:
        values = [code(f) for code in codes]
        spend(f, 1 + sum(_size(v) for v in values))
        try:
            return function(*values)
        except TypeError:
            raise no_overload() from None

    return call


def _logical(left: Code, right: Code, conjunction: bool) -> Code:
    """&& and ||: an error on one side is forgotten when the other side decides."""
    decisive = not conjunction

    def decide(f: Frame) -> Any:
        problem: EvalError | None = None
        try:
            a = left(f)
            if a is decisive:
                return decisive
            if not isinstance(a, bool):
                problem = no_overload()
        except EvalError as error:
            problem = error
        b = right(f)
        if b is decisive:
            return decisive
        if problem is not None:
            raise problem
        if not isinstance(b, bool):
            raise no_overload()
        return b

    return decide
