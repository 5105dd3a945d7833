"""The logs of Longshore's own parts: plain lines in `<data>/logs/PART.log`, each a stream `{job="longshore", part=PART}`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from longshore.machinery.inotify import Inotify, Mask
from longshore.node.logs.store.index import Checkpoint, Stream
from longshore.node.logs.store.store import LogStore
from longshore.wire import crilog

log = logging.getLogger("longshore.logs.parts")

READ_SIZE = 512 * 1024
COALESCE_SECONDS = 0.2
LONGEST_LINE = 64 * 1024


@dataclass(slots=True, eq=False)
class _Part:
    path: Path
    fd: int
    inode: int
    position: int
    stream: Stream
    time: int = 0  # of the last line: what a traceback's lines have, which tell none


class PartLogs:
    """Follows the parts' log files of one machine into the store, from where it stood before."""

    def __init__(self, folder: Path, store: LogStore, node: str) -> None:
        self._folder = folder
        self._store = store
        self._node = node
        self._inotify = Inotify()
        self._parts: dict[Path, _Part] = {}
        self._checkpoints = {c.file: c for c in store.index.checkpoints()}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch, and read what is there already."""
        self._folder.mkdir(parents=True, exist_ok=True)
        mask = Mask.CREATE | Mask.MODIFY | Mask.MOVED_TO | Mask.ONLYDIR
        self._inotify.watch(self._folder, mask, lambda *_: self._soon())
        self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_SECONDS, self._read_all)

    def _read_all(self) -> None:
        self._timer = None
        more = False
        for path in sorted(self._folder.glob("*.log")):
            if self._store.full:
                self._store.on_room(self._soon)
                return
            try:
                more = self._read(path) or more
            except OSError as error:
                log.debug("cannot read %s: %s", path, error)
        if more:
            self._soon()

    def _read(self, path: Path) -> bool:
        """Read on in one file. Returns whether there is more."""
        part = self._parts.get(path)
        inode = path.stat().st_ino
        if part is not None and part.inode != inode:
            self._take(part)  # what the old file said at last
            os.close(part.fd)
            part = None
        if part is None:
            labels = {"job": "longshore", "part": path.stem, "node": self._node}
            stream = self._store.stream(f"part/{path.stem}", labels)
            before = self._checkpoints.get(str(path))
            position = before.position if before and before.inode == inode else 0
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            part = self._parts[path] = _Part(path, fd, inode, position, stream)
        if os.fstat(part.fd).st_size < part.position:
            part.position = 0  # truncated in place
        return self._take(part)

    def _take(self, part: _Part) -> bool:
        data = os.pread(part.fd, READ_SIZE, part.position)
        end = data.rfind(b"\n") + 1
        if end == 0:
            if len(data) < LONGEST_LINE:
                return False
            end = len(data)
        part.position += end
        records = [self._record(part, line) for line in data[:end].split(b"\n") if line]
        checkpoint = Checkpoint(str(part.path), part.inode, part.position)
        self._store.append(part.stream, b"".join(records), checkpoint)
        return len(data) == READ_SIZE

    @staticmethod
    def _record(part: _Part, line: bytes) -> bytes:
        try:
            part.time = crilog.parse_time(line[: line.find(b" ")])
        except ValueError:
            part.time = part.time or time.time_ns()
        return crilog.format_line(part.time, b"stderr", line)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._inotify.close()
        for part in self._parts.values():
            os.close(part.fd)
        self._parts.clear()
