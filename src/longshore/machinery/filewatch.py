"""Files that are read again when their content changes: configuration, certificates, keys.

The folder of each is watched (inotify), so that a file that is written in place, one that is renamed over it and a
symbolic link that is swapped (a mounted Secret's ..data) are all seen. Nothing is polled.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from .inotify import Inotify, Mask

log = logging.getLogger("longshore.filewatch")
_EVENTS = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.CREATE | Mask.DELETE
_SETTLE_SECONDS = 0.1
Changed = Callable[[], Awaitable[None]]


class FileWatch:
    """Files and what to call when one of them has another content. Belongs to the running loop."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._watched: list[tuple[Sequence[Path], Changed]] = []
        self._digests: dict[Path, bytes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def add(self, files: Sequence[Path], changed: Changed) -> None:
        """Call `changed` when the content of any of the files changes. What it raises is logged."""
        if self._inotify is None:
            try:
                self._inotify = Inotify()
            except OSError as error:  # a machine has few of them (fs.inotify.max_user_instances)
                log.warning("%s: not read again when changed: %s", ", ".join(map(str, files)), error)
                return
        for file in files:
            self._inotify.watch(file.parent, _EVENTS, lambda *event: self._soon())
            self._digests[file] = _digest(file) or b""
        self._watched.append((files, changed))

    def _soon(self) -> None:
        """Writers touch several files one after the other: look when they have done."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = asyncio.create_task(self._compare(), name="filewatch")

    async def _compare(self) -> None:
        changed = set()
        for file, before in self._digests.items():
            now = _digest(file)
            if now is not None and now != before:  # a file that is gone for a moment is on its way back
                self._digests[file] = now
                changed.add(file)
        for files, call in self._watched:
            if not changed.isdisjoint(files):
                try:
                    await call()
                except Exception:
                    log.exception("%s changed", ", ".join(map(str, files)))
        if self._again:
            self._again = False
            self._soon()

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


def _digest(file: Path) -> bytes | None:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return None
