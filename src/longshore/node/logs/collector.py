"""Collects container logs: follows every CRI log file below the pods' log folder into the store.

Layout (kubelet): <pods>/<namespace>_<pod>_<uid>/<container>/<restart>.log, with rotated files beside it. inotify tells
what has grown; the file is the buffer, and the store's checkpoint tells where to go on after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longshore.machinery.inotify import Inotify, Mask
from longshore.node.logs.store.index import Checkpoint, Stream
from longshore.node.logs.store.store import LogStore

log = logging.getLogger("longshore.logs.collector")

READ_SIZE = 256 * 1024
#: Writes that come close together are read together.
COALESCE_SECONDS = 0.02
#: After what could not be stored.
FAILED_SECONDS = 5.0
#: A record that never ends is cut here, as the runtime itself cuts at 16 KiB.
LONGEST_RECORD = 1024 * 1024

#: (namespace, pod, uid, container) -> further labels of the stream.
Describe = Callable[[str, str, str, str], dict[str, str]]


@dataclass(slots=True, eq=False)
class Tail:
    """One log file being followed: by its descriptor, so that a rename does not lose it."""

    path: Path
    fd: int
    inode: int
    position: int
    stream: Stream

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(str(self.path), self.inode, self.position)


class Collector:
    """Follows the log files of one node.

    pods: the pods' log folder; node: this node's name; describe: labels beyond what the path tells.
    """

    def __init__(self, pods: Path, store: LogStore, node: str, describe: Describe | None = None) -> None:
        self._pods = pods
        self._store = store
        self._node = node
        self._describe = describe or (lambda *_: {})
        self._inotify = Inotify()
        self._tails: dict[int, Tail] = {}
        self._dirty: set[Path] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._waiting = False
        self._checkpoints = {c.inode: c for c in store.index.checkpoints() if c.inode}  # 0: the journal's
        self.bytes_read = 0

    @property
    def files(self) -> int:
        """How many files are followed."""
        return len(self._tails)

    def start(self) -> None:
        """Begin to watch, and read what is there already."""
        self._pods.mkdir(parents=True, exist_ok=True)
        mask = Mask.CREATE | Mask.MOVED_TO | Mask.ONLYDIR
        self._inotify.watch(
            self._pods, mask, lambda path, _, name: self._pod_appeared(path / name) if name else self._scan()
        )
        self._scan()
        gone = {c.file for c in self._checkpoints.values()} - {str(t.path) for t in self._tails.values()}
        with contextlib.suppress(OSError):  # a full disk: at the next start, then
            self._store.index.forget_checkpoints(file for file in gone if not os.path.exists(file))

    def _scan(self) -> None:
        for pod in self._pods.iterdir():
            self._pod_appeared(pod)

    def _pod_appeared(self, pod: Path) -> None:
        if not pod.is_dir() or pod.name.count("_") < 2:
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mask = Mask.CREATE | Mask.MOVED_TO | Mask.ONLYDIR
            self._inotify.watch(
                pod, mask, lambda path, _, name: self._container_appeared(path / name) if name else None
            )
            for container in pod.iterdir():
                self._container_appeared(container)

    def _container_appeared(self, container: Path) -> None:
        if not container.is_dir():
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mask = Mask.CREATE | Mask.MOVED_TO | Mask.MODIFY | Mask.DELETE | Mask.MOVED_FROM | Mask.ONLYDIR
            self._inotify.watch(container, mask, lambda path, _mask, _name: self._grew(path))
            self._grew(container)

    def _grew(self, container: Path) -> None:
        self._dirty.add(container)
        if self._wake is None and not self._waiting:
            self._wake = asyncio.get_running_loop().call_later(COALESCE_SECONDS, self._read_dirty)

    def _read_dirty(self) -> None:
        self._wake = None
        dirty, self._dirty = self._dirty, set()
        pause = 0.0
        for container in dirty:
            try:
                more = self._store.full or self._read_container(container)
            except OSError as error:  # a new stream cannot be written to a full disk: its file keeps the lines
                if not pause:
                    log.warning("%s is not read yet, perhaps others too: %s", container, error)
                more, pause = True, FAILED_SECONDS
            if more:
                self._dirty.add(container)
        if not self._dirty:
            return
        if self._store.full:
            self._waiting = True
            self._store.on_room(self._room)
        else:
            self._wake = asyncio.get_running_loop().call_later(pause, self._read_dirty)

    def _room(self) -> None:
        self._waiting = False
        self._read_dirty()

    def _read_container(self, container: Path) -> bool:
        """Read on in every file of a container's folder, oldest first. Returns whether there is more to read."""
        self._open_new(container)
        more = False
        for tail in sorted((t for t in self._tails.values() if t.path.parent == container), key=_age):
            more = self._read(tail) or more
            if not more and not tail.path.exists():
                # The file is gone and read to its end: keep what it said, let go of it.
                self._close(tail)
        return more

    def _open_new(self, container: Path) -> None:
        try:
            names = [n for n in os.listdir(container) if ".log" in n and not n.endswith((".gz", ".tmp"))]
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            path = container / name
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            inode = os.fstat(fd).st_ino
            known = self._tails.get(inode)
            if known:
                os.close(fd)
                known.path = path
                continue
            try:
                stream = self._stream(container)
            except OSError:
                os.close(fd)
                raise
            before = self._checkpoints.get(inode)
            size = os.fstat(fd).st_size
            position = before.position if before and before.position <= size else 0
            self._tails[inode] = Tail(path, fd, inode, position, stream)

    def _stream(self, container: Path) -> Stream:
        namespace, pod, uid = container.parent.name.split("_", 2)
        labels = {
            "namespace": namespace,
            "pod": pod,
            "container": container.name,
            "node": self._node,
            **self._describe(namespace, pod, uid, container.name),
        }
        return self._store.stream(f"{namespace}/{pod}/{uid}/{container.name}", labels)

    def renew(self, namespace: str, pod: str, uid: str) -> None:
        """What `describe` says of a pod may have changed: give its streams their labels anew."""
        folder = f"{namespace}_{pod}_{uid}"
        for tail in self._tails.values():
            if tail.path.parent.parent.name == folder:
                tail.stream = self._stream(tail.path.parent)

    def _read(self, tail: Tail) -> bool:
        """Read one piece of whole records. Returns whether there may be more."""
        try:
            data = os.pread(tail.fd, READ_SIZE, tail.position)
        except OSError as error:
            log.warning("cannot read %s: %s", tail.path, error)
            return False
        if not data:
            if os.fstat(tail.fd).st_size < tail.position:
                tail.position = 0  # truncated in place: begin again
                return True
            return False
        end = data.rfind(b"\n") + 1
        if end == 0:
            if len(data) < LONGEST_RECORD:
                return False  # the record is still being written
            end = len(data)
        tail.position += end
        self.bytes_read += end
        self._store.append(tail.stream, data[:end], tail.checkpoint())
        return len(data) == READ_SIZE

    def _close(self, tail: Tail) -> None:
        self._tails.pop(tail.inode, None)
        os.close(tail.fd)
        self._store.flush(tail.stream.id)

    def close(self) -> None:
        """Stop watching. The store's checkpoints tell where to go on."""
        if self._wake:
            self._wake.cancel()
        self._inotify.close()
        for tail in self._tails.values():
            os.close(tail.fd)
        self._tails.clear()


def _age(tail: Tail) -> tuple[int, int]:
    """Rotated files before the file they were rotated from, restarts in their order."""
    number = tail.path.name.split(".", 1)[0]
    rotated = 0 if not tail.path.name.endswith(".log") else 1
    return (int(number) if number.isdigit() else 0, rotated)
