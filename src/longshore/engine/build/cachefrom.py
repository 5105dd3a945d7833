"""The classic builder's cache with `cache_from`: only steps that the named images are made of.

An image that was pulled or loaded knows no parents: its steps are found again by its history, and are made images here.
Source: moby daemon/internal/image/cache/cache.go, builder/dockerfile/imageprobe.go.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from longshore.engine.images.model import Image, encode

if TYPE_CHECKING:
    from longshore.engine.images.store import ImageStore


class CacheFrom:
    """The images that a build may take steps from. names: those that are not there are left out."""

    def __init__(self, store: ImageStore, names: Iterable[str]) -> None:
        self._store = store
        self._all = [image for name in names if (image := store.find(name)) is not None]
        self._sources = list(self._all)
        self._missed = False

    def begin(self) -> None:
        """A new stage begins: what an earlier one missed does not matter to it."""
        self._sources, self._missed = list(self._all), False

    def find(self, local: Image | None, below: Image | None, told: str, config: dict[str, Any]) -> Image | None:
        """The image of a step, None where it must be made, and with it all that follow in the stage.

        local: what this engine's own cache has for it; below: the image before; told: the step in the history's words;
        config: the run configuration that it leaves.
        """
        if self._missed:
            return None
        if local is not None and any(local.id in self._ancestors(source) for source in self._sources):
            return local
        for source in self._sources:
            found = self._step_of(source, below, told, config)
            if found is not None:
                return found
        self._missed = True
        return None

    def _ancestors(self, image: Image) -> set[str]:
        found: set[str] = set()
        current: Image | None = image
        while current is not None and current.parent and current.parent not in found:
            found.add(current.parent)
            current = self._store.get(current.parent)
        return found

    def _step_of(self, source: Image, below: Image | None, told: str, config: dict[str, Any]) -> Image | None:
        history = list(source.config.get("history") or [])
        before = list(below.config.get("history") or []) if below is not None else []
        if len(history) <= len(before) or history[: len(before)] != before:
            return None
        diffs = below.diff_ids if below is not None else []
        step = history[len(before)]
        if list(source.diff_ids[: len(diffs)]) != list(diffs) or step.get("created_by") != told:
            return None
        parent = below.id if below is not None else ""
        if len(history) == len(before) + 1:
            return self._store.add(source.raw, source.chain, parent=parent)
        # Another step of that image would be another way: from here on only this one is followed.
        self._sources = [source]
        count = len(diffs) + (0 if step.get("empty_layer") else 1)
        stack = list(reversed(self._store.layers.stack(source.chain)))
        made = {
            "architecture": source.config.get("architecture"),
            "config": copy.deepcopy(config),
            "created": step.get("created"),
            "history": history[: len(before) + 1],
            "os": source.config.get("os"),
            "rootfs": {"type": "layers", "diff_ids": list(source.diff_ids[:count])},
        }
        for key in ("author", "variant", "os.features", "os.version"):
            if source.config.get(key):
                made[key] = source.config[key]
        return self._store.add(encode(made), stack[count - 1].chain if count else "", parent=parent, durable=False)
