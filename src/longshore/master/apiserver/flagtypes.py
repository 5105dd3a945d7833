"""Values of flags as upstream's flag library reads them."""

from __future__ import annotations

import argparse

from longshore.api import times


def boolean(text: str) -> bool:
    """true or false in Go's spellings."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise argparse.ArgumentTypeError(f"invalid boolean value {text!r}")


def seconds(text: str) -> float:
    """A duration (1m30s) in seconds; bare digits are seconds."""
    try:
        return int(text) if text.isdigit() else times.parse_duration(text) / 1_000_000_000
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole_seconds(text: str) -> int:
    """As `seconds`, without fractions."""
    return int(seconds(text))
