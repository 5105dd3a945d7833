"""in_tail: files followed over rotations, from the positions in `pos_file`."""

from __future__ import annotations

import asyncio
import glob
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from longshore.machinery.inotify import Inotify, Mask
from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.parsers import make_parser
from longshore.node.logs.fluentd.plugin import Source
from longshore.node.logs.fluentd.settings import Field, array, boolean, seconds, string
from longshore.wire.forward import Event

if TYPE_CHECKING:
    from longshore.node.logs.fluentd.pipeline import Context

log = logging.getLogger("longshore.fluentd.tail")
READ_SIZE = 256 * 1024


class TailSource(Source):
    """Follows files; `pos_file` tells where to go on, and moves on after the events are kept."""

    NAME = "tail"
    SEVERAL = False
    FIELDS = {
        "path": Field(array, None, True),
        "exclude_path": Field(array, []),
        "tag": Field(string, None, True),
        "pos_file": Field(string, ""),
        "read_from_head": Field(boolean, False),
        "refresh_interval": Field(seconds, 60.0),
        "path_key": Field(string, ""),
        "emit_unmatched_lines": Field(boolean, False),
    }
    SECTIONS = frozenset({"parse"})

    def __init__(self, element: Element, context: Context) -> None:
        super().__init__(element, context)
        section = element.one("parse")
        if section is None:
            raise element.error("<parse> section is required")
        self._parse, self._first = make_parser(section)
        self._files: dict[str, tuple[int, int]] = {}  # path -> inode, position
        self._fds: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._inotify: Inotify | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        if self.set["pos_file"] and os.path.exists(self.set["pos_file"]):
            with open(self.set["pos_file"], encoding="utf-8") as file:
                for line in file:
                    path, position, inode = line.rstrip("\n").rsplit("\t", 2)
                    self._files[path] = (int(inode, 16), int(position, 16))
        self._inotify = Inotify()
        self._task = asyncio.ensure_future(self._run())

    def _find(self) -> list[str]:
        found = {name for path in self.set["path"] for name in glob.glob(time.strftime(path), recursive=True)}
        found -= {name for path in self.set["exclude_path"] for name in glob.glob(path, recursive=True)}
        return sorted(name for name in found if os.path.isfile(name))

    async def _run(self) -> None:
        first = True
        while True:
            self._changed.clear()
            paths = self._find()
            more = False
            for path in paths:
                if self._inotify:
                    mask = Mask.CREATE | Mask.MODIFY | Mask.MOVED_TO | Mask.ONLYDIR
                    self._inotify.watch(Path(path).parent, mask, lambda *_: self._changed.set())
                try:
                    more = await self._read(path, head=self.set["read_from_head"] or not first) or more
                except OSError as error:
                    log.warning("%s: %s: %s", self.id, path, error)
                    await asyncio.sleep(1)
                    more = True
            first = False
            if more:
                continue
            try:
                async with asyncio.timeout(self.set["refresh_interval"]):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _read(self, path: str, *, head: bool) -> bool:
        """Read on in one file. Returns whether there is more."""
        inode = os.stat(path).st_ino
        known = self._files.get(path)
        fd = self._fds.get(path)
        if fd is not None and known and known[0] != inode:
            if await self._piece(path, fd):  # what the rotated file said at last
                return True
            os.close(self._fds.pop(path))
            fd = None
        if fd is None:
            fd = self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if known is None or known[0] != inode:
                size = os.fstat(fd).st_size
                self._files[path] = (inode, 0 if head or known else size)
                self._save()
        if os.fstat(fd).st_size < self._files[path][1]:
            self._files[path] = (inode, 0)
        return await self._piece(path, fd)

    async def _piece(self, path: str, fd: int) -> bool:
        inode, position = self._files[path]
        data = os.pread(fd, READ_SIZE, position)
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) < READ_SIZE:
            return False
        end = end or len(data)
        lines = data[:end].decode("utf-8", "replace").split("\n")
        if lines and not lines[-1]:
            lines.pop()
        if self._first is not None:
            lines, held = self._join(lines)
            if held and len(lines) > 1 and len(data) == READ_SIZE:
                end -= len(held.encode()) + 1  # the last event may go on in the next piece
                lines.pop()
        events = [event for line in lines if line for event in self._event(line, path)]
        keeping = asyncio.ensure_future(self._keep(path, events, (inode, position + end)))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await keeping  # what is kept is behind the position: nothing comes twice after an orderly end
            raise
        return len(data) == READ_SIZE

    async def _keep(self, path: str, events: list[Event], place: tuple[int, int]) -> None:
        if events:
            await self.emit(self._tag(path), events)
        self._files[path] = place
        self._save()

    def _join(self, lines: list[str]) -> tuple[list[str], str]:
        joined: list[str] = []
        for line in lines:
            if joined and self._first is not None and not self._first.search(line):
                joined[-1] += "\n" + line
            else:
                joined.append(line)
        return joined, joined[-1] if joined else ""

    def _event(self, line: str, path: str) -> list[Event]:
        event = self._parse(line)
        if event is None:
            if not self.set["emit_unmatched_lines"]:
                log.warning("%s: pattern not matched: %r", self.id, line[:200])
                return []
            event = (time.time_ns(), {"unmatched_line": line})
        if self.set["path_key"]:
            event[1][self.set["path_key"]] = path
        return [event]

    def _tag(self, path: str) -> str:
        tag: str = self.set["tag"]
        return tag.replace("*", path.strip("/").replace("/", ".")) if "*" in tag else tag

    def _save(self) -> None:
        if not self.set["pos_file"]:
            return
        name = self.set["pos_file"]
        os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
        with open(name + ".new", "w", encoding="utf-8") as file:
            file.writelines(
                f"{path}\t{position:016x}\t{inode:016x}\n" for path, (inode, position) in self._files.items()
            )
        os.replace(name + ".new", name)

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._inotify:
            self._inotify.close()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
