"""Checks of label selectors (apimachinery pkg/apis/meta/v1/validation)."""

from __future__ import annotations

from typing import Any

from longshore.api.validation.errors import Errors
from longshore.api.validation.metadata import labels
from longshore.api.validation.names import label_value, qualified_name


def label_selector(errors: Errors, selector: dict[str, Any] | None, path: str) -> bool:
    """matchLabels and matchExpressions; whether they are good, so that a selector can be made of them."""
    if selector is None:
        return True
    before = len(errors)
    if selector.get("matchLabels"):
        labels(errors, selector["matchLabels"], f"{path}.matchLabels")
    for index, requirement in enumerate(selector.get("matchExpressions") or ()):
        here = f"{path}.matchExpressions[{index}]"
        operator, values, key = (
            requirement.get("operator", ""),
            requirement.get("values") or [],
            requirement.get("key", ""),
        )
        if operator in ("In", "NotIn"):
            if not values:
                errors.required(f"{here}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                errors.forbidden(f"{here}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        else:
            errors.invalid(f"{here}.operator", operator, "not a valid selector operator")
        for message in qualified_name(key):
            errors.invalid(f"{here}.key", key, message)
        for at, value in enumerate(values):
            for message in label_value(value):
                errors.invalid(f"{here}.values[{at}]", value, message)
    return len(errors) == before


def is_empty(selector: dict[str, Any] | None) -> bool:
    """A selector that selects everything (or is absent)."""
    return not selector or not (selector.get("matchLabels") or selector.get("matchExpressions"))
