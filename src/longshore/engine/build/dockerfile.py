"""Dockerfile text into nodes: directives, continued lines, here-documents, flags, JSON forms. Pure; no I/O.

Source: Dockerfile reference; grammar and error texts as BuildKit's frontend/dockerfile/parser (what people see).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

LIMIT = 4 << 20
_DIRECTIVES = ("syntax", "escape", "check")
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]*)")
_HEREDOC_COMMANDS = {"add", "copy", "run"}
_TOKEN_SPACE = re.compile(r"[ \t\v\f\r]+")


class DockerfileError(ValueError):
    """What is wrong with a Dockerfile. line: its first line, counted from 1 (0: the file as a whole)."""

    def __init__(self, message: str, line: int = 0, end: int = 0) -> None:
        super().__init__(message)
        self.message, self.line, self.end = message, line, end or line


@dataclass(slots=True)
class Heredoc:
    """One here-document. expand: variables in it are expanded (its word is not quoted); name: the word; fd: as given."""

    name: str
    content: str
    expand: bool = True
    chomp: bool = False
    fd: int = 0


@dataclass(slots=True)
class Node:
    """One instruction. command in lower case; text: all after it, flags included; original: the joined line.

    flags: "--from=x" as written. rest: the text after the flags. start, end: its lines.
    """

    command: str
    original: str
    rest: str
    start: int
    end: int
    flags: list[str] = field(default_factory=list)
    heredocs: list[Heredoc] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    name: str = ""  # the command as it was written


@dataclass(slots=True)
class Dockerfile:
    """A parsed file: its instructions, its escape character and its directives."""

    nodes: list[Node]
    escape: str = "\\"
    directives: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)  # last lines of instructions with empty lines inside


def _directives(lines: list[str]) -> dict[str, str]:
    """The parser directives at the head of the file. Raises DockerfileError."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _DIRECTIVE.fullmatch(line.strip())
        if not match:
            if number == 1 and line.startswith("#!"):
                continue
            break
        key = match[1].lower()
        if key not in _DIRECTIVES:
            # The first comment that is no directive of ours ends their part.
            break
        if key in found:
            raise DockerfileError(f"only one {key} parser directive can be used", number)
        found[key] = match[2]
    return found


def syntax(data: bytes) -> tuple[str, int]:
    """The frontend that a file asks for ("# syntax=IMAGE", with what may follow), and its line; ("", 0) without.

    Raises DockerfileError.
    """
    lines = data[:LIMIT].decode("utf-8", "replace").removeprefix("\ufeff").split("\n")
    for number, (name, value) in enumerate(_directives(lines).items(), 1):
        if name == "syntax":
            return value, number + lines[0].startswith("#!")
    return "", 0


def parse(data: bytes) -> Dockerfile:
    """Parse a Dockerfile. Raises DockerfileError with BuildKit's texts."""
    if len(data) > LIMIT:
        raise DockerfileError("dockerfile exceeds the limit of 4 MiB")
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines]
    directives = _directives(lines)
    escape = directives.get("escape", "\\")
    if escape not in ("\\", "`"):
        raise DockerfileError(f"invalid ESCAPE '{escape}'. Must be ` or \\", 1)
    token = re.escape(escape)
    # A doubled escape at the end of a line is the character itself.
    continued = re.compile(rf"^{token}[ \t]*$|([^{token}]){token}[ \t]*$")
    nodes: list[Node] = []
    comments: list[str] = []
    gaps: list[int] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        if line.lstrip().startswith("#"):
            text = line.lstrip()[1:].strip()
            position += 1
            if not text:
                comments = []
            elif position > len(directives):
                comments.append(text)
            continue
        if not line.strip():
            comments = []
            position += 1
            continue
        start = position + 1
        line = line.lstrip()
        joined = ""
        gap = False
        while True:
            more = continued.search(line)
            if not more:
                joined += line
                position += 1
                break
            joined += continued.sub(lambda match: match[1] or "", line)
            position += 1
            # Comments and empty lines inside a continued line are left out.
            while position < len(lines) and (lines[position].lstrip().startswith("#") or not lines[position].strip()):
                gap = gap or not lines[position].strip()
                position += 1
            if position >= len(lines):
                break
            line = lines[position]
        node = _node(joined, start, position, escape)
        if gap:
            gaps.append(position)
        node.comments, comments = comments, []
        if node.command in _HEREDOC_COMMANDS or (
            node.command == "onbuild" and node.rest.split(" ", 1)[0].lower() in _HEREDOC_COMMANDS
        ):
            for heredoc in _heredocs(node.rest, escape):
                position = _read_heredoc(heredoc, lines, position, node)
                node.heredocs.append(heredoc)
            node.end = position
        nodes.append(node)
    if not nodes:
        raise DockerfileError("file with no instructions")
    return Dockerfile(nodes, escape, directives, lines, gaps)


def _node(joined: str, start: int, end: int, escape: str) -> Node:
    original = joined.strip()
    parts = _TOKEN_SPACE.split(original, maxsplit=1)
    rest = parts[1].strip() if len(parts) > 1 else ""
    flags, rest = split_flags(rest, escape, start)
    return Node(parts[0].lower(), original, rest, start, end, flags, name=parts[0])


def split_flags(text: str, escape: str = "\\", line: int = 0) -> tuple[list[str], str]:
    """The leading "--name=value" words (quotes and escapes respected) and what follows them."""
    flags: list[str] = []
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if not text.startswith("--", position):
            return flags, text[position:]
        word = ""
        quote = ""
        while position < len(text):
            character = text[position]
            if quote:
                if character == quote:
                    quote = ""
                elif character == escape and quote == '"' and position + 1 < len(text):
                    position += 1
                    word += text[position]
                else:
                    word += character
            elif character.isspace():
                break
            elif character in "'\"":
                quote = character
            elif character == escape:
                if position + 1 >= len(text):
                    word += character
                else:
                    position += 1
                    word += text[position]
            else:
                word += character
            position += 1
        if word == "--":
            return flags, text[position:].lstrip()
        flags.append(word)


def _heredocs(text: str, escape: str) -> list[Heredoc]:
    found: list[Heredoc] = []
    for word in shell_words(text, escape):
        match = _HEREDOC.fullmatch(word)
        if not match or not match[3]:
            continue
        name = match[3]
        bare = re.sub(r"""['"]""", "", name)
        if bare != name and not re.fullmatch(r"""(?:'[^']*'|"[^"]*"|[^'"\s])+""", name):
            continue
        if not bare or (re.search(r"\s", bare) and bare == name):
            continue
        found.append(Heredoc(bare, "", bare == name, bool(match[2]), int(match[1] or 0)))
    return found


def shell_words(text: str, escape: str = "\\") -> list[str]:
    """Words of a shell-like line with their quotes kept."""
    words: list[str] = []
    word = ""
    quote = ""
    position = 0
    while position < len(text):
        character = text[position]
        if quote:
            word += character
            if character == quote:
                quote = ""
            elif character == escape and quote == '"' and position + 1 < len(text):
                position += 1
                word += text[position]
        elif character.isspace():
            if word:
                words.append(word)
            word = ""
        else:
            word += character
            if character in "'\"":
                quote = character
            elif character == escape and position + 1 < len(text):
                position += 1
                word += text[position]
        position += 1
    if word:
        words.append(word)
    return words


def _read_heredoc(heredoc: Heredoc, lines: list[str], position: int, node: Node) -> int:
    content: list[str] = []
    while position < len(lines):
        line = lines[position]
        position += 1
        bare = line.lstrip("\t") if heredoc.chomp else line
        if bare == heredoc.name:
            heredoc.content = "".join(f"{line}\n" for line in content)
            return position
        content.append(bare)
    raise DockerfileError("unterminated heredoc", node.start, len(lines))


def json_words(text: str) -> list[str] | None:
    """The words of the JSON form ["a", "b"]; None where the text is no such array."""
    if not text.lstrip().startswith("["):
        return None
    try:
        loaded = json.loads(text)
    except ValueError:
        return None
    if not isinstance(loaded, list) or not all(isinstance(word, str) for word in loaded):
        return None
    return loaded


def name_values(text: str, command: str, escape: str = "\\", line: int = 0) -> list[tuple[str, str]]:
    """The pairs of ENV and LABEL, values still quoted; the old form "NAME the rest" too. Raises DockerfileError."""
    words = _words(text, escape)
    if not words:
        return []
    if "=" not in words[0]:
        parts = _TOKEN_SPACE.split(text, maxsplit=1)
        if len(parts) < 2:
            raise DockerfileError(f"{command} must have two arguments")
        return [(parts[0], parts[1])]
    pairs: list[tuple[str, str]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise DockerfileError(f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value')
        pairs.append((name, value))
    return pairs


def _words(text: str, escape: str) -> list[str]:
    """Words split at unquoted blanks, quotes and escapes kept (BuildKit's parseWords)."""
    words: list[str] = []
    word = ""
    quote = ""
    blank = False
    position = 0
    while position < len(text):
        character = text[position]
        if quote:
            word += character
            if character == escape and position + 1 < len(text) and quote == '"':
                position += 1
                word += text[position]
            elif character == quote:
                quote = ""
        elif character.isspace():
            if word or blank:
                words.append(word)
                word, blank = "", False
        else:
            if character in "'\"":
                quote, blank = character, True
            word += character
            if character == escape and position + 1 < len(text):
                position += 1
                word += text[position]
        position += 1
    if word or blank:
        words.append(word)
    return words


def plain_words(text: str) -> list[str]:
    """Words split at blanks, no quoting (FROM, COPY in its plain form, EXPOSE)."""
    return [word for word in _TOKEN_SPACE.split(text.strip()) if word]
