"""The classic builder: POST /build. One step after the other, each an image; dockerd's stream of messages.

Source of the order, the texts and the history's wording: moby builder/dockerfile.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.build import dockerfile, git, instructions
from longshore.engine.build.cache import BuildCache, Hold
from longshore.engine.build.cachefrom import CacheFrom
from longshore.engine.build.context import Context, from_git, from_tar, from_url
from longshore.engine.build.dispatch import Dispatcher
from longshore.engine.build.instructions import Instruction, Program, Stage
from longshore.engine.build.options import BuildOptions
from longshore.engine.build.shell import ExpansionError, expand
from longshore.engine.build.state import Arguments, StageState
from longshore.engine.build.step import Runner
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure
from longshore.engine.images import references
from longshore.engine.images.model import Image

if TYPE_CHECKING:
    from longshore.engine.build.mounts import Wanted
    from longshore.engine.images.store import ImageStore

Emit = Callable[[dict[str, Any]], None]


class Builder:
    """Builds images into a store. runner: runs RUN's commands (runner.RuncRunner)."""

    def __init__(self, store: ImageStore, runner: Runner) -> None:
        self.store, self.runner = store, runner
        self.cache = BuildCache(store)

    async def build(self, body: AsyncIterable[bytes], options: BuildOptions, emit: Emit) -> str:
        """Build what a client sent; the image's id.

        body: the context as a tar (not read where options.remote is a URL). emit: takes the stream's messages.
        Raises EngineError: before the first message it is the response's status, after that the stream's error
        (running.StepFailed carries the exit code for errorDetail).
        """
        if options.version == "2":
            raise InvalidParameter("version 2 builds come through the BuildKit services")
        name = options.dockerfile
        repository = git.parse(options.remote) if options.remote else None
        if repository is not None:
            context = await from_git(self.store, repository, name)
        elif options.remote and options.remote != "client-session":
            context = await from_url(self.store, options.remote, name)
        else:
            context = await from_tar(self.store, body, name)
        hold = Hold()
        try:
            return await _Build(self, context, options, emit, hold).run()
        finally:
            hold.release()
            await asyncio.shield(context.close())


def load(data: bytes) -> Program:
    """Parse and check a Dockerfile. Raises InvalidParameter with dockerd's text."""
    try:
        file = dockerfile.parse(data)
    except dockerfile.DockerfileError as error:
        raise InvalidParameter(f"failed to parse Dockerfile: {error.message}") from None
    try:
        return instructions.parse(file)
    except dockerfile.DockerfileError as error:
        raise InvalidParameter(error.message) from None


class _Build:
    """One build under way."""

    buildkit = False

    def __init__(self, builder: Builder, context: Context, options: BuildOptions, emit: Emit, hold: Hold) -> None:
        self.hold = hold
        self.store, self.cache, self.runner = builder.store, builder.cache, builder.runner
        self.context, self.options = context, options
        self._emit = emit
        self.program = load(context.dockerfile)
        self.arguments = Arguments(options.arguments)
        self.done: list[StageState] = []
        self._from = CacheFrom(self.store, options.cache_from) if options.cache_from else None
        self._decoders = {
            1: codecs.getincrementaldecoder("utf-8")("replace"),
            2: codecs.getincrementaldecoder("utf-8")("replace"),
        }

    # -- messages ------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        if not self.options.quiet:
            self._emit({"stream": text})

    def hit(self) -> None:
        self.say(" ---> Using cache\n")

    def running(self, step: str) -> None:
        self.say(f" ---> Running in {step[:12]}\n")

    def removed(self, step: str) -> None:
        if self.options.remove:
            self.say(f" ---> Removed intermediate container {step[:12]}\n")

    async def secret(self, name: str) -> bytes | None:
        return None

    async def agent(self, name: str, path: Path) -> asyncio.Server | None:
        return None

    async def folder(self, name: str) -> Path | None:
        return None

    async def known(self, key: str, told: str, state: StageState) -> Image | None:
        found = self.cache.get(key)
        return found if self._from is None else self._from.find(found, state.image, told, state.config)

    def step(self, op: Callable[[], Mapping[str, Any]], origins: Sequence[str], wanted: Sequence[Wanted] = ()) -> None:
        return

    def source(self, identifier: str, attributes: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        return identifier, dict(attributes)

    def used(self, key: str, image: Image, told: str) -> None:
        self.hold.add(image.id)

    def output(self, number: int, data: bytes) -> None:
        """A command's output; errors in red, as dockerd colours them."""
        text = self._decoders[number].decode(data)
        if text:
            self.say(text if number == 1 else f"\x1b[91m{text}\x1b[0m")

    def progress(self, message: dict[str, Any]) -> None:
        if not self.options.quiet:
            self._emit(message)

    def warn(self, text: str) -> None:
        self.say(f"{text}\n")

    # -- the walk ------------------------------------------------------------------------------------------------

    async def run(self) -> str:
        stages = self._wanted()
        if self.options.labels:
            stages[-1].instructions.append(_label(self.options.labels, stages[-1]))
        total = len(self.program.arguments) + sum(1 + len(stage.instructions) for stage in stages)
        number = 0
        escape = self.program.file.escape
        for instruction in self.program.arguments:
            number += 1
            self._step(number, total, instruction.original)
            for name, default in instruction.pairs:
                try:
                    value = None if default is None else expand(default, self.arguments.meta_values(), escape)
                except ExpansionError as error:
                    raise InvalidParameter(f"failed to process arguments for ARG {name}: {error}") from None
                self.arguments.declare_meta(name, value)
        state = StageState(self.arguments)
        for stage in stages:
            state = StageState(self.arguments, stage.name)
            dispatcher = Dispatcher(self, state)
            number += 1
            self._step(number, total, stage.node.original)
            await self._begin(stage, state, dispatcher)
            self.say(f" ---> {state.image.short if state.image else ''}\n")
            for instruction in stage.instructions:
                number += 1
                self._step(number, total, instruction.original)
                await dispatcher.run(instruction)
                self.say(f" ---> {state.image.short if state.image else ''}\n")
            if state.image is None:
                raise InvalidParameter("No image was generated. Is your Dockerfile empty?")
            self.done.append(state)
            self._emit({"aux": {"ID": state.image.id}}) if not self.options.quiet else None
        image = state.image
        assert image is not None
        unused = self.arguments.unused()
        if unused:
            self.warn(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed")
        if self.options.quiet:
            self._emit({"stream": f"{image.id}\n"})
        self.store.sync(image.id)
        self.store.event("create", image.id)
        self.say(f"Successfully built {image.short}\n")
        for tag in self.options.tags:
            self.store.tag(image, tag)
            self.say(f"Successfully tagged {tag.familiar}\n")
        return image.id

    def _wanted(self) -> list[Stage]:
        target = self.options.target
        if not target:
            return self.program.stages
        index = self.program.stage(target)
        if index is None:
            raise InvalidParameter(f'target stage "{target}" could not be found')
        return self.program.stages[: index + 1]

    def _step(self, number: int, total: int, text: str) -> None:
        self.say(f"Step {number}/{total} : {text}")
        self.say("\n")

    async def _begin(self, stage: Stage, state: StageState, dispatcher: Dispatcher) -> None:
        """Begin a stage: its base image, and the triggers that the base carries."""
        try:
            base = expand(stage.base, self.arguments.meta_values(), self.program.file.escape)
        except ExpansionError as error:
            raise InvalidParameter(f'failed to process "{stage.base}": {error}') from None
        if not base:
            raise InvalidParameter(f"base name ({stage.base}) should not be blank")
        state.started = True
        if self._from is not None:
            self._from.begin()
        earlier = next((done for done in reversed(self.done) if done.name and done.name == base.lower()), None)
        if earlier is not None:
            _inherit(state, earlier.image, earlier.config)
            return
        if base == "scratch":
            from longshore.engine.runtime.spec import DEFAULT_PATH

            state.config = {"Env": [f"PATH={DEFAULT_PATH}"]}
            return
        image = await self.image(base)
        _inherit(state, image, image.run_config)
        triggers = list(state.config.pop("OnBuild", None) or [])
        if not triggers:
            return
        self.say(f"# Executing {len(triggers)} build trigger{'s' if len(triggers) > 1 else ''}")
        self.say("\n")
        for trigger in triggers:
            node = dockerfile.parse(trigger.encode()).nodes[0]
            try:
                instruction = instructions.parse_instruction(node)
            except dockerfile.DockerfileError as error:
                raise InvalidParameter(error.message) from None
            await dispatcher.run(instruction)

    async def image(self, name: str) -> Image:
        """An image for FROM or --from: from the store, else (or with --pull) from its registry. Raises EngineError."""
        found = self.store.find(name)
        if found is not None and not self.options.pull:
            return found
        try:
            reference = references.parse(name).with_default_tag()
        except references.InvalidReference:
            if found is not None:
                return found
            raise
        auth = self._auth(reference.domain)
        return await self.store.pull(reference, auth=auth, platform=self.options.platform, progress=self.progress)

    def _auth(self, domain: str) -> dict[str, str] | None:
        auths = self.options.auths
        keys = [domain, f"https://{domain}", f"http://{domain}", f"https://{domain}/v1/"]
        if domain == references.DEFAULT_DOMAIN:
            keys += ["https://index.docker.io/v1/", "index.docker.io"]
        return next((auths[key] for key in keys if key in auths), None)

    def stage_image(self, name: str) -> Image | None:
        """The image of an earlier stage by name or number. Raises InvalidParameter for the stage under way."""
        for done in reversed(self.done):
            if done.name and done.name == name.lower():
                return done.image
        if name.isdigit() and int(name) < len(self.done):
            return self.done[int(name)].image
        if name.isdigit() and int(name) == len(self.done):
            raise InvalidParameter(f"invalid from flag value {name}: refers to current build stage")
        return None

    @contextlib.contextmanager
    def failing(self, prefix: str) -> Any:
        """Errors of the block become the step's, with a prefix."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.strerror:
                raise SystemFailure(f"{prefix}{error.filename or ''}: {error.strerror.lower()}") from None
            raise SystemFailure(f"{prefix}{error}") from None
        except EngineError:
            raise


def _inherit(state: StageState, image: Image | None, config: dict[str, Any]) -> None:
    import copy

    state.image = image
    state.config = copy.deepcopy(config)
    state.author = str(image.config.get("author") or "") if image else ""


def _label(labels: dict[str, str], stage: Stage) -> Instruction:
    text = " ".join(f"{name}={value}" for name, value in sorted(labels.items()))
    node = dockerfile.Node("label", f"LABEL {text}", text, stage.node.start, stage.node.end, name="LABEL")
    # What the client gave is taken as it is: nothing in it is expanded.
    quoted = [(name, "'" + value.replace("'", "'\"'\"'") + "'") for name, value in sorted(labels.items())]
    return Instruction("label", node, pairs=[(name, value) for name, value in quoted])
