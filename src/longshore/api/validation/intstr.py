"""Values that are a number or a percentage (apimachinery pkg/util/intstr and its uses in validation)."""

from __future__ import annotations

import re
from typing import Any

from longshore.api.validation.errors import Errors
from longshore.api.validation.quantities import NOT_NEGATIVE

_PERCENT = "[0-9]+%"
_percent = re.compile(_PERCENT).fullmatch
_digits = re.compile(r"[+-]?[0-9]{1,18}").fullmatch


def is_percent(value: Any) -> bool:
    """Whether value writes a percentage."""
    return isinstance(value, str) and _percent(value) is not None


def positive_or_percent(errors: Errors, value: Any, path: str) -> None:
    """A number of at least zero, or a percentage."""
    if isinstance(value, str):
        if not _percent(value):
            errors.invalid(
                path,
                value,
                f"a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '{_PERCENT}')",
            )
    elif value < 0:
        errors.invalid(path, value, NOT_NEGATIVE)


def at_most_100_percent(errors: Errors, value: Any, path: str) -> None:
    """A percentage of at most 100."""
    if is_percent(value) and int(value[:-1]) > 100:
        errors.invalid(path, value, "must not be greater than 100%")


def number(value: Any) -> int:
    """The number, also one written as text, of a percentage its figure; 0 for what is neither."""
    if isinstance(value, str):
        digits = value[:-1] if _percent(value) else value
        return int(digits) if _digits(digits) else 0
    return int(value)
