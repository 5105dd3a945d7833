"""A folder into a tar stream: an overlay's upper folder as a layer, or any tree as an archive.

The order and every byte depend on nothing but the folder's content, so that a layer which was made here can be written
again at any time with the same digest, and need not be kept twice.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from longshore.engine.images.extract import OPAQUE_XATTR
from longshore.wire import tar

_PIECE = 1 << 18

#: (uid, gid) to (uid, gid)
Ids = Callable[[int, int], tuple[int, int]]
_SEAL_STEP, _SEAL_RANGE = 1_000_003, 2**61 - 1


@dataclass(frozen=True, slots=True)
class Change:
    """One line of `docker diff`. kind: 0 modified, 1 added, 2 deleted; path begins with a slash."""

    kind: int
    path: str


def is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _xattr(fd: int, name: str, key: str) -> bytes | None:
    try:
        return os.getxattr(
            f"/proc/self/fd/{fd}/{name}" if name else f"/proc/self/fd/{fd}", key, follow_symlinks=not name
        )
    except OSError:
        return None


def _kept_xattrs(fd: int, name: str) -> dict[str, bytes]:
    path = f"/proc/self/fd/{fd}/{name}"
    try:
        keys = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    found: dict[str, bytes] = {}
    for key in keys:
        if key == "security.capability" or key.startswith("user."):
            value = _xattr(fd, name, key)
            if value is not None:
                found[key] = value
    return found


_TYPES = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCKDEV,
    stat.S_IFIFO: tar.FIFO,
}


def _entry(fd: int, name: str, path: str, info: os.stat_result) -> tar.Entry | None:
    kind = _TYPES.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        return None  # a socket has no place in an archive
    entry = tar.Entry(
        path + "/" if kind == tar.DIRECTORY else path,
        kind,
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        info.st_size if kind == tar.REGULAR else 0,
        info.st_mtime_ns // 10**9 * 10**9,
    )
    if kind == tar.SYMLINK:
        entry.linkname = os.readlink(name, dir_fd=fd)
        entry.mode = 0o777
    elif kind in (tar.CHAR, tar.BLOCKDEV):
        entry.devmajor, entry.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
    return entry


class Packer:
    """Yields the bytes of an archive of `root`.

    layer: True translates overlayfs whiteouts and opaque folders to AUFS's names; False writes the tree as it is.
    ids: (uid, gid) on disk to those in the archive; None: the same.
    `size`: bytes of file content written. `seal`: made of every entry's inode and time of change, which the kernel sets
    whenever content or attributes change: as long as it is the same, so are the bytes. Synchronous: run it in a thread.
    """

    def __init__(self, root: str | os.PathLike[str], *, layer: bool = True, ids: Ids | None = None) -> None:
        self._path = root
        self._layer = layer
        self._ids = ids
        self._links: dict[tuple[int, int], str] = {}
        self.size = 0
        self.seal = 0

    def __iter__(self) -> Iterator[bytes]:
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held = bytearray()
        try:
            for data in self._folder(fd, ""):
                # Headers and small files are gathered: a piece costs its consumer a hash call and a write.
                if len(data) >= _PIECE // 4:
                    if held:
                        yield bytes(held)
                        held.clear()
                    yield data
                    continue
                held += data
                if len(held) >= _PIECE:
                    yield bytes(held)
                    held.clear()
        finally:
            os.close(fd)
        yield bytes(held) + tar.END

    def entry(self, fd: int, name: str, path: str, info: os.stat_result) -> tar.Entry | None:
        """The header of one member, `name` in the folder of the descriptor; None for what has no place in an archive."""
        entry = _entry(fd, name, path, info)
        if entry is not None and self._ids is not None:
            entry.uid, entry.gid = self._ids(entry.uid, entry.gid)
        return entry

    def _folder(self, fd: int, prefix: str) -> Iterator[bytes]:
        for name in sorted(os.listdir(fd)):
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone meanwhile, or a whiteout that overlayfs lists where nothing lies under it
            self.seal = (self.seal * _SEAL_STEP + (info.st_ino ^ info.st_ctime_ns)) % _SEAL_RANGE
            yield from self._member(fd, name, prefix, info)

    def _member(self, fd: int, name: str, prefix: str, info: os.stat_result) -> Iterator[bytes]:
        """One entry of a folder, with all below it."""
        path = prefix + name
        if self._layer and is_whiteout(info):
            mtime = info.st_mtime_ns // 10**9 * 10**9
            yield tar.header(tar.Entry(f"{prefix}.wh.{name}", mode=0, mtime=mtime))
            return
        entry = self.entry(fd, name, path, info)
        if entry is None:
            return
        if entry.type != tar.DIRECTORY and info.st_nlink > 1:
            key = (info.st_dev, info.st_ino)
            first = self._links.setdefault(key, path)
            if first != path:
                entry.type, entry.linkname, entry.size = tar.HARDLINK, first, 0
                yield tar.header(entry)
                return
        if entry.type in (tar.REGULAR, tar.DIRECTORY):
            entry.xattrs = _kept_xattrs(fd, name)
        yield tar.header(entry)
        if entry.type == tar.REGULAR and entry.size:
            yield from self._content(fd, name, entry.size)
        elif entry.type == tar.DIRECTORY:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                if self._layer and _xattr(below, "", OPAQUE_XATTR) == b"y":
                    yield tar.header(tar.Entry(f"{path}/.wh..wh..opq", mode=0, mtime=entry.mtime))
                yield from self._folder(below, path + "/")
            finally:
                os.close(below)

    def _content(self, fd: int, name: str, size: int) -> Iterator[bytes]:
        """Exactly `size` bytes, whatever happens to the file meanwhile, and the padding."""
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        left = size
        try:
            while left:
                data = os.read(file, min(left, _PIECE))
                if not data:
                    data = bytes(min(left, _PIECE))
                left -= len(data)
                yield data
        finally:
            os.close(file)
        self.size += size
        if size % tar.BLOCK:
            yield tar.padding(size)


class Tree(NamedTuple):
    """A folder as a layer. diff: the digest of its tar; size: bytes of content; length: of the tar; seal: see Packer."""

    diff: str
    size: int
    length: int
    seal: int


def hash_tree(folder: str | os.PathLike[str]) -> Tree:
    """What a folder is as a layer. In a thread."""
    packer = Packer(folder)
    digest = hashlib.sha256()
    length = 0
    for data in packer:
        digest.update(data)
        length += len(data)
    return Tree("sha256:" + digest.hexdigest(), packer.size, length, packer.seal)


def _lower_stat(lowers: list[int], path: str) -> os.stat_result | None:
    """What the lower folders (top first) show at `path`, None where they show nothing."""
    for lower in lowers:
        parts = path.split("/")
        opaque = False
        for depth in range(1, len(parts) + 1):
            here = "/".join(parts[:depth])
            try:
                info = os.stat(here, dir_fd=lower, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                break
            if is_whiteout(info):
                return None
            if depth == len(parts):
                return info
            if not stat.S_ISDIR(info.st_mode):
                return None
            opaque = opaque or _xattr(lower, here, OPAQUE_XATTR) == b"y"
        if opaque:
            return None
    return None


def changes(upper: str | os.PathLike[str], lowers: list[str]) -> list[Change]:
    """What an upper folder changes over its lower folders (top first), sorted by path as `docker diff` shows it.

    Source: moby pkg/archive OverlayChanges.
    """
    fds = [os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for lower in lowers]
    found: list[Change] = []
    top = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def walk(fd: int, prefix: str, new: bool) -> None:
        for name in sorted(os.listdir(fd)):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            path = prefix + name
            if is_whiteout(info):
                found.append(Change(2, "/" + path))
                continue
            below = None if new else _lower_stat(fds, path)
            folder = stat.S_ISDIR(info.st_mode)
            if below is None:
                found.append(Change(1, "/" + path))
            elif not (
                folder
                and stat.S_ISDIR(below.st_mode)
                and info.st_mtime_ns == below.st_mtime_ns
                and info.st_mode == below.st_mode
                and (info.st_uid, info.st_gid) == (below.st_uid, below.st_gid)
            ):
                found.append(Change(0, "/" + path))
            if folder:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    walk(inner, path + "/", new or below is None or _xattr(inner, "", OPAQUE_XATTR) == b"y")
                finally:
                    os.close(inner)

    try:
        walk(top, "", False)
    finally:
        for fd in (*fds, top):
            os.close(fd)
    return sorted(found, key=lambda change: change.path)
