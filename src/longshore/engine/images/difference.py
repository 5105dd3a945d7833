"""What one tree has otherwise than another, as a layer: added and changed entries, whiteouts for what is gone.

Source: OCI image-spec layer.md, "Representing Changes"; containerd's walking differ.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from longshore.engine.images.pack import Packer
from longshore.wire import tar


class Difference(Packer):
    """Yields the archive of a layer that makes `lower` what `upper` is. Synchronous: run it in a thread."""

    def __init__(self, lower: str | os.PathLike[str], upper: str | os.PathLike[str]) -> None:
        super().__init__(upper, layer=False)
        self._lower_path = lower
        self._lower = -1
        self._both = {""}  # prefixes of the folders that both trees have

    def __iter__(self) -> Iterator[bytes]:
        self._lower = os.open(self._lower_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield from super().__iter__()
        finally:
            os.close(self._lower)

    def _folder(self, fd: int, prefix: str) -> Iterator[bytes]:
        if prefix in self._both:
            below = os.open(prefix or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._lower)
            try:
                gone = set(os.listdir(below)) - set(os.listdir(fd))
            finally:
                os.close(below)
            for name in sorted(gone):
                yield tar.header(tar.Entry(f"{prefix}.wh.{name}", mode=0))
        yield from super()._folder(fd, prefix)

    def _member(self, fd: int, name: str, prefix: str, info: os.stat_result) -> Iterator[bytes]:
        old = self._before(prefix + name) if prefix in self._both else None
        if old is None or stat.S_IFMT(old.st_mode) != stat.S_IFMT(info.st_mode):
            yield from super()._member(fd, name, prefix, info)
            return
        same = _facts(old) == _facts(info)
        if not stat.S_ISDIR(info.st_mode):
            if not same or self._link(fd, name) != self._link(self._lower, prefix + name):
                yield from super()._member(fd, name, prefix, info)
            return
        self._both.add(f"{prefix}{name}/")
        pieces = super()._member(fd, name, prefix, info)
        header, first = next(pieces), next(pieces, None)
        # A folder is told when it has changed itself, or something in it has.
        if first is not None or not same:
            yield header
        if first is not None:
            yield first
            yield from pieces

    def _before(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=self._lower, follow_symlinks=False)
        except FileNotFoundError:
            return None

    @staticmethod
    def _link(fd: int, path: str) -> str:
        try:
            return os.readlink(path, dir_fd=fd)
        except OSError:
            return ""


def _facts(info: os.stat_result) -> tuple[int, ...]:
    """What tells one state of an entry from another."""
    size, time = (info.st_size, info.st_mtime_ns) if not stat.S_ISDIR(info.st_mode) else (0, 0)
    return info.st_mode, info.st_uid, info.st_gid, size, time, info.st_rdev
