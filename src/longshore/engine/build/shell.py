"""Variable expansion in Dockerfile words: $name, ${name}, modifiers, quotes and escapes. Pure.

Source: Dockerfile reference, "Environment replacement"; BuildKit frontend/dockerfile/shell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME_START = re.compile(r"[A-Za-z_]")
_SPECIAL = "@*#?-$!0123456789"


class ExpansionError(ValueError):
    """A word that cannot be expanded; the text is BuildKit's."""


class _Expander:
    def __init__(self, text: str, variables: Mapping[str, str], escape: str, *, quotes: bool = True) -> None:
        self.text, self.variables, self.escape, self.quotes = text, variables, escape, quotes
        self.position = 0
        self.words: list[str] = []
        self.current = ""
        self.begun = False
        self.depth = 0
        self.found: set[str] = set()
        self.missing: set[str] = set()

    # -- word collection: what comes from an unquoted variable is split at blanks -----------------------------------

    def add(self, text: str) -> None:
        self.current += text
        self.begun = True

    def split(self) -> None:
        if self.begun:
            self.words.append(self.current)
        self.current, self.begun = "", False

    def peek(self) -> str:
        return self.text[self.position] if self.position < len(self.text) else ""

    def next(self) -> str:
        character = self.peek()
        self.position += 1
        return character

    def run(self, stop: str = "") -> str:
        """Expand up to an unquoted character of `stop` (taken), or the end; the text."""
        out = ""
        self.depth += 1
        if self.depth > 64:
            raise ExpansionError("too many nested substitutions")
        while (character := self.peek()) != "":
            if stop and character in stop:
                self.depth -= 1
                return out
            if character == "'" and self.quotes:
                piece = self.single()
            elif character == '"' and self.quotes:
                piece = self.double()
            elif character == "$":
                piece = self.dollar()
                out += piece
                if self.depth == 1:
                    parts = re.split(r"(\s+)", piece)
                    for part in parts:
                        if part and part.isspace():
                            self.split()
                        elif part:
                            self.add(part)
                continue
            elif character == self.escape:
                self.next()
                following = self.next()
                piece = following or self.escape
            else:
                piece = self.next()
                if self.depth == 1 and piece.isspace():
                    self.split()
                    out += piece
                    continue
            out += piece
            if self.depth == 1:
                self.add(piece)
        self.depth -= 1
        if stop:
            raise ExpansionError("syntax error: missing '}'")
        return out

    def single(self) -> str:
        self.next()
        out = ""
        while (character := self.next()) != "":
            if character == "'":
                return out
            out += character
        raise ExpansionError("unexpected end of statement while looking for matching single-quote")

    def double(self) -> str:
        self.next()
        out = ""
        while (character := self.peek()) != "":
            if character == '"':
                self.next()
                return out
            if character == "$":
                out += self.dollar()
                continue
            self.next()
            if character == self.escape:
                following = self.next()
                if following == "":
                    raise ExpansionError("unexpected end of statement while looking for matching double-quote")
                # Inside double quotes the escape is special before these three only.
                if following not in ('"', "$", self.escape):
                    out += self.escape
                out += following
                continue
            out += character
        raise ExpansionError("unexpected end of statement while looking for matching double-quote")

    # -- variables -------------------------------------------------------------------------------------------------

    def name(self) -> str:
        if self.peek() in _SPECIAL and self.peek():
            return self.next()
        start = self.position
        while self.peek() and (self.peek().isalnum() or self.peek() == "_") and self.peek().isascii():
            self.position += 1
        return self.text[start : self.position]

    def value(self, name: str) -> str | None:
        found = self.variables.get(name)
        (self.missing if found is None else self.found).add(name)
        return found

    def dollar(self) -> str:
        self.next()
        if self.peek() != "{":
            name = self.name()
            return (self.value(name) or "") if name else "$"
        self.next()
        if self.peek() == "}":
            raise ExpansionError("syntax error: bad substitution")
        name = self.name()
        if not name:
            raise ExpansionError("syntax error: bad substitution")
        character = self.next()
        if character == "}":
            return self.value(name) or ""
        if character == ":":
            modifier = self.next()
            if modifier not in ("-", "+", "?"):
                raise ExpansionError(f"unsupported modifier ({modifier or ':'}) in substitution")
            return self.default(name, modifier, empty_counts=False)
        if character in ("-", "+", "?"):
            return self.default(name, character, empty_counts=True)
        if character in ("#", "%"):
            greedy = self.peek() == character
            if greedy:
                self.next()
            pattern = self.pattern("}")
            self.next()
            return _strip(self.value(name) or "", pattern, prefix=character == "#", greedy=greedy)
        if character == "/":
            every = self.peek() == "/"
            if every:
                self.next()
            pattern = self.pattern("/")
            self.next()
            replacement = self.run("}")
            self.next()
            compiled = re.compile(_glob(pattern, lazy=False), re.DOTALL)
            return compiled.sub(lambda _: replacement, self.value(name) or "", count=0 if every else 1)
        if character == "":
            raise ExpansionError("syntax error: missing '}'")
        raise ExpansionError(f"unsupported modifier ({character}) in substitution")

    def default(self, name: str, modifier: str, *, empty_counts: bool) -> str:
        word = self.run("}")
        self.next()
        value = self.variables.get(name)
        if value is not None:
            self.found.add(name)
        there = value is not None and (empty_counts or value != "")
        if modifier == "-":
            return value if there and value is not None else word
        if modifier == "+":
            return word if there else ""
        if not there:
            message = word or ("is not allowed to be unset" if empty_counts else "is not allowed to be empty")
            raise ExpansionError(f"{name}: {message}")
        return value or ""

    def pattern(self, stop: str) -> str:
        """A glob pattern up to `stop`, escapes kept for the matcher, variables expanded."""
        out = ""
        while (character := self.peek()) != "":
            if character == stop:
                return out
            if character == "$":
                out += re.sub(r"([*?\\\[])", r"\\\1", self.dollar())
                continue
            self.next()
            if character == self.escape:
                out += "\\" + self.next()
            else:
                out += character
        raise ExpansionError("syntax error: missing '}'")


def _glob(pattern: str, *, lazy: bool) -> str:
    """A shell pattern (* and ?, escapes) as a regular expression."""
    out = ""
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "*":
            out += ".*?" if lazy else ".*"
        elif character == "?":
            out += "."
        elif character == "\\" and position + 1 < len(pattern):
            position += 1
            out += re.escape(pattern[position])
        else:
            out += re.escape(character)
        position += 1
    return out


def _strip(value: str, pattern: str, *, prefix: bool, greedy: bool) -> str:
    if prefix:
        found = re.compile(_glob(pattern, lazy=not greedy), re.DOTALL).match(value)
        return value[found.end() :] if found else value
    compiled = re.compile(_glob(pattern, lazy=False), re.DOTALL)
    starts = range(len(value) + 1) if greedy else range(len(value), -1, -1)
    for start in starts:
        if compiled.fullmatch(value, start):
            return value[:start]
    return value


def expand(text: str, variables: Mapping[str, str], escape: str = "\\", *, raw: bool = False) -> str:
    """One word expanded; quotes and escapes removed. raw: quotes are characters like others, as in here-documents.

    Raises ExpansionError.
    """
    return _Expander(text, variables, escape, quotes=not raw).run()


def names(text: str, variables: Mapping[str, str], escape: str = "\\") -> tuple[str, set[str], set[str]]:
    """One word expanded, the variables in it that have a value, and those that have none. Raises ExpansionError."""
    expander = _Expander(text, variables, escape)
    return expander.run(), expander.found, expander.missing


def expand_words(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """A text expanded and split at unquoted blanks (EXPOSE, VOLUME). Raises ExpansionError."""
    expander = _Expander(text, variables, escape)
    expander.run()
    expander.split()
    return expander.words
