"""A stage as its instructions see it: what it shares with its build, and the vertex of each step."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.build.buildkit.contexts import IMAGES
from longshore.engine.build.buildkit.progress import Vertex
from longshore.engine.errors import InvalidParameter
from longshore.engine.images.model import Image

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.stages import Stages
    from longshore.engine.build.mounts import Wanted
    from longshore.engine.build.state import StageState


class StageHost:
    """A stage as its instructions see it: shared things from the build, messages to the step's vertex."""

    buildkit = True

    def __init__(self, stages: Stages, index: int, total: int) -> None:
        self._stages, self._index, self._total = stages, index, total
        frontend = stages.frontend
        self._frontend = frontend
        self._number = 0
        self._vertex: Vertex | None = None
        # The step (of frontend.steps) that the stage has come to, None: nothing yet, or nobody wants to know.
        self.position: int | None = None
        self.lines = (0, 0)
        self._recorded = False
        self.store, self.cache, self.runner = frontend.store, frontend.cache, frontend.runner
        self.options, self.program, self.context = stages.options, stages.program, frontend.contexts.main
        every = stages.program.stages
        mounts = any(instruction.lists.get("mount") for instruction in every[index].instructions)
        name = every[index].name or f"stage-{index}"
        self._prefix = stages._prefix + ("" if len(every) == 1 and not mounts else f"{name} ")

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
        return await self._stages.image(name)

    def stage_image(self, name: str) -> Image | None:
        other = self._stages.other(name, self._index)
        if other is not None:
            return self._stages.tasks[other].result().image
        every = self._stages.program.stages
        if any(stage.name == name.lower() for stage in every[self._index + 1 :]):
            here = every[self._index].name
            raise InvalidParameter(
                f'cannot copy from stage "{name}", it needs to be defined before current stage "{here}"'
            )
        return None

    async def folder(self, name: str) -> Path | None:
        if self._stages.other(name, self._index) is not None:
            return None
        kind, rest = self._stages.contexts.named(name, self._stages.full_platform)
        if not kind or kind in IMAGES:
            return None
        return await self._stages.contexts.folder(name, kind, rest)

    def step(self, op: Callable[[], Mapping[str, Any]], origins: Sequence[str], wanted: Sequence[Wanted] = ()) -> None:
        recorder = self._stages.recorder
        if recorder is None:
            return
        recorder.steps.asked(wanted)
        before = recorder.nothing() if self.position is None else self.position
        inputs = [before, *(recorder.origin(name, self._index) for name in origins)]
        self.position = recorder.steps.add(op(), inputs, self.lines)
        self._recorded = True

    def source(self, identifier: str, attributes: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        return self._frontend.policies.evaluate(identifier, attributes)

    async def secret(self, name: str) -> bytes | None:
        return await self._frontend.session.secret(name)

    async def agent(self, name: str, path: Path) -> asyncio.Server | None:
        return await self._frontend.session.agent(name, path)

    async def known(self, key: str, told: str, state: StageState) -> Image | None:
        below = state.image.id if state.image else ""
        return self.cache.get(key) or await self._frontend.imported(key, below)

    def used(self, key: str, image: Image, told: str) -> None:
        self._frontend.hold.add(image.id)
        if self._recorded and self.position is not None and self._stages.recorder is not None:
            self._stages.recorder.steps.made(self.position, image.id)
        self._frontend.records[key] = (image.id, told[:200])
