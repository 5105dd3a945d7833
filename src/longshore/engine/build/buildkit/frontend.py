"""The Dockerfile frontend (dockerfile.v0): what a client asked, its files, the stages of each platform, images.

Source of names and order: BuildKit frontend/dockerui, frontend/dockerfile/builder.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build import dockerfile, instructions
from longshore.engine.build.buildkit import requests, used
from longshore.engine.build.buildkit.attributes import options_of, platform_values, platforms_of
from longshore.engine.build.buildkit.contexts import Contexts
from longshore.engine.build.buildkit.definitions import Inputs
from longshore.engine.build.buildkit.policies import Policies
from longshore.engine.build.buildkit.progress import Progress
from longshore.engine.build.buildkit.session import Session
from longshore.engine.build.buildkit.stages import Stages
from longshore.engine.build.buildkit.steps import Steps
from longshore.engine.build.cache import Hold
from longshore.engine.build.checks import Checker, settings
from longshore.engine.build.dockerfile import DockerfileError
from longshore.engine.build.ignore import Ignore
from longshore.engine.build.instructions import Program
from longshore.engine.errors import EngineError, NotImplementedUpstream
from longshore.engine.images import references
from longshore.engine.images.model import Image

_IMAGES = ("docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream")

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.caches import Imported
    from longshore.engine.build.buildkit.failures import FailedStep
    from longshore.engine.build.buildkit.scanning import Attested, Scanner
    from longshore.engine.build.classic import Builder


def is_dockerfile(name: str) -> bool:
    """Whether a frontend's image is one of the Dockerfile frontend, whose part this module plays."""
    try:
        return references.parse(name).repository in _IMAGES
    except references.InvalidReference:
        return False


class SolveError(EngineError):
    """A build that failed, with where in which file. name, data: the file; start, end: its lines (0: nowhere).

    step: the command that failed, where it was one.
    """

    def __init__(self, message: str, name: str = "", data: bytes = b"", start: int = 0, end: int = 0) -> None:
        super().__init__(message)
        self.name, self.data, self.start, self.end = name, data, start, end
        self.step: FailedStep | None = None


class OtherFrontend(Exception):
    """A file that names another frontend's image. command: all that it says; line: where (0: the client said so)."""

    def __init__(self, source: str, command: str, line: int) -> None:
        super().__init__(source)
        self.source, self.command, self.line = source, command, line


@dataclass(slots=True)
class Outcome:
    """What a frontend made. images: (platform, image) each; multiple: an index is wanted; metadata: a request's answer."""

    images: list[tuple[str, Image]] = field(default_factory=list)
    multiple: bool = False
    metadata: dict[str, bytes] = field(default_factory=dict)


class Frontend:
    """One Dockerfile build. attributes: the client's; inputs: definitions that it gave; progress: where vertices go."""

    def __init__(
        self,
        builder: Builder,
        session: Session,
        attributes: Mapping[str, str],
        inputs: Inputs,
        progress: Progress,
        *,
        entitlements: set[str] | None = None,
        hold: Hold | None = None,
        policies: Policies | None = None,
    ) -> None:
        self.builder, self.session, self.progress = builder, session, progress
        self.hold = hold or Hold()
        self.policies = policies or Policies()
        self.attributes = dict(attributes)
        self.options = options_of(attributes)
        self.options.entitlements = entitlements or set()
        self.store, self.cache, self.runner = builder.store, builder.cache, builder.runner
        self.contexts = Contexts(self.store, session, self.attributes, inputs, progress, self.policies)
        self.program: Program
        # Steps of this build (key to image and words), and the images that it began with, for caches and provenance.
        self.records: dict[str, tuple[str, str]] = {}
        self.sources: dict[str, Image] = {}
        self.caches: list[Imported] = []
        # Whether the builds' steps are to be kept for provenance; each platform's, with the step that made its result.
        self.recording = False
        self.steps: dict[str, tuple[Steps, int | None]] = {}
        # Who scans results, and what was found in each platform's.
        self.scanner: Scanner | None = None
        self.scanned: dict[str, list[Attested]] = {}
        self._definition_vertex = ""

    @property
    def epoch(self) -> int | None:
        """The build's SOURCE_DATE_EPOCH."""
        text = self.options.arguments.get("SOURCE_DATE_EPOCH")
        return int(text) if text else None

    async def run(self) -> Outcome:
        """Build, or answer the client's request about the file. Raises SolveError."""
        builds: list[Stages] = []
        try:
            await self._definition()
            asked = self.attributes.get("requestid")
            if asked:
                return await self._request(asked, builds)
            platforms, multiple = platforms_of(self.attributes)
            for platform in platforms:
                builds.append(Stages(self, platform, told=multiple))
            return await self._build(builds, multiple)
        finally:
            for build in builds:
                await build.close()
            await self.contexts.close()

    def failed(self, message: str, start: int = 0, end: int = 0, error: EngineError | None = None) -> SolveError:
        if isinstance(error, SolveError):
            return error
        made = SolveError(message, self.contexts.file, self.contexts.data, start, end or start)
        made.step = getattr(error, "step", None)
        return made

    async def _definition(self) -> None:
        try:
            data = await self.contexts.definition()
        except EngineError as error:
            raise self.failed(error.message, error=error) from None
        try:
            self._check_syntax(data)
            self.program = instructions.parse(dockerfile.parse(data))
        except DockerfileError as error:
            message = error.message
            if not message.startswith(("dockerfile parse error", "failed to parse")):
                message = f"dockerfile parse error on line {error.line}: {message}" if error.line else message
            raise self.failed(message, error.line, error.end) from None
        self._check_origins()

    def _check_origins(self) -> None:
        """What is taken from elsewhere is known before anything is built: its name has no variables. Raises SolveError."""
        for instruction in (one for stage in self.program.stages for one in stage.instructions):
            if "$" in instruction.flags.get("from", ""):
                raise self.failed(
                    "variable expansion is not supported for --from, define a new stage with FROM using ARG from global "
                    "scope as a workaround",
                    instruction.line,
                )
            if any(re.search(r"(?:^|,)from=[^,]*\$", text) for text in instruction.lists.get("mount", ())):
                raise self.failed(
                    "'from' doesn't support variable expansion, define alias stage instead", instruction.line
                )

    def _check_syntax(self, data: bytes) -> None:
        """A file that is meant for another frontend is not taken for a Dockerfile of ours. Raises OtherFrontend."""
        if self.attributes.get("source") or "cmdline" in self.attributes:
            return
        name, line = self.options.arguments.get("BUILDKIT_SYNTAX") or "", 0
        if not name:
            name, line = dockerfile.syntax(data)
        if name and not is_dockerfile(name.split()[0]):
            raise OtherFrontend(name.split()[0], name, line)

    # -- checks ----------------------------------------------------------------------------------------------------

    def checker(self, ignored: list[str]) -> Checker:
        """The file's build checks, those that need no image done."""
        text = self.options.arguments.get("BUILDKIT_DOCKERFILE_CHECK")
        chosen = settings(text if text is not None else self.program.file.directives.get("check", ""))
        found = Checker(
            self.program,
            chosen,
            predefined=platform_values(
                platforms_of(self.attributes)[0][0], self.options.target or self.program.stages[-1].name
            ),
            given=self.options.arguments,
            ignored=Ignore(ignored) if ignored else None,
        )
        found.file()
        return found

    def _warn(self, checker: Checker) -> None:
        for found in checker.warnings:
            self.progress.warning(found, self.contexts.file, self.contexts.data)
        failure = checker.failure()
        if failure:
            raise self.failed(failure)

    # -- building --------------------------------------------------------------------------------------------------

    async def _build(self, builds: list[Stages], multiple: bool) -> Outcome:
        for build in builds:
            build.declare()
        if self.scanner is not None:
            await self.scanner.load()
        targets = [build.target() for build in builds]
        loading = (build.load_bases(target) for build, target in zip(builds, targets, strict=True))
        wanted = list(zip(builds, targets, await asyncio.gather(*loading), strict=True))
        ignored = await self.contexts.ignored()
        first, _, needed = wanted[0]
        checker = self.checker(ignored)
        checker.stages(needed, first.checked_base, first.full_platform)
        self._warn(checker)
        follow = self._sources([(build, needed) for build, _, needed in wanted])
        tasks = [asyncio.ensure_future(build.run(target, indices)) for build, target, indices in wanted]
        # The stages have begun when the context is asked for: people see their first steps first.
        await asyncio.sleep(0)
        if follow is None or follow:
            self.contexts.load(follow or [])
        try:
            states = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for build, target, _ in wanted:
            if build.recorder is not None:
                self.steps[build.full_platform] = build.recorder.steps, build.recorder.positions.get(target)
        if self.scanner is not None:
            for (build, target, needed), state in zip(wanted, states, strict=True):
                if state.image is not None:
                    self.scanned[build.full_platform] = await self.scanner.scan(build, target, needed, state.image)
        images = [
            (build.full_platform, state.image) for build, state in zip(builds, states, strict=True) if state.image
        ]
        return Outcome(images, multiple)

    def _sources(self, builds: list[tuple[Stages, list[int]]]) -> list[str] | None:
        """What of the main context the stages use: [] nothing, None everything. Those with names are told to the contexts."""
        found: dict[str, list[str]] = {"": []}
        for build, needed in builds:
            for index in needed:
                for place, path in build.uses(index):
                    found.setdefault(place, []).append(path)
        if self.scanner is not None and b"BUILDKIT_SBOM_SCAN_CONTEXT" in self.contexts.data:
            found[""].append(".")
        for place, paths in found.items():
            self.contexts.follow[place] = used.narrowed(paths)
        return self.contexts.follow[""]

    def source(self, name: str, image: Image) -> None:
        """An image that the build begins with."""
        self.sources[name] = image

    def input_config(self, name: str) -> dict[str, Any] | None:
        """The image config that a client gave with an input."""
        text = self.attributes.get(f"input-metadata:{name}")
        try:
            raw = orjson.loads(text)["containerimage.config"] if text else None
            config = orjson.loads(base64.b64decode(raw)) if raw else None
        except (ValueError, KeyError, TypeError):
            raise self.failed(f"failed to parse input metadata {text}") from None
        return config if isinstance(config, dict) else None

    async def imported(self, key: str, parent: str) -> Image | None:
        """A step that another cache has."""
        for cache in self.caches:
            found = await cache.get(key, parent)
            if found is not None:
                return found
        return None

    # -- requests --------------------------------------------------------------------------------------------------

    async def _request(self, asked: str, builds: list[Stages]) -> Outcome:
        name = self.contexts.file
        if asked == "frontend.subrequests.describe":
            return Outcome(metadata=requests.describe())
        if asked == "frontend.targets":
            return Outcome(metadata=requests.targets(self.program, self.contexts.data))
        build = Stages(self, platforms_of(self.attributes)[0][0], told=False)
        builds.append(build)
        build.declare()
        if asked == "frontend.outline":
            target = build.target()
            return Outcome(
                metadata=requests.outline(
                    self.program, build.needed(target), target, self.options.arguments, self.contexts.data
                )
            )
        if asked != "frontend.lint":
            raise NotImplementedUpstream(f"unsupported request {asked}")
        failure: SolveError | None = None
        checker = self.checker(await self.contexts.ignored())
        try:
            every = range(len(self.program.stages))
            wanted = await build.load_bases(*([build.target()] if self.options.target else every))
            checker.stages(wanted, build.checked_base, build.full_platform)
        except SolveError as error:
            failure = error
        return Outcome(metadata=requests.lint(checker.warnings, name, self.contexts.data, failure))
