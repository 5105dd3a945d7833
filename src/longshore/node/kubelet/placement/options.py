"""Values of policy options, as Go's strconv reads them."""

from __future__ import annotations

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


def boolean(name: str, text: str) -> bool:
    """Raises ValueError."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f'bad value for option "{name}": strconv.ParseBool: parsing "{text}": invalid syntax')
