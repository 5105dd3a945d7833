"""Nodes into stages and instructions with their arguments checked. Pure.

Source of rules and texts: BuildKit frontend/dockerfile/instructions, which dockerd's classic builder uses as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from longshore.engine.build.dockerfile import (
    Dockerfile,
    DockerfileError,
    Heredoc,
    Node,
    json_words,
    name_values,
    plain_words,
)

COMMANDS = (
    "add", "arg", "cmd", "copy", "entrypoint", "env", "expose", "from", "healthcheck", "label", "maintainer",
    "onbuild", "run", "shell", "stopsignal", "user", "volume", "workdir",
)  # fmt: skip
_FLAGS: dict[str, dict[str, str]] = {
    # name -> kind: "text", "bool" or "list" (may be given several times)
    "add": {
        "chown": "text", "chmod": "text", "link": "bool", "keep-git-dir": "bool", "checksum": "text",
        "exclude": "list", "unpack": "bool",
    },
    "copy": {"from": "text", "chown": "text", "chmod": "text", "link": "bool", "parents": "bool", "exclude": "list"},
    "run": {"mount": "list", "network": "text", "security": "text", "device": "list"},
    "from": {"platform": "text"},
    "healthcheck": {
        "interval": "text", "timeout": "text", "start-period": "text", "start-interval": "text", "retries": "text",
    },
}  # fmt: skip
# Dockerfile versions that only BuildKit builds.
BUILDKIT_FLAGS = {
    "link",
    "parents",
    "exclude",
    "keep-git-dir",
    "checksum",
    "unpack",
    "mount",
    "network",
    "security",
    "device",
}
_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


@dataclass(slots=True)
class Instruction:
    """One instruction. words: its arguments, not expanded; shell: they are a shell's line (words[0] is the whole).

    pairs: NAME and value (ENV, LABEL, ARG; an ARG's value None where it has none). flags, lists: its options.
    inner: ONBUILD's instruction text. health: HEALTHCHECK's settings.
    """

    command: str
    node: Node
    words: list[str] = field(default_factory=list)
    shell: bool = False
    pairs: list[tuple[str, str | None]] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    heredocs: list[Heredoc] = field(default_factory=list)
    inner: str = ""
    health: dict[str, object] = field(default_factory=dict)

    @property
    def original(self) -> str:
        return self.node.original

    @property
    def line(self) -> int:
        return self.node.start


@dataclass(slots=True)
class Stage:
    """One FROM and what follows. name: its AS name in lower case, "" without; base: as written."""

    base: str
    name: str
    node: Node
    platform: str = ""
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(slots=True)
class Program:
    """A checked Dockerfile: ARGs before the first FROM, and the stages."""

    file: Dockerfile
    arguments: list[Instruction]
    stages: list[Stage]

    def stage(self, name: str) -> int | None:
        """A stage's index by name (the last of that name), or by number."""
        for index in range(len(self.stages) - 1, -1, -1):
            if self.stages[index].name and self.stages[index].name == name.lower():
                return index
        if name.isdigit() and int(name) < len(self.stages):
            return int(name)
        return None


def _distance(a: str, b: str) -> int:
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


def nearest(word: str, options: list[str]) -> str:
    """The option that is less than three edits away and nearest (case counts), "" where there is none."""
    best, least = "", 3
    for option in options:
        if option == word:
            return ""
        distance = _distance(word, option)
        if distance < least:
            best, least = option, distance
    return best


def suggest(word: str, options: list[str]) -> str:
    """ " (did you mean x?)" for the option nearest to a word, whatever its case, or "" where there is none."""
    best = nearest(word.lower(), [option.lower() for option in options])
    found = next((option for option in options if option.lower() == best), "")
    return f" (did you mean {found}?)" if best else ""


def duration(text: str) -> int:
    """A Go duration ("1m30s") in nanoseconds. Raises ValueError with Go's text."""
    if text == "0":
        return 0
    body = text[1:] if text[:1] in "+-" else text
    position = 0
    total = 0.0
    while position < len(body):
        found = _DURATION.match(body, position)
        if not found:
            break
        total += float(found[1]) * _UNITS[found[2]]
        position = found.end()
    if not body or position != len(body):
        if re.fullmatch(r"[+-]?\d+(\.\d*)?", text):
            raise ValueError(f'time: missing unit in duration "{text}"')
        raise ValueError(f'time: invalid duration "{text}"')
    return -int(total) if text.startswith("-") else int(total)


def parse(file: Dockerfile) -> Program:
    """Check a parsed Dockerfile. Raises DockerfileError; its message has "dockerfile parse error on line N:" where upstream's has."""
    arguments: list[Instruction] = []
    stages: list[Stage] = []
    for node in file.nodes:
        try:
            if node.command == "from":
                stages.append(_stage(node, file.escape))
                continue
            instruction = parse_instruction(node, file.escape)
        except DockerfileError as error:
            if error.line:
                raise
            raise DockerfileError(
                f"dockerfile parse error on line {node.start}: {error.message}", node.start, node.end
            ) from None
        if not stages:
            if instruction.command != "arg":
                raise DockerfileError("no build stage in current context", node.start, node.end)
            arguments.append(instruction)
        else:
            stages[-1].instructions.append(instruction)
    if not stages:
        raise DockerfileError("dockerfile contains no stages to build")
    return Program(file, arguments, stages)


def _stage(node: Node, escape: str) -> Stage:
    flags, _ = _options(node)
    words = plain_words(node.rest)
    if len(words) not in (1, 3):
        raise DockerfileError("FROM requires either one or three arguments")
    name = ""
    if len(words) == 3:
        if words[1].lower() != "as":
            raise DockerfileError("FROM requires either one or three arguments")
        name = words[2].lower()
        if not _STAGE_NAME.fullmatch(name):
            raise DockerfileError(
                f'invalid name for build stage: "{words[2]}", name can\'t start with a number or contain symbols'
            )
    return Stage(words[0], name, node, flags.get("platform", ""))


def _options(node: Node) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The node's flags, checked against what its command knows. Raises DockerfileError."""
    known = _FLAGS.get(node.command, {})
    single: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for flag in node.flags:
        name, equals, value = flag.removeprefix("--").partition("=")
        kind = known.get(name)
        if kind is None:
            raise DockerfileError(f"unknown flag: --{name}{suggest(name, list(known))}")
        if kind == "list":
            if not equals:
                raise DockerfileError(f"missing a value on flag: --{name}")
            lists.setdefault(name, []).append(value)
            continue
        if name in single:
            raise DockerfileError(f"duplicate flag specified: {name}")
        if kind == "bool":
            value = value.lower() if equals else "true"
            if value not in ("true", "false"):
                raise DockerfileError(f"expecting boolean value for flag {name}, not: {value}")
        elif not equals:
            raise DockerfileError(f"missing a value on flag: --{name}")
        single[name] = value
    return single, lists


def parse_instruction(node: Node, escape: str = "\\") -> Instruction:
    """One instruction other than FROM. Raises DockerfileError (line 0: the caller adds where)."""
    command = node.command
    upper = command.upper()
    if command not in COMMANDS:
        options = [name.upper() for name in COMMANDS]
        raise DockerfileError(f"unknown instruction: {node.name}{suggest(node.name, options)}")
    if node.flags and command not in _FLAGS:
        name = node.flags[0].removeprefix("--").partition("=")[0]
        raise DockerfileError(f"unknown flag: --{name}")
    flags, lists = _options(node)
    made = Instruction(command, node, flags=flags, lists=lists, heredocs=node.heredocs)
    rest = node.rest
    if command in ("env", "label"):
        try:
            pairs = name_values(rest, upper, escape)
        except DockerfileError as error:
            # These come from the parser proper, before instructions are looked at.
            raise DockerfileError(f"failed to parse Dockerfile: {error.message}", node.start, node.end) from None
        if not pairs:
            raise DockerfileError(f"{upper} requires at least one argument")
        if any(not name for name, _ in pairs):
            raise DockerfileError(f"{upper} names can not be blank")
        made.pairs = list(pairs)
    elif command == "arg":
        _argument(made, rest, escape)
    elif command in ("add", "copy"):
        words = json_words(rest)
        made.words = words if words is not None else plain_words(rest)
        _check_copy(made)
    elif command in ("cmd", "entrypoint", "run"):
        _command(made, rest)
    elif command == "shell":
        words = json_words(rest)
        if not rest or words == []:
            raise DockerfileError("SHELL requires at least one argument")
        if words is None:
            raise DockerfileError("SHELL requires the arguments to be in JSON form")
        made.words = words
    elif command in ("workdir", "user", "stopsignal", "maintainer"):
        if not rest:
            raise DockerfileError(f"{upper} requires exactly one argument")
        made.words = [rest]
    elif command == "expose":
        made.words = plain_words(rest)
        if not made.words:
            raise DockerfileError("EXPOSE requires at least one argument")
    elif command == "volume":
        words = json_words(rest)
        made.words = words if words is not None else plain_words(rest)
        if not made.words:
            raise DockerfileError("VOLUME requires at least one argument")
        if any(not word.strip() for word in made.words):
            raise DockerfileError("VOLUME specified can not be an empty string")
    elif command == "healthcheck":
        _healthcheck(made, rest)
    elif command == "onbuild":
        _onbuild(made, rest, escape)
    return made


def _argument(made: Instruction, rest: str, escape: str) -> None:
    from longshore.engine.build.dockerfile import shell_words

    words = shell_words(rest, escape)
    if not words:
        raise DockerfileError("ARG requires at least one argument")
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise DockerfileError("ARG names can not be blank")
        made.pairs.append((name, value if equals else None))


def _check_copy(made: Instruction) -> None:
    upper = made.command.upper()
    words = made.words
    if len(words) == 1:
        raise DockerfileError(
            f"{upper} requires at least two arguments, but only one was provided. Destination could not be determined"
        )
    if not words:
        raise DockerfileError(f"{upper} requires at least two arguments")


def _command(made: Instruction, rest: str) -> None:
    words = json_words(rest)
    if words is not None:
        made.words = words
    else:
        made.words, made.shell = ([rest] if rest else []), True
    if made.command == "run" and not rest:
        raise DockerfileError("RUN requires at least one argument")


def _healthcheck(made: Instruction, rest: str) -> None:
    words = rest.split(maxsplit=1)
    if not words:
        raise DockerfileError("HEALTHCHECK requires at least one argument")
    kind, tail = words[0].upper(), words[1].strip() if len(words) > 1 else ""
    if kind == "NONE":
        if tail:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        made.health = {"Test": ["NONE"]}
        return
    if kind != "CMD":
        raise DockerfileError(f'Unknown type "{kind}" in HEALTHCHECK (try CMD)')
    command = json_words(tail)
    if not tail or command == []:
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    health: dict[str, object] = {"Test": ["CMD", *command] if command is not None else ["CMD-SHELL", tail]}
    for flag, key in (
        ("interval", "Interval"), ("timeout", "Timeout"), ("start-period", "StartPeriod"), ("start-interval", "StartInterval"),
    ):  # fmt: skip
        text = made.flags.get(flag)
        if text is None:
            continue
        try:
            value = duration(text)
        except ValueError as error:
            raise DockerfileError(str(error)) from None
        if value < 0:
            raise DockerfileError(f'interval "{flag}" cannot be negative')
        if 0 < value < 10**6:
            raise DockerfileError(f'Interval "{flag}" cannot be less than 1ms')
        health[key] = value
    text = made.flags.get("retries")
    if text is not None:
        if not re.fullmatch(r"[+-]?\d+", text):
            raise DockerfileError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
        if int(text) < 0:
            raise DockerfileError(f"--retries cannot be negative ({text})")
        health["Retries"] = int(text)
    made.health = health


def _onbuild(made: Instruction, rest: str, escape: str) -> None:
    words = rest.split(maxsplit=1)
    if not words:
        raise DockerfileError("ONBUILD requires at least one argument")
    trigger = words[0].upper()
    if trigger == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise DockerfileError(f"{trigger} isn't allowed as an ONBUILD trigger")
    # Its here-documents belong to the trigger, which is read again where it acts.
    made.inner = rest + "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in made.heredocs)
