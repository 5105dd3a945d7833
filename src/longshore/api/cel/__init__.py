"""The Common Expression Language as the API server runs it: standard library, Kubernetes' libraries, limits on cost.

Door: `compile(text, variables, results)` -> `Program`, whose `run(values)` gives the result or raises `EvalError`.
cel-expr-python (cel-cpp) cannot take opaque values such as quantities, so that it only lends the words of its syntax errors,
which are cel-go's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from longshore.api.cel.compiler import COST, Code, CompileProblem, Compiler
from longshore.api.cel.functions import FUNCTIONS, METHODS, RESULTS
from longshore.api.cel.parser import SyntaxProblem, parse
from longshore.api.cel.types import ObjectType, Type, of_node
from longshore.api.cel.values import NONE, Duration, EvalError, Optional, Quantity, Uint

PER_CALL_LIMIT = 1_000_000
TOTAL_LIMIT = 10_000_000


class CompileError(ValueError):
    """The expression is wrong; str() is upstream's message ("compilation failed: ..." or "must evaluate to ...")."""


class Program:
    """A compiled expression: text, its type, the variables that it uses."""

    __slots__ = ("_code", "text", "type", "used")

    def __init__(self, text: str, code: Code, type_: Type, used: frozenset[str]) -> None:
        self.text = text
        self._code = code
        self.type = type_
        self.used = used

    def run(self, values: Mapping[str, Any], budget: list[int] | None = None) -> Any:
        """The result with these variables. EvalError. budget: [what is left for several calls], lowered by this one."""
        limit = PER_CALL_LIMIT if budget is None else min(PER_CALL_LIMIT, budget[0])
        cost = [0, limit]
        frame = {**values, COST: cost}
        try:
            return self._code(frame)
        except RecursionError:
            raise EvalError("expression recursion limit exceeded") from None
        except (ArithmeticError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise EvalError(str(error) or "no such overload") from None
        finally:
            if budget is not None:
                budget[0] -= cost[0]


def _placed(text: str, position: int, message: str) -> str:
    before = text[:position]
    line = before.count("\n")
    column = len(before) - (before.rfind("\n") + 1)
    source = text.split("\n")[line]
    return f"ERROR: <input>:{line + 1}:{column + 1}: {message}\n | {source}\n | {'.' * column}^"


@lru_cache(maxsize=256)
def _syntax_words(text: str) -> str:
    """What ANTLR's parser says about text, as cel-go and cel-cpp share it; "" when it finds nothing wrong."""
    from cel_expr_python import cel

    try:
        cel.NewEnv().compile(text, disable_check=True)
    except Exception as error:
        message = str(error).removeprefix("INVALID_ARGUMENT: ").removesuffix(" [INVALID_ARGUMENT]")
        return message if "Syntax error" in message else ""
    return ""


def compile(
    text: str,
    variables: Mapping[str, Type],
    results: Sequence[str] = (),
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Program:
    """Compile an expression.

    Args: text; variables that it may use, with their types ("dyn", "string", an ObjectType ...); results: the types
    that it must have, any when empty; functions: methods besides the libraries'. Raises CompileError.
    """
    try:
        tree = parse(text)
    except SyntaxProblem as problem:
        words = _syntax_words(text) or _placed(text, problem.position, f"Syntax error: {problem}")
        raise CompileError(f"compilation failed: {words}") from None
    except RecursionError:
        raise CompileError("compilation failed: expression recursion limit exceeded: 250") from None
    methods = {**METHODS, **functions} if functions else METHODS
    compiler = Compiler(dict(variables), FUNCTIONS, methods, RESULTS)
    try:
        code, type_ = compiler.compile(tree)
    except CompileProblem as problem:
        raise CompileError(f"compilation failed: {_placed(text, problem.position, str(problem))}") from None
    if results and type_ != "dyn" and str(type_) not in results:
        wanted = results[0] if len(results) == 1 else f"one of [{' '.join(results)}]"
        raise CompileError(f"must evaluate to {wanted} but got {type_}")
    return Program(text, code, type_, frozenset(compiler.used))


__all__ = [
    "NONE",
    "CompileError",
    "Duration",
    "EvalError",
    "ObjectType",
    "Optional",
    "Program",
    "Quantity",
    "Uint",
    "compile",
    "of_node",
]
