"""COPY and ADD: which files are meant, their digest for the cache, and bringing them into a root.

Both sides are roots that others made: every path is opened inside its root (machinery.rooted), links act as in a chroot.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import posixpath
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from longshore.engine.build.ignore import Ignore
from longshore.engine.build.modes import Mode
from longshore.engine.images.extract import remove_tree
from longshore.machinery import rooted

_WILDCARD = re.compile(r"(?<!\\)[*?\[]")
_PIECE = 1 << 20
_O_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class CopyError(ValueError):
    """A source or target that will not do; the text is dockerd's, without "COPY failed: "."""


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to copy: its path inside the source root, and whether it is a folder (whose content is meant).

    pivot: how much of the path --parents leaves out ("x/./y": "x").
    """

    path: str
    folder: bool
    pivot: str = ""

    @property
    def below(self) -> str:
        """The path that --parents keeps."""
        return self.path.removeprefix(self.pivot).lstrip("/")


class Tree:
    """A root to read from. hidden: paths that are not to be seen (.dockerignore's). owned: owners belong to the digest."""

    def __init__(self, root: Path, *, hidden: Ignore | None = None, context: bool = True, owned: bool = False) -> None:
        self.root, self.hidden, self.context, self.owned = root, hidden, context, owned

    def find(self, pattern: str, *, parents: bool = False) -> list[Source]:
        """The sources that a word of COPY means, sorted. parents: "/./" and "**" have a meaning in it.

        Raises CopyError, OSError.
        """
        if parents:
            above, dot, _ = ("/" + pattern).partition("/./")
            above = posixpath.normpath(above + "/").lstrip("/") if dot and above else ""
            return [Source(found.path, found.folder, above) for found in self.find(pattern)]
        clean = posixpath.normpath("/" + pattern).lstrip("/")
        if self.context and (posixpath.normpath(pattern) + "/").startswith("../"):
            raise CopyError(f"forbidden path outside the build context: {pattern} ()")
        if _WILDCARD.search(pattern):
            return [self.one(path) for path in sorted(self._glob(clean))]
        return [self.one(clean.replace("\\", ""))]

    def one(self, path: str) -> Source:
        try:
            if path and self.hidden and self.hidden.matches(path):
                raise FileNotFoundError
            with rooted.opened(self.root, path or "/", os.O_PATH) as fd:
                return Source(path, stat.S_ISDIR(os.fstat(fd).st_mode))
        except (FileNotFoundError, NotADirectoryError):
            if self.context:
                raise CopyError(
                    f"file not found in build context or excluded by .dockerignore: stat {path}: file does not exist"
                ) from None
            raise CopyError(f"stat {path}: file does not exist") from None

    def _glob(self, pattern: str) -> list[str]:
        parts = [re.sub(r"\\(.)", r"[\1]", part).replace("[^", "[!") for part in pattern.split("/")]
        found = [""]
        for depth, part in enumerate(parts):
            following: list[str] = []
            if part == "**":
                found = [path for above in found for path in self._folders(above)]
                continue
            for above in found:
                try:
                    with rooted.opened(self.root, above or "/", os.O_RDONLY | os.O_DIRECTORY) as fd:
                        names = os.listdir(fd)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                for name in names:
                    if fnmatch.fnmatchcase(name, part):
                        path = f"{above}/{name}" if above else name
                        if not (depth == len(parts) - 1 and self.hidden and self.hidden.matches(path)):
                            following.append(path)
            found = following
        return found

    def _folders(self, path: str) -> list[str]:
        """A folder and all below it."""
        found = [path]
        try:
            with rooted.opened(self.root, path or "/", os.O_RDONLY | os.O_DIRECTORY) as fd:
                entries = [name for name in sorted(os.listdir(fd)) if _is_real_folder(fd, name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        for name in entries:
            found += self._folders(f"{path}/{name}" if path else name)
        return found

    def digest(self, sources: list[Source], exclude: Ignore | None = None) -> str:
        """What the sources hold, as hexadecimal sha256: names, modes, contents, link targets; not times; owners if `owned`."""
        total = hashlib.sha256()
        for source in sources:
            base = source.path.rpartition("/")[2]
            total.update(b"d" if source.folder else b"f" + base.encode("utf-8", "surrogateescape"))
            with rooted.opened(self.root, source.path or "/", os.O_RDONLY | os.O_NONBLOCK) as fd:
                self._digest_owner(os.fstat(fd), total)
                if source.folder:
                    self._digest_folder(fd, source.path, "", total, exclude)
                else:
                    _digest_file(fd, os.fstat(fd), total)
        return total.hexdigest()

    def _digest_owner(self, info: os.stat_result, total: hashlib._Hash) -> None:
        if self.owned:
            total.update(f"\0{info.st_uid}:{info.st_gid}:{info.st_mode:o}\0".encode())

    def _digest_folder(self, fd: int, path: str, inner: str, total: hashlib._Hash, exclude: Ignore | None) -> None:
        for name in sorted(os.listdir(fd)):
            here = f"{path}/{name}" if path else name
            inside = f"{inner}/{name}" if inner else name
            if self.leaves_out(here, inside, exclude):
                continue
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            total.update(f"\0{inside}\0{info.st_mode:o}\0".encode("utf-8", "surrogateescape"))
            self._digest_owner(info, total)
            if stat.S_ISDIR(info.st_mode):
                below = os.open(name, _O_FOLDER, dir_fd=fd)
                try:
                    self._digest_folder(below, here, inside, total, exclude)
                finally:
                    os.close(below)
            elif stat.S_ISLNK(info.st_mode):
                total.update(os.readlink(name, dir_fd=fd).encode("utf-8", "surrogateescape"))
            elif stat.S_ISREG(info.st_mode):
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    _digest_file(file, info, total)
                finally:
                    os.close(file)

    def leaves_out(self, path: str, inside: str, exclude: Ignore | None) -> bool:
        """Is a path hidden, or excluded by the instruction? A folder stays while a pattern may take something back."""
        for rules, which in ((self.hidden, path), (exclude, inside)):
            if rules and rules.matches(which) and not rules.takes_back:
                return True
            if rules and rules.takes_back and rules.matches(which):
                with rooted.opened(self.root, path, os.O_PATH) as fd:
                    if not stat.S_ISDIR(os.fstat(fd).st_mode):
                        return True
        return False


def _is_real_folder(fd: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)


def _digest_file(fd: int, info: os.stat_result, total: hashlib._Hash) -> None:
    total.update(f"\0{info.st_mode & 0o7777:o}\0{info.st_size}\0".encode())
    while data := os.read(fd, _PIECE):
        total.update(data)


@dataclass(slots=True)
class Placement:
    """How copied files are to be.

    uid, gid: their owner, unless keep_owner. mode: what becomes of their mode (None: kept). parents: below the target
    with the folders of their path. time: their time in nanoseconds (None: kept). include: only these paths.
    """

    uid: int = 0
    gid: int = 0
    mode: Mode | None = None
    keep_owner: bool = False
    parents: bool = False
    time: int | None = None
    include: Ignore | None = None


class Copier:
    """Copies sources of a tree into a mounted root."""

    def __init__(self, tree: Tree, root: Path, placement: Placement, exclude: Ignore | None = None) -> None:
        self._tree, self._root, self._placement, self._exclude = tree, root, placement, exclude

    def copy(self, sources: list[Source], target: str, *, into: bool) -> None:
        """Copy to `target` (absolute inside the root). into: the target is a folder in any case (it ended with a slash).

        Raises OSError.
        """
        for source in sources:
            name = source.path.rpartition("/")[2]
            where = posixpath.normpath(target)
            if source.folder:
                if self._placement.parents:
                    where = posixpath.join(where, source.below)
                fd = self._make_folder(where)
                try:
                    with rooted.opened(self._tree.root, source.path or "/", os.O_RDONLY | os.O_DIRECTORY) as found:
                        self._folder(found, source.path, "", fd)
                finally:
                    os.close(fd)
                continue
            if self._placement.parents:
                where = posixpath.join(where, source.below)
            elif into or self.is_folder(where):
                where = posixpath.join(where, name)
            above, _, last = where.rpartition("/")
            parent = self._make_folder(above or "/")
            try:
                with rooted.opened(self._tree.root, source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as found:
                    self._file(found, os.fstat(found), parent, last)
            finally:
                os.close(parent)

    def is_folder(self, path: str) -> bool:
        try:
            with rooted.opened(self._root, path, os.O_PATH) as fd:
                return stat.S_ISDIR(os.fstat(fd).st_mode)
        except OSError:
            return False

    def _make_folder(self, path: str) -> int:
        """A descriptor of a folder in the root, made with its parents where absent; new ones get the owner asked for."""
        mode = self._placement.mode(0o755, True) if self._placement.mode else 0o755
        found = rooted.make_dirs(self._root, path, mode, self._placement.uid, self._placement.gid)
        try:
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(found)

    def _owner(self, info: os.stat_result) -> tuple[int, int]:
        if self._placement.keep_owner:
            return info.st_uid, info.st_gid
        return self._placement.uid, self._placement.gid

    def _folder(self, source: int, path: str, inner: str, target: int) -> None:
        for name in sorted(os.listdir(source)):
            here = f"{path}/{name}" if path else name
            inside = f"{inner}/{name}" if inner else name
            if self._tree.leaves_out(here, inside, self._exclude):
                continue
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            include = self._placement.include
            if include and not stat.S_ISDIR(info.st_mode) and not include.matches(inside):
                continue
            if stat.S_ISDIR(info.st_mode):
                try:
                    os.mkdir(name, 0o700, dir_fd=target)
                except FileExistsError:
                    if not stat.S_ISDIR(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
                        os.unlink(name, dir_fd=target)
                        os.mkdir(name, 0o700, dir_fd=target)
                below, made = os.open(name, _O_FOLDER, dir_fd=source), os.open(name, _O_FOLDER, dir_fd=target)
                try:
                    self._folder(below, here, inside, made)
                    os.fchown(made, *self._owner(info))
                    self._xattrs(below, made)
                    self._finish(made, info)
                finally:
                    os.close(below)
                    os.close(made)
            elif stat.S_ISREG(info.st_mode):
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
                try:
                    self._file(file, info, target, name)
                finally:
                    os.close(file)
            else:
                self._special(source, name, info, target)

    def _special(self, source: int, name: str, info: os.stat_result, target: int) -> None:
        if stat.S_ISSOCK(info.st_mode):
            return
        remove_tree(target, name)
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        os.chown(name, *self._owner(info), dir_fd=target, follow_symlinks=False)
        when = info.st_mtime_ns if self._placement.time is None else self._placement.time
        os.utime(name, ns=(when, when), dir_fd=target, follow_symlinks=False)

    def _file(self, source: int, info: os.stat_result, parent: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        except FileExistsError:
            remove_tree(parent, name)
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            _copy_content(source, fd, info.st_size)
            os.fchown(fd, *self._owner(info))
            self._xattrs(source, fd)
            self._finish(fd, info)
        finally:
            os.close(fd)

    def _finish(self, fd: int, info: os.stat_result) -> None:
        """Mode and time of what was copied."""
        mode = stat.S_IMODE(info.st_mode)
        if self._placement.mode is not None:
            mode = self._placement.mode(mode, stat.S_ISDIR(info.st_mode))
        os.fchmod(fd, mode)
        when = info.st_mtime_ns if self._placement.time is None else self._placement.time
        os.utime(fd, ns=(when, when))

    @staticmethod
    def _xattrs(source: int, target: int) -> None:
        try:
            keys = os.listxattr(source)
        except OSError:
            return
        for key in keys:
            if key == "security.capability" or key.startswith("user."):
                try:
                    os.setxattr(target, key, os.getxattr(source, key))
                except OSError:
                    continue


def _copy_content(source: int, target: int, size: int) -> None:
    left = size
    while left > 0:
        try:
            done = os.copy_file_range(source, target, min(left, 1 << 30))
        except OSError as error:
            if left != size or error.errno not in (18, 22, 38, 95):  # EXDEV, EINVAL, ENOSYS, EOPNOTSUPP
                raise
            break
        if done == 0:
            break
        left -= done
    while left > 0 and (data := os.read(source, min(left, _PIECE))):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
        left -= len(data)
