"""What one platform's build does, step by step, for provenance that tells all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from longshore.engine.build.buildkit.steps import Steps

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.stages import Stages
    from longshore.engine.images.model import Image

_REMOTE = re.compile(r"https?://|git://|git@|ssh://")


class Recorder:
    """Fills the steps of a build. positions: the last step of each stage."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self.steps = Steps()
        self.positions: dict[int, int | None] = {}

    def _lines(self, index: int) -> tuple[int, int]:
        node = self._stages.program.stages[index].node
        return node.start, node.end

    def nothing(self) -> int:
        """The step that an empty root is."""
        return self.steps.source("scratch", platform=self._stages.full_platform)

    def beginning(self, index: int, base: int | str, image: Image | None) -> int | None:
        """The step that a stage begins with; None: an empty root."""
        if base == "scratch":
            return None
        if isinstance(base, int):
            return self.positions.get(base)
        return self._source(base, self._lines(index), image)

    def replaced(self, index: int) -> None:
        """A context has taken a whole stage's place."""
        self.positions[index] = self._source(self._stages.program.stages[index].name, self._lines(index))

    def _source(self, name: str, lines: tuple[int, int] = (0, 0), image: Image | None = None) -> int:
        """The step that an image, or a context of that name, is."""
        stages = self._stages
        kind, rest = stages.contexts.named(name, stages.full_platform)
        if kind and kind != "docker-image":
            return self.steps.source(rest if kind in ("git", "http") else f"{kind}://{rest}", lines=lines)
        name = rest if kind else name
        shown, found = stages.normal_name(name), image or stages.frontend.sources.get(name)
        digests = [known.digest for known in stages.store.names(found.id) if known.digest] if found else []
        at = f"@{digests[0] if digests else found.id}" if found and "@" not in shown else ""
        number = self.steps.source(f"docker-image://{shown}{at}", platform=stages.full_platform, lines=lines)
        if found is not None:
            self.steps.made(number, found.id)
        return number

    def origin(self, name: str, index: int) -> int:
        """The step that a further input of one comes from: a stage's, a context's, an image's or a URL's."""
        stages = self._stages
        if not name:
            if stages.contexts.local:
                return self.steps.source("local://context", {"local.sharedkeyhint": "context"})
            return self.steps.source(stages.frontend.attributes.get("context") or "input:context")
        other = stages.other(name, index)
        if other is not None:
            found = self.positions.get(other)
            return self.nothing() if found is None else found
        return self.steps.source(name) if _REMOTE.match(name) else self._source(name)
