"""Answers about a Dockerfile without building it: build checks, targets, outline.

Source of the documents and their text form: BuildKit frontend/subrequests.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build import shell
from longshore.engine.build.checks import Warning
from longshore.engine.build.instructions import Instruction, Program

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.frontend import SolveError

_DESCRIPTIONS = [
    ("frontend.outline", "List all parameters current build target supports", [("target", "Target build stage")]),
    ("frontend.targets", "List all targets current build supports", []),
    ("frontend.lint", "Lint a Dockerfile", []),
    ("frontend.subrequests.describe", "List available subrequest types", []),
]


def _answer(document: Any, text: str, **more: bytes) -> dict[str, bytes]:
    made = {
        "result.json": orjson.dumps(document, option=orjson.OPT_INDENT_2),
        "result.txt": text.encode(),
        "version": b"1.0.0",
    }
    return {**made, **more}


def location(start: int, end: int, source: int | None = None) -> dict[str, Any]:
    """Lines of a file as BuildKit's documents tell them."""
    found: dict[str, Any] = {"ranges": [{"start": {"line": start}, "end": {"line": end}}]}
    return found if source is None else {"sourceIndex": source, **found} if source else found


def shown_source(name: str, data: bytes, start: int, end: int) -> str:
    """The lines of a file that a message is about, with those around them."""
    lines = data.decode("utf-8", "replace").split("\n")
    if not 1 <= start <= len(lines):
        return ""
    end = min(max(start, end), len(lines))
    first, last, shown = start, end, start
    pad, left = 2 if end != start else 4, 0
    while left < pad:
        if first > 1:
            first, left = first - 1, left + 1
        if last != len(lines):
            last, left = last + 1, left + 1
        left += 1
    out = [f"{name}:{shown}", "-" * 20]
    for number in range(first, last + 1):
        mark = ">>>" if start <= number <= end else "   "
        out.append(f" {number:3d} | {mark} {lines[number - 1]}")
    return "\n".join([*out, "-" * 20, ""])


def lint(warnings: Sequence[Warning], name: str, data: bytes, failure: SolveError | None) -> dict[str, bytes]:
    """What the build checks found."""
    ordered = sorted(warnings, key=lambda found: found.start)
    document: dict[str, Any] = {
        "warnings": [
            {
                "ruleName": found.rule,
                "description": found.description,
                **({"url": found.url} if found.url else {}),
                "detail": found.detail,
                "location": location(found.start, found.end),
            }
            for found in ordered
        ]
        or None,
        "sources": [{"filename": name, "data": base64.b64encode(data).decode(), "language": "Dockerfile"}],
    }
    text = ""
    for found in ordered:
        page = f" - {found.url}" if found.url else ""
        text += f"\nWARNING: {found.rule}{page}\n{found.detail}\n" + shown_source(name, data, found.start, found.end)
    if failure is not None:
        document["buildError"] = {"message": failure.message, "location": location(failure.start, failure.end)}
    code = b"1" if warnings or failure is not None else b"0"
    return _answer(document, text, **{"result.statuscode": code})


def _table(rows: list[tuple[str, ...]], gap: int) -> str:
    """Columns as Go's tabwriter aligns them."""
    widths = [max(len(row[column]) for row in rows) + gap for column in range(len(rows[0]) - 1)]
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1] + "\n" for row in rows
    )


def _comment(comments: Sequence[str], name: str) -> str:
    """The description of a stage or argument: the comment above it that begins with its name."""
    found = next((line for line in comments if name and line.startswith(name + " ")), "")
    return found.removeprefix(name + " ")


def targets(program: Program, data: bytes) -> dict[str, bytes]:
    """The stages that can be built."""
    listed: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = [("TARGET", "DESCRIPTION")]
    for index, stage in enumerate(program.stages):
        default = index == len(program.stages) - 1
        description = _comment(stage.node.comments, stage.name)
        values = {
            "name": stage.name,
            "default": default,
            "description": description,
            "base": stage.base,
            "platform": stage.platform,
        }
        listed.append({key: value for key, value in values.items() if value})
        listed[-1]["location"] = location(stage.node.start, stage.node.end)
        mark = " (default)" if default else ""
        rows.append(((stage.name + mark) if stage.name else mark.strip(), description))
    return _answer({"targets": listed, "sources": [base64.b64encode(data).decode()]}, _table(rows, 1))


def outline(
    program: Program, needed: list[int], target: int, given: Mapping[str, str | None], data: bytes
) -> dict[str, bytes]:
    """The parameters of a target: arguments, secrets, ssh agents, cache mounts."""
    stage = program.stages[target]
    asked = _Asked(program, given)
    for index in sorted(needed, key=lambda index: (index != target, -index)):
        asked.stage(index)
    args, secrets, agents, caches = (
        dict(sorted(kind.items(), key=lambda item: _line(item[1])))
        for kind in (asked.arguments(), asked.secrets, asked.agents, asked.caches)
    )
    document: dict[str, Any] = {
        key: value
        for key, value in (
            ("name", stage.name),
            ("description", _comment(stage.node.comments, stage.name)),
            ("args", list(args.values())),
            ("secrets", list(secrets.values())),
            ("ssh", list(agents.values())),
            ("cache", list(caches.values())),
        )
        if value
    }
    document["sources"] = [base64.b64encode(data).decode()]
    text = ""
    if "name" in document or "description" in document:
        rows = [("TARGET:", stage.name or "(default)")]
        if "description" in document:
            rows.append(("DESCRIPTION:", document["description"]))
        text += _table([*rows], 1) + "\n"
    if args:
        body = [(a["name"], a.get("value", ""), a.get("description", "")) for a in args.values()]
        text += _table([("BUILD ARG", "VALUE", "DESCRIPTION"), *body], 3) + "\n"
    for title, entries in (("SECRET", secrets), ("SSH", agents)):
        if entries:
            body2 = [(e["name"], "true" if e.get("required") else "") for e in entries.values()]
            text += _table([(title, "REQUIRED"), *body2], 3) + "\n"
    return _answer(document, text)


def _line(found: Mapping[str, Any]) -> int:
    line: int = found["location"]["ranges"][0]["start"]["line"]
    return line


class _Asked:
    """What stages ask of who builds them. Source: BuildKit dockerfile2llb/outline.go."""

    def __init__(self, program: Program, given: Mapping[str, str | None]) -> None:
        self._program, self._given = program, given
        self._meta: dict[str, dict[str, Any]] = {}
        self._uses: dict[str, set[str]] = {}
        self._used: set[str] = set()
        self._own: dict[str, dict[str, Any]] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.agents: dict[str, dict[str, Any]] = {}
        self.caches: dict[str, dict[str, Any]] = {}
        self._values: dict[str, str] = {}
        for instruction in program.arguments:
            for name, default in instruction.pairs:
                value, uses = self._expanded(default, self._values)
                value = given.get(name) if given.get(name) is not None else value
                self._uses[name] = uses | (self._uses.get(name, set()) if name in uses else set())
                self._meta[name] = _argument(instruction, name, value)
                if value is not None:
                    self._values[name] = value

    def _expanded(self, text: str | None, values: Mapping[str, str]) -> tuple[str | None, set[str]]:
        """A text with its variables' values, and the variables."""
        if text is None:
            return None, set()
        try:
            value, found, missing = shell.names(text, values, self._program.file.escape)
        except shell.ExpansionError:
            return text, set()
        return value, found | missing

    def stage(self, index: int) -> None:
        stage = self._program.stages[index]
        for word in (stage.base, stage.platform):
            self._used |= self._expanded(word, self._values)[1]
        values: dict[str, str] = {}
        own: dict[str, dict[str, Any]] = {}
        for instruction in stage.instructions:
            if instruction.command == "arg":
                for name, default in instruction.pairs:
                    value = self._given.get(name)
                    if value is None:
                        value = self._expanded(default, values)[0]
                    self._used.add(name)
                    if value is None and name in self._meta:
                        # It is the file's own: told where that is.
                        value = self._values.get(name)
                    else:
                        own[name] = _argument(instruction, name, value)
                    if value is not None:
                        values[name] = value
            for text in instruction.lists.get("mount", ()):
                _mount(self._expanded(text, values)[0] or text, instruction, self.secrets, self.agents, self.caches)
        self._own = {**own, **self._own}

    def arguments(self) -> dict[str, dict[str, Any]]:
        """Those that the stages declare, and those of the whole file that they lead to."""
        wanted, todo = set[str](), list(self._used)
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo += self._uses.get(name, ())
        return {**{name: found for name, found in self._meta.items() if name in wanted}, **self._own}


def _argument(what: Instruction, name: str, value: str | None) -> dict[str, Any]:
    values = {"name": name, "description": _comment(what.node.comments, name), "value": value or ""}
    made: dict[str, Any] = {key: text for key, text in values.items() if text or key == "name"}
    made["location"] = location(what.node.start, what.node.end)
    return made


def _mount(
    text: str, what: Instruction, secrets: dict[str, Any], agents: dict[str, Any], caches: dict[str, Any]
) -> None:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    where = location(what.node.start, what.node.end)
    required = parts.get("required", "false") in ("", "true", "1")
    kind = parts.get("type", "bind")
    if kind == "secret":
        name = parts.get("id") or parts.get("target", "").rpartition("/")[2]
        secrets.setdefault(name, {"name": name, **({"required": True} if required else {}), "location": where})
    elif kind == "ssh":
        name = parts.get("id") or "default"
        agents.setdefault(name, {"name": name, **({"required": True} if required else {}), "location": where})
    elif kind == "cache":
        name = parts.get("id") or parts.get("target", "")
        caches.setdefault(name, {"ID": name, "location": where})


def describe() -> dict[str, bytes]:
    """The requests that there are."""
    listed = [
        {
            "name": name,
            "version": "1.0.0",
            "type": "rpc",
            "description": text,
            "opts": [{"name": option, "description": what} for option, what in options],
            "inputs": None,
            "metadata": [{"name": "result.json", "description": ""}, {"name": "result.txt", "description": ""}],
            "refs": None,
        }
        for name, text, options in _DESCRIPTIONS
    ]
    rows: list[tuple[str, ...]] = [("NAME", "VERSION", "DESCRIPTION")]
    rows += [(name, "1.0.0", text) for name, text, _ in _DESCRIPTIONS]
    return _answer(listed, _table(rows, 3))
