"""Paths that a pattern list leaves out: .dockerignore and --exclude. Pure.

Source: Dockerfile reference, ".dockerignore file"; moby/patternmatcher (Go's filepath.Match with "**").
"""

from __future__ import annotations

import posixpath
import re


def _translate(pattern: str) -> re.Pattern[str]:
    out = ""
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "*":
            if pattern.startswith("**", position):
                position += 2
                if pattern.startswith("/", position):
                    position += 1
                    out += "(?:.*/)?"
                else:
                    out += ".*"
                continue
            out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif character == "[":
            end = pattern.find("]", position + 2)
            if end < 0:
                raise ValueError("syntax error in pattern")
            inner = pattern[position + 1 : end]
            out += "[" + ("^" + inner[1:] if inner[0] in "^" else inner).replace("[", r"\[") + "]"
            position = end
        elif character == "\\" and position + 1 < len(pattern):
            position += 1
            out += re.escape(pattern[position])
        else:
            out += re.escape(character)
        position += 1
    return re.compile(out, re.DOTALL)


class Ignore:
    """A list of patterns, later ones winning; "!" takes back. Raises ValueError for a broken pattern."""

    def __init__(self, patterns: list[str]) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for text in patterns:
            text = text.strip()
            keep = text.startswith("!")
            text = text[1:].strip() if keep else text
            if not text:
                continue
            clean = posixpath.normpath(text).lstrip("/")
            if clean in (".", ""):
                continue
            self._rules.append((keep, _translate(clean)))
        self.takes_back = any(keep for keep, _ in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def matches(self, path: str) -> bool:
        """Is a path (relative, slashes) left out? A pattern that matches a folder matches all below it."""
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        out = False
        for keep, rule in self._rules:
            if out == keep and any(rule.fullmatch(part) for part in above):
                out = not keep
        return out


def parse(data: bytes) -> list[str]:
    """The patterns of a .dockerignore file."""
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
