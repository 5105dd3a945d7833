"""The part of Go's text/template that line_format and label_format are used with: fields, pipes of functions."""

from __future__ import annotations

import re
import time as clock
from collections.abc import Callable

from longshore.node.logs.logql.ast import LogQLError

_ACTION = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
_WORD = re.compile(r'\s*(?:"((?:\\.|[^"\\])*)"|`([^`]*)`|(\.[A-Za-z_]\w*)|(-?\d+)|([A-Za-z_]\w*)|(\|))')

#: function name -> how many arguments stand before the piped value, and what it does (arguments first, value last).
_FUNCTIONS: dict[str, tuple[int, Callable[..., str]]] = {
    "ToLower": (0, str.lower),
    "lower": (0, str.lower),
    "ToUpper": (0, str.upper),
    "upper": (0, str.upper),
    "title": (0, str.title),
    "trim": (0, str.strip),
    "TrimSpace": (0, str.strip),
    "trimPrefix": (1, lambda prefix, text: text.removeprefix(prefix)),
    "trimSuffix": (1, lambda suffix, text: text.removesuffix(suffix)),
    "replace": (2, lambda old, new, text: text.replace(old, new)),
    "trunc": (1, lambda size, text: text[: int(size)] if int(size) >= 0 else text[int(size) :]),
    "substr": (2, lambda start, end, text: text[int(start) : int(end)]),
    "default": (1, lambda other, text: text or other),
    "quote": (0, lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    "indent": (1, lambda size, text: "\n".join(" " * int(size) + line for line in text.split("\n"))),
    "repeat": (1, lambda times, text: text * min(int(times), 1000)),
    "regexReplaceAll": (2, lambda pattern, text, new: re.sub(pattern, new, text)),
}


class Template:
    """A template read once, rendered for every line. Raises LogQLError for what it does not know."""

    def __init__(self, text: str) -> None:
        self._parts: list[str | list[list[tuple[str, str]]]] = []
        at = 0
        for action in _ACTION.finditer(text):
            if action.start() > at:
                self._parts.append(text[at : action.start()])
            self._parts.append(self._pipe(action[1], text))
            at = action.end()
        if at < len(text):
            self._parts.append(text[at:])

    @staticmethod
    def _pipe(source: str, whole: str) -> list[list[tuple[str, str]]]:
        commands: list[list[tuple[str, str]]] = [[]]
        at = 0
        source = source.strip()
        while at < len(source):
            match = _WORD.match(source, at)
            if match is None:
                raise LogQLError(f"parse error : invalid line template: {whole}: unexpected {source[at:]!r}")
            quoted, raw, field_name, digits, name, bar = match.groups()
            if bar:
                commands.append([])
            elif quoted is not None:
                commands[-1].append(("text", re.sub(r"\\(.)", r"\1", quoted)))
            elif raw is not None:
                commands[-1].append(("text", raw))
            elif field_name:
                commands[-1].append(("field", field_name[1:]))
            elif digits:
                commands[-1].append(("text", digits))
            else:
                if name not in _FUNCTIONS and name not in ("__line__", "__timestamp__"):
                    raise LogQLError(
                        f'parse error : invalid line template: template: line:1: function "{name}" not defined'
                    )
                commands[-1].append(("function", name or ""))
            at = match.end()
        return commands

    def render(self, line: str, labels: dict[str, str], time: int) -> str:
        """The text for one line; an unknown field is empty."""
        return "".join(part if isinstance(part, str) else self._run(part, line, labels, time) for part in self._parts)

    @staticmethod
    def _run(commands: list[list[tuple[str, str]]], line: str, labels: dict[str, str], time: int) -> str:
        value: str | None = None
        for command in commands:
            arguments: list[str] = []
            function = ""
            for kind, text in command:
                if kind == "field":
                    arguments.append(labels.get(text, ""))
                elif kind == "text":
                    arguments.append(text)
                elif text == "__line__":
                    arguments.append(line)
                elif text == "__timestamp__":
                    arguments.append(
                        clock.strftime("%Y-%m-%dT%H:%M:%S", clock.gmtime(time // 10**9)) + f".{time % 10**9:09d}Z"
                    )
                else:
                    function = text
            if value is not None:
                arguments.append(value)
            if not function:
                value = arguments[0] if arguments else ""
                continue
            _, call = _FUNCTIONS[function]
            try:
                value = call(*arguments)
            except (TypeError, ValueError, re.error):
                value = ""
        return value or ""
