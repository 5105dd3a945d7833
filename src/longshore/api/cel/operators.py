"""What CEL's operators do with values: equality, order, arithmetic, fields and indexes."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

from longshore.api.cel.values import NONE, Duration, EvalError, Optional, Uint

MIN_INT, MAX_INT, MAX_UINT = -(2**63), 2**63 - 1, 2**64 - 1


def no_overload() -> EvalError:
    """What an operator says of values that it does not know."""
    return EvalError("no such overload")


def type_of(value: Any) -> str:
    """The name of a value's type."""
    if value is None:
        return "null_type"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, Uint):
        return "uint"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "double"
    if isinstance(value, str):
        return "string"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return "list"
    if isinstance(value, dict):
        return "map"
    if isinstance(value, datetime):
        return "google.protobuf.Timestamp"
    if isinstance(value, Duration):
        return "google.protobuf.Duration"
    return {
        "Quantity": "kubernetes.Quantity",
        "IP": "net.IP",
        "CIDR": "net.CIDR",
        "URL": "kubernetes.URL",
        "Semver": "kubernetes.Semver",
        "Optional": "optional_type",
        "CelType": "type",
    }.get(type(value).__name__, "dyn")


def equal(a: Any, b: Any) -> bool:
    """CEL's equality: numbers across types, never of different kinds."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if type(a).__name__ == "Quantity" and type(b).__name__ == "Quantity":
        return bool(a.nanos == b.nanos)
    return type(a) is type(b) and bool(a == b)


def get_field(value: Any, name: str) -> Any:
    """value.name."""
    if isinstance(value, Optional):
        if not value.present:
            return NONE
        value = value.value
        return Optional(True, value[name]) if isinstance(value, dict) and name in value else NONE
    if isinstance(value, dict):
        if name in value:
            return value[name]
        raise EvalError(f"no such key: {name}")
    if value is None:
        raise EvalError(f"no such key: {name}")
    raise no_overload()


def get_index(value: Any, index: Any) -> Any:
    """value[index]."""
    if isinstance(value, Optional):
        value = value.value if value.present else {}
    if isinstance(value, dict):
        if index in value and not (isinstance(index, bool) and not any(isinstance(k, bool) for k in value)):
            return value[index]
        if isinstance(value, defaultdict) and value.default_factory is not None:
            return value.default_factory()  # a variable that says what stands for missing keys (a device's attributes)
        raise EvalError(f"no such key: {index}")
    if isinstance(value, list):
        if isinstance(index, bool) or not isinstance(index, int | float):
            raise EvalError(f"unsupported index type '{type_of(index)}' in list")
        if not 0 <= index < len(value):
            raise EvalError(f"index out of bounds: {int(index)}")
        return value[int(index)]
    raise no_overload()


def bounded(value: int) -> int:
    """The number, if an int holds it."""
    if not MIN_INT <= value <= MAX_INT:
        raise EvalError("integer overflow")
    return value


def compare_values(operator: str, a: Any, b: Any) -> bool:
    """<, <=, > and >= of values of one kind."""
    numbers = (
        isinstance(a, int | float)
        and isinstance(b, int | float)
        and not isinstance(a, bool)
        and not isinstance(b, bool)
    )
    if not numbers and (type(a) is not type(b) or not isinstance(a, str | bytes | datetime | Duration | bool)):
        raise no_overload()
    if operator == "<":
        return bool(a < b)
    if operator == "<=":
        return bool(a <= b)
    return bool(a > b) if operator == ">" else bool(a >= b)


def arithmetic(operator: str, a: Any, b: Any) -> Any:
    """+, -, *, / and %."""
    if isinstance(a, bool) or isinstance(b, bool):
        raise no_overload()
    if isinstance(a, int) and isinstance(b, int):
        if isinstance(a, Uint) is not isinstance(b, Uint):
            raise no_overload()
        return _integers(operator, a, b)
    if isinstance(a, float) and isinstance(b, float):
        if operator == "+":
            return a + b
        if operator == "-":
            return a - b
        if operator == "*":
            return a * b
        if operator == "/":
            return (
                a / b
                if b
                else float("nan")
                if a == 0 or a != a
                else float("inf")
                if (a > 0) == (str(b)[0] != "-")
                else float("-inf")
            )
        raise no_overload()
    if operator == "+":
        if type(a) is type(b) and isinstance(a, str | bytes | list):
            return a + b
        if isinstance(a, Duration) and isinstance(b, Duration):
            return Duration(a.nanoseconds + b.nanoseconds)
    return _times(operator, a, b)


def _times(operator: str, a: Any, b: Any) -> Any:
    if isinstance(b, Duration):
        span = timedelta(microseconds=b.nanoseconds / 1000)
        if isinstance(a, datetime):
            return a + span if operator == "+" else a - span
        if isinstance(a, Duration) and operator == "-":
            return Duration(a.nanoseconds - b.nanoseconds)
    if isinstance(a, Duration) and isinstance(b, datetime) and operator == "+":
        return b + timedelta(microseconds=a.nanoseconds / 1000)
    if isinstance(a, datetime) and isinstance(b, datetime) and operator == "-":
        difference = a - b
        return Duration((difference.days * 86400 + difference.seconds) * 10**9 + difference.microseconds * 1000)
    raise no_overload()


def _integers(operator: str, a: int, b: int) -> int:
    if operator in ("/", "%"):
        if b == 0:
            raise EvalError("division by zero" if operator == "/" else "modulus by zero")
        quotient = abs(a) // abs(b)
        if (a < 0) != (b < 0):
            quotient = -quotient
        value = quotient if operator == "/" else a - b * quotient
    else:
        value = a + b if operator == "+" else a - b if operator == "-" else a * b
    if isinstance(a, Uint):
        if not 0 <= value <= MAX_UINT:
            raise EvalError("unsigned integer overflow")
        return Uint(value)
    return bounded(int(value))
