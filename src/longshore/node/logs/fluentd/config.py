"""The configuration language: text to a tree of elements, every word with its file and line.

Source: docs.fluentd.org "Config file syntax". Of embedded Ruby only ENV and the host's name are understood.
"""

from __future__ import annotations

import glob
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

import orjson

_OPEN = re.compile(r"<([A-Za-z_@][\w.-]*)\s*([^>]*?)\s*>\s*(?:#.*)?$")
_CLOSE = re.compile(r"</([A-Za-z_@][\w.-]*)>\s*(?:#.*)?$")
_RUBY = re.compile(r"#\{(.*?)\}", re.DOTALL)
_ENV = re.compile(
    r"""ENV(?:\[(["'])(\w+)\1\]|\.fetch\((["'])(\w+)\3\s*(?:,\s*(["'])(.*?)\5\s*)?\))\s*(?:\|\|\s*(["'])(.*?)\7)?"""
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "b": "\b", "0": "\0"}
MOST_INCLUDES = 100


class ConfigError(ValueError):
    """A configuration that cannot be obeyed; the message tells file and line."""

    def __init__(self, file: str, line: int, message: str) -> None:
        super().__init__(f"{message} at {file} line {line}")


@dataclass(slots=True)
class Value:
    """A parameter's text, and the line that it stands in."""

    text: str
    line: int


@dataclass(slots=True)
class Element:
    """A directive or section: `<name argument>` with its parameters and sections."""

    name: str
    argument: str
    file: str
    line: int
    parameters: dict[str, Value] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)

    def error(self, message: str, parameter: str = "") -> ConfigError:
        value = self.parameters.get(parameter)
        return ConfigError(self.file, value.line if value else self.line, message)

    def text(self, name: str, default: str = "") -> str:
        value = self.parameters.get(name)
        return value.text if value else default

    def all(self, name: str) -> list[Element]:
        return [child for child in self.children if child.name == name]

    def one(self, name: str) -> Element | None:
        found = self.all(name)
        if len(found) > 1:
            raise found[1].error(f"'<{name}>' section is allowed once")
        return found[0] if found else None


def load(path: Path) -> Element:
    """A file and what it includes. Raises ConfigError, OSError."""
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse(text: str, file: str = "fluent.conf") -> Element:
    """The root element of a configuration's text. Raises ConfigError."""
    root = Element("ROOT", "", file, 1)
    _Reader(text, file, [0]).read(root)
    return root


class _Reader:
    def __init__(self, text: str, file: str, includes: list[int]) -> None:
        self._lines = text.split("\n")
        self._file = file
        self._at = 0
        self._includes = includes

    def read(self, root: Element) -> None:
        stack = [root]
        while self._at < len(self._lines):
            line = self._lines[self._at].strip()
            self._at += 1
            if not line or line.startswith("#"):
                continue
            if line.startswith("</"):
                match = _CLOSE.fullmatch(line)
                if match is None or len(stack) == 1 or stack[-1].name != match[1]:
                    raise self._error(f"unmatched end tag {line}")
                stack.pop()
            elif line.startswith("<"):
                match = _OPEN.fullmatch(line)
                if match is None:
                    raise self._error(f"invalid section {line[:60]!r}")
                element = Element(match[1], match[2], self._file, self._at)
                stack[-1].children.append(element)
                stack.append(element)
            else:
                self._parameter(stack[-1], line)
        if len(stack) > 1:
            raise stack[-1].error(f"expected end tag '</{stack[-1].name}>' but got end of file")

    def _error(self, message: str) -> ConfigError:
        return ConfigError(self._file, self._at, message)

    def _parameter(self, element: Element, line: str) -> None:
        name, _, rest = line.partition(" ") if " " in line else line.partition("\t")
        number = self._at
        if name == "@include":
            self._include(element, rest.strip().strip("\"'"))
            return
        if not re.fullmatch(r"@?[\w.${}\[\]\"'/-]+", name):
            raise self._error(f"invalid parameter name {name[:60]!r}")
        element.parameters[name] = Value(self._value(rest.strip()), number)

    def _value(self, text: str) -> str:
        if text.startswith(('"', "'")):
            return self._quoted(text)
        if text.startswith(("[", "{")):
            whole, at = text, self._at
            while True:
                try:
                    orjson.loads(whole)
                except orjson.JSONDecodeError:
                    if at >= len(self._lines) or at - self._at > 200:
                        break
                    whole += "\n" + re.sub(r"(^|\s)#.*$", "", self._lines[at])
                    at += 1
                    continue
                self._at = at
                return whole
        return re.sub(r"\s+#.*$", "", text).strip()

    def _quoted(self, text: str) -> str:
        quote, at, parts = text[0], 1, []
        while True:
            if at >= len(text):
                if self._at >= len(self._lines):
                    raise self._error("a quoted text does not end")
                text += "\n" + self._lines[self._at]
                self._at += 1
                continue
            char = text[at]
            if char == quote:
                break
            if quote == '"' and text.startswith("#{", at) and (end := text.find("}", at)) > 0:
                parts.append(self._ruby(text[at : end + 1]))
                at = end + 1
                continue
            if char == "\\" and at + 1 < len(text):
                at += 1
                char = text[at]
                if quote == '"':
                    char = _ESCAPES.get(char, char)
                elif char not in "'\\":
                    char = "\\" + char
            parts.append(char)
            at += 1
        rest = text[at + 1 :].strip()
        if rest and not rest.startswith("#"):
            raise self._error(f"unexpected text after a quoted value: {rest[:40]!r}")
        return "".join(parts)

    def _ruby(self, text: str) -> str:
        inner = text[2:-1].strip()
        if inner in ("Socket.gethostname", "hostname"):
            return socket.gethostname()
        if inner == "worker_id":
            return os.environ.get("SERVERENGINE_WORKER_ID", "0")
        match = _ENV.fullmatch(inner)
        if match is None:
            raise self._error(f"embedded Ruby is not supported: {text[:60]}")
        found = os.environ.get(match[2] or match[4])
        default = match[6] if match[6] is not None else match[8]
        if found is None and default is None and match[4]:
            raise self._error(f"key not found: {match[4]!r}")
        return found if found is not None else (default or "")

    def _include(self, element: Element, pattern: str) -> None:
        if "://" in pattern:
            raise self._error(f"include of {pattern!r} is not supported: files only")
        folder = os.path.dirname(os.path.abspath(self._file))
        path = os.path.join(folder, pattern)
        found = sorted(glob.glob(path))
        if not found and not glob.has_magic(path):
            raise self._error(f"include file not found: {pattern}")
        for name in found:
            self._includes[0] += 1
            if self._includes[0] > MOST_INCLUDES:
                raise self._error("too many includes")
            text = Path(name).read_text(encoding="utf-8", errors="replace")
            _Reader(text, name, self._includes).read(element)
