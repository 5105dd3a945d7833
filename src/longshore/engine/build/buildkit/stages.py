"""A Dockerfile's stages built for one platform: those that the target needs, side by side.

Source of names and order: BuildKit frontend/dockerfile/dockerfile2llb.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from longshore.engine.build import dockerfile, instructions
from longshore.engine.build.buildkit import used
from longshore.engine.build.buildkit.attributes import normal_platform, platform_values
from longshore.engine.build.buildkit.contexts import IMAGES
from longshore.engine.build.buildkit.host import StageHost
from longshore.engine.build.buildkit.recorder import Recorder
from longshore.engine.build.checks import Base
from longshore.engine.build.classic import _inherit, _label
from longshore.engine.build.copying import Copier, Placement, Source, Tree
from longshore.engine.build.dispatch import Dispatcher
from longshore.engine.build.dockerfile import DockerfileError
from longshore.engine.build.instructions import Instruction, Stage
from longshore.engine.build.shell import ExpansionError, expand
from longshore.engine.build.state import Arguments, StageState
from longshore.engine.build.step import StepRoot
from longshore.engine.errors import EngineError
from longshore.engine.images import references
from longshore.engine.images.commit import make_config
from longshore.engine.images.listing import platform_matches, shown_platform
from longshore.engine.images.model import Image, encode
from longshore.engine.runtime.spec import DEFAULT_PATH

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.frontend import Frontend

_VERTICES = {"run", "copy", "add", "workdir"}


class Stages:
    """One platform's build. platform: normal ("" : this machine's, not named)."""

    def __init__(self, frontend: Frontend, platform: str, *, told: bool) -> None:
        self.frontend, self.platform = frontend, platform
        self.store, self.progress, self.contexts = frontend.store, frontend.progress, frontend.contexts
        self.program = frontend.program
        self.options = dataclasses.replace(frontend.options, platform=platform)
        self.arguments = Arguments(self.options.arguments)
        self._prefix = f"{platform} " if told else ""
        self.tasks: dict[int, asyncio.Task[StageState]] = {}
        self._bases: dict[tuple[str, str], asyncio.Task[Image | None]] = {}
        self._told: set[str] = set()
        self._labelled = False
        self.recorder = Recorder(self) if frontend.recording else None

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self.tasks.values(), *self._bases.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- which stages ----------------------------------------------------------------------------------------------

    def declare(self) -> None:
        """The ARGs before the first FROM. Raises SolveError."""
        self.arguments.meta.update(platform_values(self.platform, self.options.target or self.program.stages[-1].name))
        for instruction in self.program.arguments:
            for name, default in instruction.pairs:
                try:
                    value = None if default is None else expand(default, self.arguments.meta_values())
                except ExpansionError as error:
                    raise self.frontend.failed(
                        f"failed to process arguments for ARG {name}: {error}", instruction.line
                    ) from None
                if value is not None or name not in self.arguments.meta:
                    self.arguments.declare_meta(name, value)

    def target(self) -> int:
        wanted = self.options.target
        if not wanted:
            return len(self.program.stages) - 1
        index = self.program.stage(wanted)
        if index is None:
            near = instructions.suggest(wanted, [stage.name for stage in self.program.stages if stage.name])
            raise self.frontend.failed(f'target stage "{wanted}" could not be found{near}')
        return index

    def _expand(self, text: str, stage: Stage) -> str:
        try:
            return expand(text, self.arguments.meta_values(), self.program.file.escape)
        except ExpansionError as error:
            raise self.frontend.failed(
                f'failed to process "{text}": {error}', stage.node.start, stage.node.end
            ) from None

    def base(self, index: int) -> int | str:
        """A stage's base: an earlier stage, or an image's name. Raises SolveError."""
        stage = self.program.stages[index]
        base = self._expand(stage.base, stage)
        if not base:
            raise self.frontend.failed(
                f"base name ({stage.base}) should not be blank", stage.node.start, stage.node.end
            )
        for earlier in range(index - 1, -1, -1):
            if self.program.stages[earlier].name == base.lower():
                return earlier
        return base

    def stage_platform(self, index: int) -> str:
        """The platform of a stage: its own, or the one that is built for ("": not named). Raises SolveError."""
        stage = self.program.stages[index]
        if not stage.platform:
            return self.platform
        text = self._expand(stage.platform, stage)
        if not text:
            message = f"empty platform value from expression {stage.platform}"
            raise self.frontend.failed(message, stage.node.start, stage.node.end)
        try:
            return normal_platform(text)
        except EngineError as error:
            message = f"failed to parse platform {stage.platform}: {error.message.partition(': ')[2]}"
            raise self.frontend.failed(message, stage.node.start, stage.node.end) from None

    def replaced(self, index: int) -> tuple[str, str]:
        """The context that stands in for a whole stage, if there is one of its name."""
        name = self.program.stages[index].name
        return self.contexts.named(name, self.full_platform) if name else ("", "")

    @property
    def full_platform(self) -> str:
        from longshore.engine.build.buildkit.attributes import host_platform

        return self.platform or host_platform()

    def other(self, name: str, index: int) -> int | None:
        """The earlier stage that --from means."""
        found = next((i for i in range(index - 1, -1, -1) if self.program.stages[i].name == name.lower()), None)
        if found is None and name.isdigit() and int(name) < index:
            return int(name)
        return found

    @staticmethod
    def from_names(instruction: Instruction) -> list[str]:
        names = [instruction.flags["from"]] if instruction.flags.get("from") else []
        for text in instruction.lists.get("mount", ()):
            found = re.search(r"(?:^|,)from=([^,]+)", text)
            if found:
                names.append(found[1])
        return names

    def needed(self, target: int) -> list[int]:
        """The stages that the target needs, itself included, in order: the others are not built."""
        found: set[int] = set()
        todo = [target]
        while todo:
            index = todo.pop()
            if index in found:
                continue
            found.add(index)
            if self.replaced(index)[0]:
                continue
            base = self.base(index)
            if isinstance(base, int):
                todo.append(base)
            for instruction in [*self._triggers(index), *self.program.stages[index].instructions]:
                for name in self.from_names(instruction):
                    other = self.other(name, index)
                    if other is not None:
                        todo.append(other)
        return sorted(found)

    def _triggers(self, index: int) -> list[Instruction]:
        """What a stage's base has for those who build on it: an earlier stage's, or an image's once it is known.

        Raises SolveError.
        """
        stage = self.program.stages[index]
        base = None if self.replaced(index)[0] else self.base(index)
        texts: list[str] = []
        if isinstance(base, int):
            own = self.program.stages[base].instructions
            texts = [instruction.inner for instruction in own if instruction.command == "onbuild"]
        else:
            key = self._base_key(index)
            task = self._bases.get(key) if key is not None else None
            image = task.result() if task is not None and task.done() else None
            texts = list(image.run_config.get("OnBuild") or []) if image is not None else []
        found: list[Instruction] = []
        for text in texts:
            node = dockerfile.parse(text.encode()).nodes[0]
            try:
                found.append(instructions.parse_instruction(node))
            except DockerfileError as error:
                raise self.frontend.failed(error.message, stage.node.start, stage.node.end) from None
            node.start, node.end = stage.node.start, stage.node.end
        return found

    def uses(self, index: int) -> Iterator[tuple[str, str]]:
        """(context, path) of what a stage takes from the client: the main context is "", others have their session's names."""
        for kind, rest in (self.replaced(index), self._base_context(index)):
            if kind == "local":
                yield rest, "."
        if self.replaced(index)[0]:
            return
        for instruction in [*self._triggers(index), *self.program.stages[index].instructions]:
            if instruction.command == "onbuild":
                continue
            for name, path in used.sources(instruction):
                if not name:
                    yield "", path
                elif self.other(name, index) is None:
                    kind, rest = self.contexts.named(name, self.full_platform)
                    if kind == "local":
                        yield rest, path

    def _base_context(self, index: int) -> tuple[str, str]:
        base = self.base(index)
        return ("", "") if isinstance(base, int) else self.contexts.named(base, self.full_platform)

    # -- bases -----------------------------------------------------------------------------------------------------

    async def load_bases(self, *targets: int) -> list[int]:
        """Find the images that the targets' stages build on; those stages, in order. Raises SolveError."""
        while True:
            needed = sorted({index for target in targets for index in self.needed(target)})
            keys = {key: index for index in needed if (key := self._base_key(index)) is not None}
            if keys.keys() <= self._bases.keys():
                return needed
            for key, index in keys.items():
                if key not in self._bases:
                    self._bases[key] = asyncio.ensure_future(self._metadata(index))
            # What the bases have for those who build on them may need further stages.
            await asyncio.gather(*self._bases.values())

    def _base_key(self, index: int) -> tuple[str, str] | None:
        kind, rest = self.replaced(index)
        if kind:
            return (f"{kind}:{rest}", "") if kind in IMAGES else None
        base = self.base(index)
        if isinstance(base, int) or base == "scratch":
            return None
        return self.normal_name(base), self.stage_platform(index)

    @staticmethod
    def normal_name(name: str) -> str:
        """An image's name in its normal form (as it is, where it is none)."""
        try:
            return str(references.parse(name).with_default_tag())
        except references.InvalidReference:
            return name

    async def _metadata(self, index: int) -> Image | None:
        stage = self.program.stages[index]
        kind, rest = self.replaced(index)
        name = rest if kind else str(self.base(index))
        if not kind:
            kind, rest = self.contexts.named(name, self.full_platform)
            if kind and kind not in IMAGES:
                return None
        if kind == "oci-layout":
            context = self.program.stages[index].name if self.replaced(index)[0] else name
            return await self._layout(context, rest, index)
        where = f"[context {name}] load metadata for" if kind else "[internal] load metadata for"
        name = rest if kind else name
        try:
            shown = str(references.parse(name).with_default_tag())
        except references.InvalidReference as error:
            raise self.frontend.failed(
                f'failed to parse stage name "{name}": {error.message}', stage.node.start, stage.node.end
            ) from None
        with self.progress.vertex(f"{where} {shown}"):
            try:
                return await self.find(name, self.stage_platform(index))
            except EngineError as error:
                raise self.frontend.failed(f"{name}: failed to resolve source metadata for {shown}: {error.message}", stage.node.start, stage.node.end) from None  # fmt: skip

    async def _layout(self, name: str, rest: str, index: int) -> Image:
        stage = self.program.stages[index]
        try:
            return await self.contexts.layout_image(name, rest, self.stage_platform(index))
        except EngineError as error:
            raise self.frontend.failed(f"{name}: {error.message}", stage.node.start, stage.node.end) from None

    async def find(self, name: str, platform: str = "") -> Image:
        """An image from the store, else from its registry with the client's credentials. Raises EngineError."""
        if name == "scratch":
            return self.store.add(complete_config(self.store, {}, "", platform), "")
        if self.frontend.policies:
            asked = f"docker-image://{self.normal_name(name)}"
            other, _ = self.frontend.policies.evaluate(asked)
            name = name if other == asked else other.removeprefix("docker-image://")
        found = self.store.find(name, platform)
        fits = found is None or not platform or platform_matches(found, platform)
        if found is not None and fits and not self.options.pull:
            self.frontend.source(name, found)
            return found
        reference = references.parse(name).with_default_tag()
        auth = await self.frontend.session.credentials(reference.domain)
        # An image of another platform does not take the name from the one that is here.
        image = await self.store.pull(reference, auth=auth, platform=platform, named=fits)
        self.frontend.source(name, image)
        return image

    async def image(self, name: str) -> Image:
        """As find(), a context of that name first."""
        kind, rest = self.contexts.named(name, self.full_platform)
        if kind == "oci-layout":
            return await self.contexts.layout_image(name, rest, self.platform)
        return await self.find(rest if kind == "docker-image" else name, self.platform)

    def checked_base(self, index: int) -> Base | int | None:
        """What the build checks want to know of a stage's beginning; after load_bases()."""
        key = self._base_key(index)
        if key is None:
            base = self.base(index) if not self.replaced(index)[0] else "scratch"
            return base if isinstance(base, int) else None
        image = self._bases[key].result()
        if image is None:
            return None
        env = dict(entry.partition("=")[::2] for entry in image.run_config.get("Env") or [])
        return Base(env, bool(image.run_config.get("Shell")), shown_platform(image))

    # -- building --------------------------------------------------------------------------------------------------

    async def run(self, target: int, needed: list[int]) -> StageState:
        """Build; the target's state. Raises SolveError."""
        if self.options.labels and not self._labelled:
            self._labelled = True
            stage = copy.copy(self.program.stages[target])
            stage.instructions = [*stage.instructions, _label(self.options.labels, stage)]
            self.program = dataclasses.replace(self.program, stages=list(self.program.stages))
            self.program.stages[target] = stage
        for index in needed:
            self.tasks[index] = asyncio.ensure_future(self._stage(index))
        # The first failure ends the build; stages that wait for the failed one are not reported twice.
        await asyncio.wait(self.tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        for task in self.tasks.values():
            if task.done() and not task.cancelled() and task.exception() is not None:
                task.result()
        state = await self.tasks[target]
        if state.image is None:
            await Dispatcher(StageHost(self, target, 0), state).empty()
        return state

    async def _stage(self, index: int) -> StageState:
        stage = self.program.stages[index]
        state = StageState(self.arguments, stage.name, started=True)
        if self.replaced(index)[0]:
            await self._context_base(state, stage.name, *self.replaced(index), index=index)
            if self.recorder is not None:
                self.recorder.replaced(index)
            return state
        base = self.base(index)
        steps = [i for i in stage.instructions if i.command in _VERTICES]
        fresh = isinstance(base, str) and base != "scratch"
        host = StageHost(self, index, len(steps) + fresh)
        dispatcher = Dispatcher(host, state)
        if isinstance(base, int):
            below = await asyncio.shield(self.tasks[base])
            _inherit(state, below.image, below.config)
        elif base != "scratch":
            await self._from(host, state, base, index)
        # Every stage has a PATH, whatever its base says. Source: dockerfile2llb/convert.go.
        if not any(entry.startswith("PATH=") for entry in state.config.get("Env") or ()):
            state.config["Env"] = [*(state.config.get("Env") or ()), f"PATH={DEFAULT_PATH}"]
        state.config.pop("OnBuild", None)
        if self.recorder is not None:
            host.position = self.recorder.beginning(index, base, state.image)
        for instruction in [*self._triggers(index), *stage.instructions]:
            await self._wait_for(instruction, index)
            await self._instruction(host, dispatcher, instruction)
        if self.recorder is not None:
            self.recorder.positions[index] = host.position
        return state

    async def _wait_for(self, instruction: Instruction, index: int) -> None:
        for name in self.from_names(instruction):
            other = self.other(name, index)
            if other is not None:
                await asyncio.shield(self.tasks[other])

    async def _from(self, host: StageHost, state: StageState, base: str, index: int) -> None:
        """Begin a stage that builds on an image, or on a context of that name."""
        kind, rest = self.contexts.named(base, self.full_platform)
        shown = rest if kind == "docker-image" else self.normal_name(base)
        vertex = host.begin(f"FROM {shown}")
        image = self._bases[self._base_key(index)].result()  # type: ignore[index]
        # One base of several stages is one step, told once.
        context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if shown not in self._told:
            self._told.add(shown)
            context = vertex
        with context:
            if image is None:
                await self._context_base(state, base, kind, rest, index=index)
            else:
                vertex.cached = True
                _inherit(state, image, image.run_config)

    async def _context_base(self, state: StageState, name: str, kind: str, rest: str, *, index: int) -> None:
        """A stage that is a context: an image's, a definition's result, or files."""
        if kind in IMAGES:
            image = await self._bases[self._base_key(index)]  # type: ignore[index]
            assert image is not None
            _inherit(state, image, image.run_config)
            return
        with self.store.lease() as lease:
            if kind == "input":
                chain = await self.contexts.inputs.chain(rest)
                lease.add(chain)
                config = self.frontend.input_config(rest) or {}
            else:
                folder = await self.contexts.folder(name, kind, rest)
                root = StepRoot(self.store, "")

                def work(root: StepRoot) -> None:
                    Copier(Tree(folder), root.merged, Placement()).copy([Source("", True)], "/", into=True)

                layer = await Dispatcher(StageHost(self, index, 0), state).in_root(root, work, lease)
                chain, config = (layer.chain if layer else ""), {}
            image = self.store.add(complete_config(self.store, config, chain, self.platform), chain)
            _inherit(state, image, image.run_config)

    async def _instruction(self, host: StageHost, dispatcher: Dispatcher, instruction: Instruction) -> None:
        uses_context = (instruction.command in ("copy", "add") and not instruction.flags.get("from")) or (
            instruction.command == "run" and instruction.lists.get("mount")
        )
        if uses_context:
            await self.contexts.ready()
        host.lines = (instruction.line, instruction.node.end)
        try:
            if instruction.command in _VERTICES:
                with host.begin(shown_instruction(instruction, dispatcher.state.variables())):
                    await dispatcher.run(instruction)
            else:
                await dispatcher.run(instruction)
        except EngineError as error:
            raise self.frontend.failed(error.message, instruction.line, instruction.node.end, error) from None


def complete_config(store: Any, config: dict[str, Any], chain: str, platform: str) -> bytes:
    """An image's config for a stack of layers: what is missing of layers, history and platform is put there."""
    made = dict(config)
    diffs = [layer.diff for layer in reversed(store.layers.stack(chain))]
    parts = [*platform.split("/"), "", ""] if platform else ["", "", ""]
    fresh = make_config(None, {}, architecture=parts[1], variant=parts[2], system=parts[0] or "linux")
    for key in ("architecture", "os", "created", "config"):
        made.setdefault(key, fresh[key])
    history = list(made.get("history") or [])
    filled = [entry for entry in history if not entry.get("empty_layer")]
    while len(filled) > len(diffs):
        filled.pop()["empty_layer"] = True
    for entry in history:
        entry.setdefault("created", made["created"])
    history += [{"created": made["created"], "comment": "buildkit.exporter.image.v0"}] * (len(diffs) - len(filled))
    made["history"] = history
    made["rootfs"] = {"type": "layers", "diff_ids": diffs}
    return encode(made)


def shown_instruction(instruction: Instruction, values: Mapping[str, str]) -> str:
    """An instruction as a vertex's name, with the values of its variables; a here-document by its first line."""
    hidden = {
        found[1]: "****"
        for text in instruction.lists.get("mount", ())
        if "type=secret" in text and (found := re.search(r"(?:^|,)env=([^,]+)", text))
    }
    text = _with_values(instruction.original, {**values, **hidden})
    if instruction.heredocs and instruction.command == "run":
        first = instruction.heredocs[0].content.strip().split("\n")[0]
        more = "..." if instruction.heredocs[0].content.strip().count("\n") else ""
        text = f"{text} ({first}{more})"
    return text


def _with_values(text: str, values: Mapping[str, str]) -> str:
    """A line with the variables that have a value in their values' place; quotes and escapes stay as they are."""

    def value(found: re.Match[str]) -> str:
        name = found["name"] or found["braced"]
        return values.get(name, found[0]) if name else found[0]

    return re.sub(r"\\.|'[^']*'|\$(?P<name>[A-Za-z_]\w*)|\$\{(?P<braced>[A-Za-z_]\w*)\}", value, text)
