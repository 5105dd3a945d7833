"""CEL's conversions between types, and what they share with the other functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from longshore.api import times
from longshore.api.cel.operators import type_of
from longshore.api.cel.values import CIDR, IP, CelType, Duration, EvalError, Quantity, Uint

Function = Callable[..., Any]


def need(value: Any, *kinds: type) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise EvalError("no such overload")


# Conversions.


def to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise EvalError("no such overload")
    if isinstance(value, str):
        if not re.fullmatch(r"[+-]?\d+", value):
            raise EvalError(f'strconv.ParseInt: parsing "{value}": invalid syntax')
        number = int(value)
    elif isinstance(value, datetime):
        number = int(value.timestamp())
    elif isinstance(value, Duration):
        number = value.nanoseconds
    elif isinstance(value, int | float):
        if isinstance(value, float) and (value != value or math.isinf(value)):
            raise EvalError("integer overflow")
        number = int(value)
    else:
        raise EvalError("no such overload")
    if not -(2**63) <= number < 2**63:
        raise EvalError("integer overflow")
    return number


def to_uint(value: Any) -> Uint:
    if isinstance(value, str) and not re.fullmatch(r"\d+", value):
        raise EvalError(f'strconv.ParseUint: parsing "{value}": invalid syntax')
    number = int(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1
    if not 0 <= number < 2**64:
        raise EvalError("unsigned integer overflow")
    return Uint(number)


def to_double(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise EvalError("no such overload")
    try:
        return float(value)
    except ValueError:
        raise EvalError(f'strconv.ParseFloat: parsing "{value}": invalid syntax') from None


def to_string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise EvalError("invalid UTF-8 in bytes, cannot convert to string") from None
    if isinstance(value, float):
        return double_text(value)
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, datetime):
        return (
            value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
            + (f".{value.microsecond:06d}".rstrip("0") if value.microsecond else "")
            + "Z"
        )
    if isinstance(value, Duration):
        seconds = value.nanoseconds / 10**9
        return f"{double_text(seconds)}s"
    if isinstance(value, Quantity):
        return str(value.amount)
    if isinstance(value, IP):
        return str(value.address)
    if isinstance(value, CIDR):
        return str(value.interface)
    raise EvalError("no such overload")


def double_text(value: float) -> str:
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)


def to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("true", "t", "TRUE", "True", "1"):
        return True
    if isinstance(value, str) and value in ("false", "f", "FALSE", "False", "0"):
        return False
    raise EvalError("type conversion error from 'string' to 'bool'")


def to_bytes(value: Any) -> bytes:
    need(value, str, bytes)
    return value.encode() if isinstance(value, str) else bytes(value)


def to_duration(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    need(value, str)
    try:
        return Duration(times.parse_duration(value))
    except ValueError as error:
        raise EvalError(str(error)) from None


def to_timestamp(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    need(value, str)
    try:
        return times.parse(value)
    except times.TimeError as error:
        raise EvalError(str(error)) from None


def to_type(value: Any) -> CelType:
    return CelType(type_of(value))


def size(value: Any) -> int:
    need(value, str, bytes, list, dict)
    return len(value)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The pattern; EvalError with Go's complaint."""
    from longshore.api.crd.patterns import PatternError, compile_go

    try:
        return compile_go(pattern)
    except PatternError as error:
        raise EvalError(str(error)) from None


def matches(text: Any, pattern: Any) -> bool:
    need(text, str)
    need(pattern, str)
    return compile_pattern(pattern).search(text) is not None
