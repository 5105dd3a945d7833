"""Log files of plain lines on a machine: those of Longshore's own parts, and the API server's audit log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
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
class _File:
    path: Path
    fd: int
    inode: int
    position: int
    stream: Stream
    time: int = 0  # of the last line: what a traceback's lines have, which tell none


class LineFiles:
    """Follows the files of a folder into the store, from where it stood before.

    Subclasses tell which files, the key and labels of each file's stream, and the time of a line.
    """

    PATTERN = "*.log"

    def __init__(self, folder: Path, store: LogStore, node: str) -> None:
        self._folder = folder
        self._store = store
        self._node = node
        self._inotify = Inotify()
        self._files: dict[Path, _File] = {}
        self._checkpoints = {c.file: c for c in store.index.checkpoints()}
        self._timer: asyncio.TimerHandle | None = None

    def _labels(self, path: Path) -> tuple[str, dict[str, str]]:
        """Key and labels of a file's stream."""
        raise NotImplementedError

    @staticmethod
    def _time(line: bytes) -> int:
        """A line's time in nanoseconds. Raises ValueError: it tells none."""
        raise NotImplementedError

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
        for path in sorted(self._folder.glob(self.PATTERN)):
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
        file = self._files.get(path)
        inode = path.stat().st_ino
        if file is not None and file.inode != inode:
            self._take(file)  # what the old file said at last
            os.close(file.fd)
            file = None
        if file is None:
            key, labels = self._labels(path)
            stream = self._store.stream(key, {**labels, "node": self._node})
            before = self._checkpoints.get(str(path))
            position = before.position if before and before.inode == inode else 0
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            file = self._files[path] = _File(path, fd, inode, position, stream)
        if os.fstat(file.fd).st_size < file.position:
            file.position = 0  # truncated in place
        return self._take(file)

    def _take(self, file: _File) -> bool:
        data = os.pread(file.fd, READ_SIZE, file.position)
        end = data.rfind(b"\n") + 1
        if end == 0:
            if len(data) < LONGEST_LINE:
                return False
            end = len(data)
        file.position += end
        records = [self._record(file, line) for line in data[:end].split(b"\n") if line]
        checkpoint = Checkpoint(str(file.path), file.inode, file.position)
        self._store.append(file.stream, b"".join(records), checkpoint)
        return len(data) == READ_SIZE

    def _record(self, file: _File, line: bytes) -> bytes:
        try:
            file.time = self._time(line)
        except ValueError:
            file.time = file.time or time.time_ns()
        return crilog.format_line(file.time, b"stderr", line)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._inotify.close()
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()


class PartLogs(LineFiles):
    """`<data>/logs/PART.log` as the streams `{job="longshore", part=PART}`."""

    def _labels(self, path: Path) -> tuple[str, dict[str, str]]:
        return f"part/{path.stem}", {"job": "longshore", "part": path.stem}

    @staticmethod
    def _time(line: bytes) -> int:
        return crilog.parse_time(line[: line.find(b" ")])


_STAGE_TIME = re.compile(rb'"stageTimestamp":"([^"]+)"')


class AuditLog(LineFiles):
    """The API server's audit log, a JSON audit.k8s.io Event a line, as the stream `{job="audit"}`."""

    PATTERN = "audit.log"

    def _labels(self, path: Path) -> tuple[str, dict[str, str]]:
        return f"audit/{path.stem}", {"job": "audit"}

    @staticmethod
    def _time(line: bytes) -> int:
        found = _STAGE_TIME.search(line)
        if found is None:
            raise ValueError("no stageTimestamp")
        return crilog.parse_time(found[1])
