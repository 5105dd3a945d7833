"""$(NAME) references in commands, arguments, environment values and subPathExpr.

Source: kubernetes third_party/forked/golang/expansion, design "expansion of variables".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def expand(text: str, *mappings: Mapping[str, str]) -> str:
    """Replace $(NAME) by the first mapping's value that has it; unknown names stay as written; $$ is one $."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        for mapping in mappings:
            if name in mapping:
                return mapping[name]
        return match.group(0)

    return _REFERENCE.sub(replace, text)


def missing(text: str, mapping: Mapping[str, str]) -> list[str]:
    """The names that `text` refers to and the mapping lacks."""
    return [m.group(1) for m in _REFERENCE.finditer(text) if m.group(1) is not None and m.group(1) not in mapping]
