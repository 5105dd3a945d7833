"""The Dockerfile frontend (dockerfile.v0): what a client asked, its files, the stages side by side, an image.

Source of names and order: BuildKit frontend/dockerui, frontend/dockerfile/dockerfile2llb.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.build import dockerfile, ignore, instructions
from longshore.engine.build.buildkit.progress import Progress, Vertex
from longshore.engine.build.buildkit.session import Session
from longshore.engine.build.classic import _inherit, _label
from longshore.engine.build.context import Context, from_url, new_folder
from longshore.engine.build.dispatch import Dispatcher
from longshore.engine.build.dockerfile import DockerfileError
from longshore.engine.build.instructions import Instruction, Program, Stage
from longshore.engine.build.options import BuildOptions
from longshore.engine.build.shell import ExpansionError, expand
from longshore.engine.build.state import Arguments, StageState
from longshore.engine.errors import EngineError, InvalidParameter, NotImplementedUpstream, SystemFailure
from longshore.engine.images import references
from longshore.engine.images.model import Image, host_architecture
from longshore.machinery import rooted

if TYPE_CHECKING:
    from longshore.engine.build.classic import Builder

_VERTICES = {"run", "copy", "add", "workdir"}
_LIMIT = 4 << 20


class SolveError(EngineError):
    """A build that failed, with where in which file. name, data: the file; start, end: its lines (0: nowhere)."""

    def __init__(self, message: str, name: str = "", data: bytes = b"", start: int = 0, end: int = 0) -> None:
        super().__init__(message)
        self.name, self.data, self.start, self.end = name, data, start, end


def options_of(attributes: Mapping[str, str]) -> BuildOptions:
    """A frontend's attributes as build options. Raises InvalidParameter."""
    options = BuildOptions(
        dockerfile=attributes.get("filename") or "Dockerfile",
        no_cache="no-cache" in attributes,
        pull=attributes.get("image-resolve-mode") == "pull",
        network=attributes.get("force-network-mode") or "default",
        target=attributes.get("target", ""),
        platform=attributes.get("platform", ""),
        version="2",
    )
    if "," in options.platform:
        raise InvalidParameter("multiple platforms feature is currently not supported for docker driver")
    if options.network == "sandbox":
        options.network = "default"
    for key, value in attributes.items():
        if key.startswith("build-arg:"):
            options.arguments[key.removeprefix("build-arg:")] = value
        elif key.startswith("label:"):
            options.labels[key.removeprefix("label:")] = value
    for word in filter(None, attributes.get("add-hosts", "").split(",")):
        name, _, address = word.partition("=")
        options.hosts.append((name, address))
    shm = attributes.get("shm-size", "")
    options.limits.shm_size = int(shm) if shm.isdigit() else 0
    options.limits.cgroup_parent = attributes.get("cgroup-parent", "")
    return options


def platform_values(platform: str) -> dict[str, str | None]:
    """The ARGs of platforms that every Dockerfile may declare."""
    build = f"linux/{host_architecture()}"
    target = platform or build
    parts = [*target.split("/"), "", ""]
    return {
        "BUILDPLATFORM": build,
        "BUILDOS": "linux",
        "BUILDARCH": host_architecture(),
        "BUILDVARIANT": "",
        "TARGETPLATFORM": target,
        "TARGETOS": parts[0],
        "TARGETARCH": parts[1],
        "TARGETVARIANT": parts[2],
    }


class Frontend:
    """One Dockerfile build. attributes: the client's; progress: where vertices go."""

    def __init__(self, builder: Builder, session: Session, attributes: Mapping[str, str], progress: Progress) -> None:
        self.builder, self.session, self.progress = builder, session, progress
        self.attributes = dict(attributes)
        self.options = options_of(attributes)
        self.store, self.cache, self.runner = builder.store, builder.cache, builder.runner
        self.arguments = Arguments(self.options.arguments)
        self.program: Program
        self.context: Context
        self._data = b""
        self._stages: dict[int, asyncio.Task[StageState]] = {}
        self._bases: dict[str, asyncio.Task[Image]] = {}
        self._context_ready: asyncio.Task[None] | None = None
        self._folders: list[Context] = []
        self._told: set[str] = set()

    async def run(self) -> StageState:
        """Build; the state of the stage asked for. Raises SolveError."""
        if self.attributes.get("requestid"):
            raise NotImplementedUpstream(f"unsupported request {self.attributes['requestid']}")
        try:
            await self._definition()
            return await self._solve()
        finally:
            tasks: list[asyncio.Task[Any]] = [*self._stages.values(), *self._bases.values()]
            if self._context_ready is not None:
                tasks.append(self._context_ready)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for folder in self._folders:
                await asyncio.shield(folder.close())

    def _folder(self) -> Context:
        made = Context(new_folder(self.store))
        self._folders.append(made)
        return made

    def failed(self, message: str, start: int = 0, end: int = 0) -> SolveError:
        return SolveError(message, self.options.dockerfile, self._data, start, end or start)

    # -- the client's files ----------------------------------------------------------------------------------------

    async def _definition(self) -> None:
        name = self.options.dockerfile
        remote = self.attributes.get("context", "")
        if remote and not remote.startswith(("http://", "https://")) and "://" in remote + "://":
            if re.match(r"(git@|git://|ssh://|.*\.git(#|$))", remote):
                raise NotImplementedUpstream("git contexts are not available in this engine")
        holder = self._folder()
        if remote.startswith(("http://", "https://")):
            self.context = await from_url(self.store, remote, name)
            self._folders.append(self.context)
            self._data = self.context.dockerfile
        else:
            self.context = self._folder()
            with self.progress.vertex(f"[internal] load build definition from {name}") as vertex:
                key = self.attributes.get("dockerfilekey", "dockerfile")
                total = await self.session.sync(
                    key,
                    holder.root,
                    include=[name, f"{name}.dockerignore", name.lower()],
                    progress=lambda size: vertex.status("transferring dockerfile:", size),
                )
                vertex.status("transferring dockerfile:", total, done=True)
            try:
                self._data = rooted.read_file(holder.root, name, _LIMIT + 1)
            except OSError:
                raise self.failed(f"failed to read dockerfile: open {name}: no such file or directory") from None
        try:
            file = dockerfile.parse(self._data)
            self.program = instructions.parse(file)
        except DockerfileError as error:
            message = error.message
            if not message.startswith(("dockerfile parse error", "failed to parse")):
                message = f"dockerfile parse error on line {error.line}: {message}" if error.line else message
            raise self.failed(message, error.line, error.end) from None
        self._ignore_root = holder.root

    async def _ignored(self) -> list[str]:
        """The patterns of the Dockerfile's own ignore file, else the context's."""
        try:
            return ignore.parse(rooted.read_file(self._ignore_root, f"{self.options.dockerfile}.dockerignore", _LIMIT))
        except OSError:
            pass
        folder = self._folder()
        with self.progress.vertex("[internal] load .dockerignore") as vertex:
            total = await self.session.sync(
                self.attributes.get("contextkey", "context"),
                folder.root,
                include=[".dockerignore"],
            )
            vertex.status("transferring context:", total, done=True)
        try:
            return ignore.parse(rooted.read_file(folder.root, ".dockerignore", _LIMIT))
        except OSError:
            return []

    async def _load_context(self, follow: list[str], patterns: list[str]) -> None:
        with self.progress.vertex("[internal] load build context") as vertex:
            total = await self.session.sync(
                self.attributes.get("contextkey", "context"),
                self.context.root,
                follow=follow,
                exclude=patterns,
                progress=lambda size: vertex.status("transferring context:", size),
            )
            vertex.status("transferring context:", total, done=True)

    def _sources(self, needed: list[int]) -> list[str] | None:
        """What of the context the stages use: [] nothing, None everything."""
        found: list[str] = []
        for index in needed:
            for instruction in self.program.stages[index].instructions:
                if instruction.command in ("copy", "add") and not instruction.flags.get("from"):
                    for word in instruction.words[:-1]:
                        if re.match(r"\d*<<", word) or (instruction.command == "add" and re.match(r"https?://", word)):
                            continue
                        found.append(word)
                for text in instruction.lists.get("mount", ()):
                    if "type=" not in text or "type=bind" in text:
                        if "from=" not in text:
                            source = re.search(r"(?:source|src)=([^,]+)", text)
                            found.append(source[1] if source else ".")
        clean: list[str] = []
        for word in found:
            path = word.lstrip("/").removeprefix("./").rstrip("/")
            if path in ("", ".") or "$" in path or path.startswith(".."):
                return None
            clean.append(path)
        return clean

    # -- stages ----------------------------------------------------------------------------------------------------

    def _target(self) -> int:
        if not self.options.target:
            return len(self.program.stages) - 1
        index = self.program.stage(self.options.target)
        if index is None:
            raise self.failed(f'target stage "{self.options.target}" could not be found')
        return index

    def _expand(self, text: str, stage: Stage) -> str:
        try:
            return expand(text, self.arguments.meta_values(), self.program.file.escape)
        except ExpansionError as error:
            raise self.failed(f'failed to process "{text}": {error}', stage.node.start) from None

    def _base(self, index: int) -> int | str:
        """A stage's base: an earlier stage, or an image's name."""
        stage = self.program.stages[index]
        base = self._expand(stage.base, stage)
        if not base:
            raise self.failed(f"base name ({stage.base}) should not be blank", stage.node.start, stage.node.end)
        for earlier in range(index - 1, -1, -1):
            if self.program.stages[earlier].name == base.lower():
                return earlier
        return base

    def _other(self, name: str, index: int) -> int | None:
        """The earlier stage that --from means."""
        found = next((i for i in range(index - 1, -1, -1) if self.program.stages[i].name == name.lower()), None)
        if found is None and name.isdigit() and int(name) < index:
            return int(name)
        return found

    def _from_names(self, instruction: Instruction) -> list[str]:
        names = [instruction.flags["from"]] if instruction.flags.get("from") else []
        for text in instruction.lists.get("mount", ()):
            found = re.search(r"(?:^|,)from=([^,]+)", text)
            if found:
                names.append(found[1])
        return names

    def _needed(self, target: int) -> list[int]:
        """The stages that the target needs, itself included, in order: the others are not built."""
        found: set[int] = set()
        todo = [target]
        while todo:
            index = todo.pop()
            if index in found:
                continue
            found.add(index)
            base = self._base(index)
            if isinstance(base, int):
                todo.append(base)
            for instruction in self.program.stages[index].instructions:
                for name in self._from_names(instruction):
                    other = self._other(name, index)
                    if other is not None:
                        todo.append(other)
        return sorted(found)

    async def _solve(self) -> StageState:
        self.arguments.meta.update(platform_values(self.options.platform))
        for instruction in self.program.arguments:
            for name, default in instruction.pairs:
                try:
                    value = None if default is None else expand(default, self.arguments.meta_values())
                except ExpansionError as error:
                    raise self.failed(
                        f"failed to process arguments for ARG {name}: {error}", instruction.line
                    ) from None
                if value is not None or name not in self.arguments.meta:
                    self.arguments.declare_meta(name, value)
        target = self._target()
        needed = self._needed(target)
        if self.options.labels:
            stage = self.program.stages[target]
            stage.instructions.append(_label(self.options.labels, stage))
        for index in needed:
            base = self._base(index)
            if isinstance(base, str) and base != "scratch" and self._key(base) not in self._bases:
                self._bases[self._key(base)] = asyncio.ensure_future(self._metadata(base, self.program.stages[index]))
        await asyncio.gather(*self._bases.values())
        local = not self.attributes.get("context", "").startswith(("http://", "https://"))
        patterns = await self._ignored() if local else []
        follow = self._sources(needed) if local else []
        for index in needed:
            self._stages[index] = asyncio.ensure_future(self._stage(index))
        if follow is None or follow:
            self._context_ready = asyncio.ensure_future(self._load_context(follow or [], patterns))
        # The first failure ends the build; stages that wait for the failed one are not reported twice.
        await asyncio.wait(self._stages.values(), return_when=asyncio.FIRST_EXCEPTION)
        for task in self._stages.values():
            if task.done() and not task.cancelled() and task.exception() is not None:
                task.result()
        state = await self._stages[target]
        if state.image is None:
            raise self.failed("no image was generated: the stage is empty")
        return state

    @staticmethod
    def _key(name: str) -> str:
        """An image's name in its normal form (as it is, where it is none)."""
        try:
            return str(references.parse(name).with_default_tag())
        except references.InvalidReference:
            return name

    async def _metadata(self, name: str, stage: Stage) -> Image:
        try:
            shown = str(references.parse(name).with_default_tag())
        except references.InvalidReference as error:
            raise self.failed(f'failed to parse stage name "{name}": {error.message}', stage.node.start) from None
        with self.progress.vertex(f"[internal] load metadata for {shown}"):
            try:
                return await self.image(name)
            except EngineError as error:
                raise self.failed(f"{name}: failed to resolve source metadata for {shown}: {error.message}", stage.node.start, stage.node.end) from None  # fmt: skip

    async def image(self, name: str) -> Image:
        """An image from the store, else from its registry with the client's credentials. Raises EngineError."""
        given = self.attributes.get(f"context:{name}") or self.attributes.get(
            f"context:{name}::{self.options.platform}"
        )
        if given:
            if not given.startswith("docker-image://"):
                raise NotImplementedUpstream(f"unsupported context source {given.partition(':')[0]} for {name}")
            name = given.removeprefix("docker-image://")
        found = self.store.find(name)
        if found is not None and not self.options.pull:
            return found
        reference = references.parse(name).with_default_tag()
        auth = await self.session.credentials(reference.domain)
        return await self.store.pull(reference, auth=auth, platform=self.options.platform)

    async def _stage(self, index: int) -> StageState:
        stage = self.program.stages[index]
        base = self._base(index)
        state = StageState(self.arguments, stage.name, started=True)
        steps = [i for i in stage.instructions if i.command in _VERTICES]
        fresh = isinstance(base, str) and base != "scratch"
        host = StageHost(self, index, len(steps) + fresh)
        dispatcher = Dispatcher(host, state)
        if isinstance(base, int):
            below = await self._stages[base]
            _inherit(state, below.image, below.config)
        elif base == "scratch":
            from longshore.engine.runtime.spec import DEFAULT_PATH

            state.config = {"Env": [f"PATH={DEFAULT_PATH}"]}
        else:
            shown = self._key(base)
            image = await self._bases[shown]
            vertex = host.begin(f"FROM {shown}")
            # One base of several stages is one step, told once.
            if shown not in self._told:
                self._told.add(shown)
                with vertex:
                    vertex.cached = True
            _inherit(state, image, image.run_config)
            for trigger in list(state.config.pop("OnBuild", None) or []):
                node = dockerfile.parse(trigger.encode()).nodes[0]
                await self._instruction(host, dispatcher, instructions.parse_instruction(node), stage)
        for instruction in stage.instructions:
            for name in self._from_names(instruction):
                other = self._other(name, index)
                if other is not None:
                    await self._stages[other]
            await self._instruction(host, dispatcher, instruction, stage)
        return state

    async def _instruction(
        self, host: StageHost, dispatcher: Dispatcher, instruction: Instruction, stage: Stage
    ) -> None:
        uses_context = (instruction.command in ("copy", "add") and not instruction.flags.get("from")) or (
            instruction.command == "run" and instruction.lists.get("mount")
        )
        if uses_context and self._context_ready is not None:
            await self._context_ready
        try:
            if instruction.command in _VERTICES:
                with host.begin(_shown(instruction)):
                    await dispatcher.run(instruction)
            else:
                await dispatcher.run(instruction)
        except SolveError:
            raise
        except EngineError as error:
            raise self.failed(error.message, instruction.line, instruction.node.end) from None


def _shown(instruction: Instruction) -> str:
    """An instruction as a vertex's name; a here-document by its first line."""
    text = instruction.original
    if instruction.heredocs and instruction.command == "run":
        first = instruction.heredocs[0].content.strip().split("\n")[0]
        more = "..." if instruction.heredocs[0].content.strip().count("\n") else ""
        text = f"{text} ({first}{more})"
    return text


class StageHost:
    """A stage as its instructions see it: shared things from the build, messages to the step's vertex."""

    buildkit = True

    def __init__(self, frontend: Frontend, index: int, total: int) -> None:
        self._frontend, self._index, self._total = frontend, index, total
        self._number = 0
        self._vertex: Vertex | None = None
        self.store, self.cache, self.runner = frontend.store, frontend.cache, frontend.runner
        self.options, self.program, self.context = frontend.options, frontend.program, frontend.context
        stages = frontend.program.stages
        mounts = any(instruction.lists.get("mount") for instruction in stages[index].instructions)
        name = stages[index].name or f"stage-{index}"
        self._prefix = "" if len(stages) == 1 and not mounts else f"{name} "

    def begin(self, text: str) -> Vertex:
        """The vertex of the next step."""
        self._number += 1
        width = 1 + int(math.log10(max(1, self._total)))
        self._vertex = self._frontend.progress.vertex(f"[{self._prefix}{self._number:>{width}}/{self._total}] {text}")
        return self._vertex

    def hit(self) -> None:
        if self._vertex is not None:
            self._vertex.cached = True

    def running(self, step: str) -> None:
        return

    def removed(self, step: str) -> None:
        return

    def output(self, number: int, data: bytes) -> None:
        if self._vertex is not None:
            self._vertex.log(number, data)

    async def image(self, name: str) -> Image:
        return await self._frontend.image(name)

    def stage_image(self, name: str) -> Image | None:
        other = self._frontend._other(name, self._index)
        return self._frontend._stages[other].result().image if other is not None else None

    async def secret(self, name: str) -> bytes | None:
        return await self._frontend.session.secret(name)

    async def agent(self, name: str, path: Path) -> asyncio.Server | None:
        return await self._frontend.session.agent(name, path)


__all__ = ["Frontend", "SolveError", "SystemFailure"]
