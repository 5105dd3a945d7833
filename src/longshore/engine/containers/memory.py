"""Containers that run out of memory, noticed when it happens and not when they end.

A container's monitor listens to the kernel and leaves a file in the bundle's folder. Source: conmon(8), `oom`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from longshore.machinery.inotify import Inotify, Mask

_FILE = "oom"
# The monitor makes its file in two places, which are one here.
_SAME = 0.5


class MemoryWatch:
    """Calls `told(id)` each time a watched container runs out of memory."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told
        self._inotify: Inotify | None = None
        self._last: dict[Path, float] = {}

    def watch(self, id: str, folder: Path) -> None:
        """Watch a container's bundle until the folder is removed.

        Where the kernel has no more watches to give, it is told when the container ends.
        """
        with contextlib.suppress(OSError):
            if self._inotify is None:
                self._inotify = Inotify()
            self._inotify.watch(folder, Mask.CREATE, lambda _, mask, name: self._changed(id, folder, mask, name))

    def forget(self, folder: Path) -> None:
        """The container has ended."""
        self._last.pop(folder, None)
        if self._inotify is not None:
            self._inotify.forget(folder)

    def _changed(self, id: str, folder: Path, mask: Mask, name: str) -> None:
        if not mask & Mask.CREATE or name != _FILE:
            return
        # So that the next time makes it anew.
        (folder / _FILE).unlink(missing_ok=True)
        at = time.monotonic()
        if at - self._last.get(folder, -_SAME) >= _SAME:
            self._last[folder] = at
            self._told(id)

    def close(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
