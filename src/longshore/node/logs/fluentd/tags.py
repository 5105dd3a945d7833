"""Tag patterns: `*` one part, `**` any number of parts, `{a,b}` either, several patterns apart by spaces."""

from __future__ import annotations

import re
from collections.abc import Callable


def matcher(text: str) -> Callable[[str], bool]:
    """Whether a tag matches any of the patterns of a directive's argument (none: every tag). Raises ValueError."""
    patterns = [_pattern(word) for word in _words(text)] or [re.compile(".*", re.DOTALL)]
    return lambda tag: any(pattern.fullmatch(tag) for pattern in patterns)


def _words(text: str) -> list[str]:
    """Apart at spaces and commas that stand outside braces."""
    words, depth, word = [], 0, ""
    for char in text:
        depth += (char == "{") - (char == "}")
        if depth == 0 and char in " \t,":
            words.append(word)
            word = ""
        else:
            word += char
    return [w for w in [*words, word] if w]


def _pattern(text: str) -> re.Pattern[str]:
    if len(text) > 1 and text.startswith("/") and text.endswith("/"):
        return re.compile(text[1:-1])
    return re.compile(_expression(text), re.DOTALL)


def _expression(text: str) -> str:
    parts, at = "", 0
    while at < len(text):
        if text.startswith(".**", at):
            # `a.**` takes a and a.b.c
            parts += r"(?:\..*)?"
            at += 3
        elif text.startswith("**.", at):
            parts += r"(?:.*\.)?"
            at += 3
        elif text.startswith("**", at):
            parts += ".*"
            at += 2
        elif text[at] == "*":
            parts += r"[^.]*"
            at += 1
        elif text[at] == "{":
            end = text.find("}", at)
            if end < 0:
                raise ValueError(f"a brace does not end in {text!r}")
            parts += "(?:" + "|".join(_expression(word) for word in text[at + 1 : end].split(",")) + ")"
            at = end + 1
        else:
            parts += re.escape(text[at])
            at += 1
    return parts
