"""Build checks: what `docker build --check` finds wrong in a Dockerfile, and what every build warns of. Pure.

Source of the rules and their texts: the Dockerfile reference's "Build checks"; BuildKit frontend/dockerfile/linter.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from longshore.engine.build import shell
from longshore.engine.build.ignore import Ignore
from longshore.engine.build.instructions import Instruction, Program, Stage, nearest
from longshore.engine.build.shell import ExpansionError
from longshore.engine.errors import InvalidParameter
from longshore.engine.images import references

_PAGE = "https://docs.docker.com/go/dockerfile/rule/"
# name -> (description, page; "" without one)
RULES: dict[str, tuple[str, str]] = {
    "StageNameCasing": ("Stage names should be lowercase", "stage-name-casing"),
    "FromAsCasing": ("The 'as' keyword should match the case of the 'from' keyword", "from-as-casing"),
    "NoEmptyContinuation": ("Empty continuation lines will become errors in a future release", "no-empty-continuation"),
    "ConsistentInstructionCasing": (
        "All commands within the Dockerfile should use the same casing (either upper or lower)",
        "consistent-instruction-casing",
    ),
    "DuplicateStageName": ("Stage names should be unique", "duplicate-stage-name"),
    "ReservedStageName": ("Reserved words should not be used as stage names", "reserved-stage-name"),
    "JSONArgsRecommended": (
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        "json-args-recommended",
    ),
    "MaintainerDeprecated": (
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        "maintainer-deprecated",
    ),
    "UndefinedArgInFrom": ("FROM command must use declared ARGs", "undefined-arg-in-from"),
    "WorkdirRelativePath": (
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base "
        "image changes",
        "workdir-relative-path",
    ),
    "UndefinedVar": ("Variables should be defined before their use", "undefined-var"),
    "MultipleInstructionsDisallowed": (
        "Multiple instructions of the same type should not be used in the same stage",
        "multiple-instructions-disallowed",
    ),
    "LegacyKeyValueFormat": (
        "Legacy key/value format with whitespace separator should not be used",
        "legacy-key-value-format",
    ),
    "InvalidBaseImagePlatform": ("Base image platform does not match expected target platform", ""),
    "RedundantTargetPlatform": (
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        "redundant-target-platform",
    ),
    "SecretsUsedInArgOrEnv": (
        "Sensitive data should not be used in the ARG or ENV commands",
        "secrets-used-in-arg-or-env",
    ),
    "InvalidDefaultArgInFrom": (
        "Default value for global ARG results in an empty or invalid base image name",
        "invalid-default-arg-in-from",
    ),
    "FromPlatformFlagConstDisallowed": (
        "FROM --platform flag should not use a constant value",
        "from-platform-flag-const-disallowed",
    ),
    "CopyIgnoredFile": ("Attempting to Copy file that is excluded by .dockerignore", "copy-ignored-file"),
    "InvalidDefinitionDescription": (
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not "
        "intended to be a description comment, add an empty line or comment between the instruction and the comment.",
        "invalid-definition-description",
    ),
    "ExposeProtoCasing": ("Protocol in EXPOSE instruction should be lowercase", "expose-proto-casing"),
    "ExposeInvalidFormat": (
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future "
        "release",
        "expose-invalid-format",
    ),
}
_EXPERIMENTAL = {"InvalidDefinitionDescription"}
_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_NO_SECRET = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)
_RESERVED = ("context", "scratch")


@dataclass(frozen=True, slots=True)
class Warning:
    """One finding. detail: what is wrong, in one line; start, end: its lines."""

    rule: str
    detail: str
    start: int
    end: int

    @property
    def description(self) -> str:
        return RULES[self.rule][0]

    @property
    def url(self) -> str:
        page = RULES[self.rule][1]
        return f"{_PAGE}{page}/" if page else ""

    @property
    def short(self) -> str:
        """As a build shows it: "Rule: detail (line 3)"."""
        return f"{self.rule}: {self.detail}" + (f" (line {self.start})" if self.start else "")


@dataclass(slots=True)
class Settings:
    """Which rules count: the check directive's "skip=A,B;error=true;experimental=all"."""

    skip: set[str] = field(default_factory=set)
    experimental: set[str] = field(default_factory=set)
    error: bool = False

    def wants(self, rule: str) -> bool:
        if rule in _EXPERIMENTAL:
            return bool(self.experimental & {rule, "all"})
        return not self.skip & {rule, "all"}

    def merged(self, comments: Iterable[str]) -> Settings:
        """With what a comment above an instruction adds ("# check=skip=Rule")."""
        for comment in comments:
            found = re.fullmatch(r"check\s*=\s*(.+)", comment)
            if found:
                try:
                    other = settings(found[1].partition(" ")[0])
                except InvalidParameter:
                    return self
                return Settings(self.skip | other.skip, self.experimental | other.experimental, self.error)
        return self


def settings(text: str) -> Settings:
    """A check directive's value. Raises InvalidParameter."""
    made = Settings()
    if not text.strip():
        return made
    for part in text.strip().split(";", 2):
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            raise InvalidParameter(f'failed to parse check options: invalid check option "{part}"')
        if key in ("skip", "experimental"):
            getattr(made, key).update(word.strip() for word in value.split(","))
        elif key == "error":
            if value.lower() not in ("1", "t", "true", "0", "f", "false"):
                raise InvalidParameter(
                    f'failed to parse check options: failed to parse check option "{part}": strconv.ParseBool: parsing '
                    f'"{value}": invalid syntax'
                )
            made.error = value.lower() in ("1", "t", "true")
        else:
            raise InvalidParameter(f'failed to parse check options: invalid check option "{key}"')
    return made


@dataclass(slots=True)
class Base:
    """What a stage begins with: its environment, working directory's and shell's presence, the image's platform."""

    env: dict[str, str] = field(default_factory=dict)
    shell: bool = False
    platform: str = ""


class Checker:
    """Walks a program. predefined: platform arguments; given: build arguments; ignored: the context's ignore rules."""

    def __init__(
        self,
        program: Program,
        chosen: Settings,
        *,
        predefined: Mapping[str, str | None],
        given: Mapping[str, str | None],
        ignored: Ignore | None = None,
    ) -> None:
        self.program, self._chosen = program, chosen
        self._predefined = {name: value for name, value in predefined.items() if value is not None}
        self._given = {name: value for name, value in given.items() if value is not None}
        self._ignored = ignored
        self._escape = program.file.escape
        self._global: dict[str, str] = {}
        self.warnings: list[Warning] = []

    def _say(self, rule: str, detail: str, start: int, end: int, comments: Iterable[str] = ()) -> None:
        if self._chosen.merged(comments).wants(rule):
            self.warnings.append(Warning(rule, detail, start, end))

    def _of(self, rule: str, detail: str, what: Instruction | Stage) -> None:
        node = what.node
        self._say(rule, detail, node.start, node.end, node.comments)

    def failure(self) -> str:
        """Why the build ends here, where error=true was asked for and something was found; "" otherwise."""
        if not self._chosen.error or not self.warnings:
            return ""
        return "lint violation found for rules: " + ", ".join(dict.fromkeys(found.rule for found in self.warnings))

    # -- what the file alone shows ---------------------------------------------------------------------------------

    def file(self) -> None:
        """The rules that need no image."""
        for line in self.program.file.gaps:
            self._say("NoEmptyContinuation", "Empty continuation line", line, line)
        for instruction in self.program.arguments:
            self._described("ARG", [name for name, _ in instruction.pairs], instruction)
        for stage in self.program.stages:
            self._from_words(stage)
            for instruction in stage.instructions:
                if instruction.command == "maintainer":
                    detail = "Maintainer instruction is deprecated in favor of using label"
                    self._of("MaintainerDeprecated", detail, instruction)
                elif instruction.command == "arg":
                    self._described("ARG", [name for name, _ in instruction.pairs], instruction)
        self._stage_names()
        self._casing()
        self._defaults()
        self._global = self._meta(self._given)
        for stage in self.program.stages:
            self._from_variables(stage)

    def _described(self, command: str, names: list[str], what: Instruction | Stage) -> None:
        comments = what.node.comments
        if not comments or not names or comments[-1].split(" ", 1)[0] in names:
            return
        name = names[0] if len(names) == 1 else "<arg_key>"
        detail = f"Comment for {command} should follow the format: `# {name} <description>`"
        self._of("InvalidDefinitionDescription", detail, what)

    def _from_words(self, stage: Stage) -> None:
        words = stage.node.rest.split()
        if len(words) == 3:
            if words[2] != words[2].lower():
                self._of("StageNameCasing", f"Stage name '{words[2]}' should be lowercase", stage)
            keyword = stage.node.name
            fits = words[1] == words[1].lower() if keyword == keyword.lower() else words[1] == words[1].upper()
            if keyword in (keyword.lower(), keyword.upper()) and not fits:
                self._of("FromAsCasing", f"'{words[1]}' and '{keyword}' keywords' casing do not match", stage)
            self._described("FROM", [stage.name], stage)

    def _stage_names(self) -> None:
        seen: set[str] = set()
        for stage in self.program.stages:
            if stage.name in _RESERVED:
                detail = f'Stage name should not use the same name as reserved stage "{stage.name}"'
                self._of("ReservedStageName", detail, stage)
            if stage.name and stage.name in seen:
                detail = f'Duplicate stage name "{stage.name}", stage names should be unique'
                self._of("DuplicateStageName", detail, stage)
            seen.add(stage.name)

    def _casing(self) -> None:
        every: list[Instruction | Stage] = []
        for stage in self.program.stages:
            every += [stage, *stage.instructions]
        names = [what.node.name for what in every]
        lower = sum(name == name.lower() for name in names) > sum(name == name.upper() for name in names)
        for what in every:
            name = what.node.name
            if name != (name.lower() if lower else name.upper()):
                wanted = "lowercase" if lower else "uppercase"
                detail = f"Command '{name}' should match the case of the command majority ({wanted})"
                self._of("ConsistentInstructionCasing", detail, what)

    def _meta(self, given: Mapping[str, str]) -> dict[str, str]:
        """The arguments that FROM may use."""
        found = dict(self._predefined)
        for instruction in self.program.arguments:
            for name, default in instruction.pairs:
                if name in given:
                    found[name] = given[name]
                elif default is not None:
                    try:
                        found[name] = shell.expand(default, found, self._escape)
                    except ExpansionError:
                        continue
        return found

    def _defaults(self) -> None:
        values = self._meta({})
        for stage in self.program.stages:
            try:
                name, _, _ = shell.names(stage.base, values, self._escape)
                references.parse(name)
            except ExpansionError:
                return
            except references.InvalidReference:
                detail = f"Default value for ARG {stage.base} results in empty or invalid base image name"
                self._of("InvalidDefaultArgInFrom", detail, stage)

    def _from_variables(self, stage: Stage) -> None:
        declared = {name for instruction in self.program.arguments for name, _ in instruction.pairs}
        known = sorted(declared | set(self._predefined))
        for text, platform in ((stage.base, False), (stage.platform, True)):
            if not text:
                continue
            try:
                result, used, missing = shell.names(text, self._global, self._escape)
            except ExpansionError:
                continue
            for name in sorted(missing - set(known)):
                near = nearest(name, known)
                more = f" (did you mean {near}?)" if near else ""
                self._of("UndefinedArgInFrom", f"FROM argument '{name}' is not declared{more}", stage)
            if not platform:
                continue
            if used == {"TARGETPLATFORM"} and not missing and result == self._global.get("TARGETPLATFORM"):
                detail = f"Setting platform to predefined {text} in FROM is redundant as this is the default behavior"
                self._of("RedundantTargetPlatform", detail, stage)
            if not used and not missing:
                system, _, rest = result.partition("/")
                architecture = rest.partition("/")[0]
                if not any(part and part in stage.name for part in (system, architecture)):
                    detail = f'FROM --platform flag should not use constant value "{result}"'
                    self._of("FromPlatformFlagConstDisallowed", detail, stage)

    # -- what a stage does -----------------------------------------------------------------------------------------

    def stages(self, wanted: Iterable[int], bases: Callable[[int], Base | int | None], platform: str) -> None:
        """The rules about the instructions of some stages, in order.

        bases: a stage's beginning by its index: an image's, an earlier stage's index, None from scratch.
        """
        ends: dict[int, _Walk] = {}
        for index in sorted(wanted):
            stage = self.program.stages[index]
            base = bases(index)
            if isinstance(base, int):
                below = ends[base]
                walk = _Walk(dict(below.env), workdir=below.workdir, shell=below.shell)
            else:
                walk = _Walk(dict(base.env) if base else {}, shell=base.shell if base else False)
                walk.env.setdefault("PATH", "")
                if base and base.platform and base.platform.split("/")[:2] != platform.split("/")[:2]:
                    name, _, _ = shell.names(stage.base, self._global, self._escape)
                    detail = f'Base image {name} was pulled with platform "{base.platform}", expected "{platform}" for current build'
                    self._of("InvalidBaseImagePlatform", detail, stage)
            for instruction in stage.instructions:
                if instruction.node.start:
                    self._instruction(walk, instruction)
            ends[index] = walk

    def _instruction(self, walk: _Walk, instruction: Instruction) -> None:
        command, name = instruction.command, instruction.node.name
        if command != "arg":
            for text in _expanded(instruction):
                self._variables(walk, instruction, text)
        if command in ("env", "label") and _is_legacy(instruction):
            detail = f'"{name} key=value" should be used instead of legacy "{name} key value" format'
            self._of("LegacyKeyValueFormat", detail, instruction)
        if command in ("env", "arg"):
            for key, _ in instruction.pairs:
                if _SECRET.search(key) and not _NO_SECRET.search(key):
                    detail = f'Do not use ARG or ENV instructions for sensitive data ({command.upper()} "{key}")'
                    self._of("SecretsUsedInArgOrEnv", detail, instruction)
        if command in ("cmd", "entrypoint", "healthcheck"):
            before = walk.once.get(command)
            if before is not None:
                detail = f"Multiple {name} instructions should not be used in the same stage because only the last one will be used"
                self._of("MultipleInstructionsDisallowed", detail, before)
            walk.once[command] = instruction
        if command in ("cmd", "entrypoint") and instruction.shell and not walk.shell:
            detail = f"JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
            self._of("JSONArgsRecommended", detail, instruction)
        handler: Any = getattr(self, f"_{command}", None)
        if handler is not None:
            handler(walk, instruction)

    def _variables(self, walk: _Walk, instruction: Instruction, text: str) -> None:
        try:
            _, _, missing = shell.names(text, walk.env, self._escape)
        except ExpansionError:
            return
        for variable in sorted(missing - walk.declared):
            near = nearest(variable, list(walk.env))
            more = f" (did you mean ${near}?)" if near else ""
            self._of("UndefinedVar", f"Usage of undefined variable '${variable}'{more}", instruction)

    def _env(self, walk: _Walk, instruction: Instruction) -> None:
        before = dict(walk.env)
        for key, value in instruction.pairs:
            walk.env[key] = _quietly(value or "", before, self._escape)

    def _arg(self, walk: _Walk, instruction: Instruction) -> None:
        for key, default in instruction.pairs:
            if default is not None:
                self._variables(walk, instruction, default)
            value = self._given.get(key)
            if value is None and default is not None:
                value = _quietly(default, walk.env, self._escape)
            if value is None:
                value = self._global.get(key)
            walk.declared.add(key)
            if value is not None:
                walk.env.setdefault(key, value)

    def _shell(self, walk: _Walk, _: Instruction) -> None:
        walk.shell = True

    def _workdir(self, walk: _Walk, instruction: Instruction) -> None:
        path = _quietly(instruction.words[0], walk.env, self._escape)
        if not walk.workdir and not path.startswith("/"):
            detail = f'Relative workdir "{path}" can have unexpected results if the base image changes'
            self._of("WorkdirRelativePath", detail, instruction)
        walk.workdir = True

    def _expose(self, walk: _Walk, instruction: Instruction) -> None:
        for text in instruction.words:
            for word in _quietly(text, walk.env, self._escape).split():
                port, _, protocol = word.partition("/")
                if protocol != protocol.lower():
                    detail = f"Defined protocol '{word}' in EXPOSE instruction should be lowercase"
                    self._of("ExposeProtoCasing", detail, instruction)
                if ":" in port:
                    detail = f"EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
                    self._of("ExposeInvalidFormat", detail, instruction)

    def _copy(self, walk: _Walk, instruction: Instruction) -> None:
        rules = self._ignored
        if instruction.flags.get("from") or not rules or rules.takes_back:
            return
        for word in instruction.words[:-1]:
            if re.match(r"\d*<<|https?://|git@|git://", word):
                continue
            path = posixpath.normpath(_quietly(word, walk.env, self._escape))
            clean = path.lstrip("/")
            if clean in (".", ""):
                continue
            if rules.matches(clean):
                verb = "Add" if instruction.command == "add" else "Copy"
                detail = f'Attempting to {verb} file "{path}" that is excluded by .dockerignore'
                self._of("CopyIgnoredFile", detail, instruction)

    _add = _copy


@dataclass(slots=True)
class _Walk:
    """A stage while it is checked."""

    env: dict[str, str]
    workdir: bool = False
    shell: bool = False
    declared: set[str] = field(default_factory=set)
    once: dict[str, Instruction] = field(default_factory=dict)


def _quietly(text: str, variables: Mapping[str, str], escape: str) -> str:
    try:
        return shell.expand(text, variables, escape)
    except ExpansionError:
        return text


def _is_legacy(instruction: Instruction) -> bool:
    first = instruction.node.rest.split(maxsplit=1)
    return bool(first) and "=" not in first[0]


def _expanded(instruction: Instruction) -> list[str]:
    """The words of an instruction that variables act in."""
    if instruction.command in ("env", "label"):
        return [text for pair in instruction.pairs for text in pair if text]
    if instruction.command in ("workdir", "user", "stopsignal", "expose", "volume"):
        return list(instruction.words)
    if instruction.command in ("copy", "add"):
        words = [word for word in instruction.words if not re.match(r"\d*<<", word)]
        return [*words, *(instruction.flags.get(name, "") for name in ("chown", "chmod", "checksum"))]
    if instruction.command == "run":
        return list(instruction.lists.get("mount", ()))
    return []
