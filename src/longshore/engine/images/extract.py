"""A tar stream into a folder, without ever leaving it.

The folder is another's root: every parent is opened with RESOLVE_IN_ROOT and kept as an O_PATH descriptor, every last
component is created by name under such a descriptor without following links. Links, ".." and absolute names in the
archive therefore act as in a chroot.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable
from typing import Literal

from longshore.machinery import rooted
from longshore.wire import tar

Whiteouts = Literal["overlay", "keep"]
_CACHE_LIMIT = 200
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_META = ".wh..wh."
OPAQUE_XATTR = "trusted.overlay.opaque"
_DIR_FLAGS = os.O_PATH | os.O_DIRECTORY


class ExtractError(ValueError):
    """The archive asks for what may not be done; the message tells the member."""


def clean_name(name: str) -> str:
    """A member's name below the root: no leading slash, no "." and ".."; "" is the root. Raises ExtractError."""
    clean = posixpath.normpath("./" + name.lstrip("/")) if name else "."
    if clean == ".." or clean.startswith("../"):
        raise ExtractError(f'invalid tar: "{name}" is outside of the archive\'s root')
    return "" if clean == "." else clean


class Extractor:
    """Writes members below `root`.

    whiteouts: "overlay" turns AUFS whiteouts into overlayfs ones (layers), "keep" leaves them as plain files.
    owner: (uid, gid) for every member in place of the archive's. ids: (uid, gid) of those to the ones on disk; None: the
    same. filter: called with each entry (its name cleaned; it
    may change it); False leaves it out. limit: most bytes of content, past it ExtractError("no space left on device").
    `size`: bytes of content written so far. Synchronous: run it in a thread.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        whiteouts: Whiteouts = "overlay",
        owner: tuple[int, int] | None = None,
        ids: Callable[[int, int], tuple[int, int]] | None = None,
        filter: Callable[[tar.Entry], bool] | None = None,
        limit: int | None = None,
        keep_dirs: bool = True,
    ) -> None:
        self._root = os.open(root, _DIR_FLAGS | os.O_CLOEXEC)
        self._overlay = whiteouts == "overlay"
        self._owner = ids(*owner) if owner is not None and ids is not None else owner
        self._ids = ids
        self._filter = filter
        self._limit = limit
        self._keep_dirs = keep_dirs
        self._parents: dict[str, int] = {}
        self._dir_times: dict[str, int] = {}
        self._made_whiteouts: set[str] = set()
        self.size = 0

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        os.close(self._root)

    def _forget(self) -> None:
        for fd in self._parents.values():
            os.close(fd)
        self._parents.clear()

    def _parent(self, path: str) -> int:
        """A descriptor of the folder `path` (cleaned), made with its parents where absent."""
        if not path:
            return self._root
        fd = self._parents.get(path)
        if fd is not None:
            return fd
        try:
            fd = rooted.open_in(self._root, path, _DIR_FLAGS)
        except FileNotFoundError:
            above, _, name = path.rpartition("/")
            parent = self._parent(above)
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
                if self._owner:
                    os.chown(name, *self._owner, dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                if self._overlay and self._replace_whiteout(path, name, parent):
                    pass
                else:
                    raise ExtractError(f"invalid tar: {path} is no folder") from None
            fd = rooted.open_in(self._root, path, _DIR_FLAGS)
        except NotADirectoryError:
            raise ExtractError(f"invalid tar: {path} is no folder") from None
        if len(self._parents) >= _CACHE_LIMIT:
            self._forget()
        self._parents[path] = fd
        return fd

    def extract(self, reader: tar.TarReader) -> None:
        """All members, then the folders' times. Raises ExtractError, tar.TarError, OSError."""
        for entry in reader:
            self.member(entry, reader)
        self.finish()

    def finish(self) -> None:
        """Set the folders' times (writing into them changed those)."""
        for path, mtime in sorted(self._dir_times.items(), reverse=True):
            above, _, name = path.rpartition("/")
            try:
                if path:
                    os.utime(name, ns=(mtime, mtime), dir_fd=self._parent(above), follow_symlinks=False)
                else:
                    os.utime(f"/proc/self/fd/{self._root}", ns=(mtime, mtime))
            except (FileNotFoundError, ExtractError):
                continue
        self._dir_times.clear()

    def member(self, entry: tar.Entry, reader: tar.TarReader) -> None:
        """One member; its payload is taken from the reader."""
        path = entry.name = clean_name(entry.name)
        if self._filter is not None and not self._filter(entry):
            return
        path = entry.name
        above, _, name = path.rpartition("/")
        if self._overlay and name.startswith(_WHITEOUT):
            self._whiteout(above, name)
            return
        if not path:
            if entry.type == tar.DIRECTORY:
                self._root_folder(entry)
            return
        parent = self._parent(above)
        if entry.type == tar.DIRECTORY:
            self._folder(entry, parent, name)
        elif entry.type == tar.REGULAR:
            self._file(entry, parent, name, reader)
        elif entry.type == tar.SYMLINK:
            self._create(path, parent, name, lambda: os.symlink(entry.linkname, name, dir_fd=parent))
            self._attributes(entry, parent, name)
        elif entry.type == tar.HARDLINK:
            self._hardlink(entry, parent, name)
        elif entry.type in (tar.CHAR, tar.BLOCKDEV, tar.FIFO):
            kind = {tar.CHAR: stat.S_IFCHR, tar.BLOCKDEV: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[entry.type]
            device = 0 if entry.type == tar.FIFO else os.makedev(entry.devmajor, entry.devminor)
            self._create(path, parent, name, lambda: os.mknod(name, kind | 0o600, device, dir_fd=parent))
            self._attributes(entry, parent, name)
        elif entry.type not in ("g", "x"):
            raise ExtractError(f"unhandled tar header type {ord(entry.type)}")

    def _ids_of(self, entry: tar.Entry) -> tuple[int, int]:
        if self._owner is not None:
            return self._owner
        if self._ids is None:
            return entry.uid, entry.gid
        try:
            return self._ids(entry.uid, entry.gid)
        except ValueError as error:
            raise ExtractError(f"failed to extract {entry.name}: {error}") from None

    def _create(self, path: str, parent: int, name: str, make: Callable[[], object]) -> None:
        try:
            make()
        except FileExistsError:
            self._remove(path, parent, name)
            make()

    def _remove(self, path: str, parent: int, name: str) -> None:
        """Take away what lies where a member goes (a folder with all that is in it)."""
        self._made_whiteouts.discard(path)
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent)
            return
        if self._keep_dirs and not self._overlay:
            raise ExtractError(f'cannot overwrite directory "{path}" with non-directory')
        for known in [known for known in self._parents if known == path or known.startswith(path + "/")]:
            os.close(self._parents.pop(known))
        self._dir_times = {k: v for k, v in self._dir_times.items() if k != path and not k.startswith(path + "/")}
        remove_tree(parent, name)

    def _root_folder(self, entry: tar.Entry) -> None:
        root = f"/proc/self/fd/{self._root}"
        if self._overlay:
            os.chown(root, *self._ids_of(entry))
            os.chmod(root, entry.mode)
            self._dir_times[""] = entry.mtime
        for key, value in entry.xattrs.items():
            _set_xattr(root, key, value)

    def _replace_whiteout(self, path: str, name: str, parent: int) -> bool:
        """A folder over this layer's own whiteout of it hides all that is below: opaque."""
        if path not in self._made_whiteouts:
            return False
        self._made_whiteouts.discard(path)
        os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o755, dir_fd=parent)
        os.setxattr(f"/proc/self/fd/{parent}/{name}", OPAQUE_XATTR, b"y", follow_symlinks=False)
        return True

    def _folder(self, entry: tar.Entry, parent: int, name: str) -> None:
        path = entry.name
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if self._overlay and self._replace_whiteout(path, name, parent):
                pass
            else:
                mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
                if not stat.S_ISDIR(mode):
                    # Into a root that is in use, a link to a folder stays (docker cp); in a layer the folder takes its place.
                    if not self._overlay and self._keep_dirs:
                        raise ExtractError(f'cannot overwrite non-directory "{path}" with directory') from None
                    os.unlink(name, dir_fd=parent)
                    os.mkdir(name, 0o700, dir_fd=parent)
        self._attributes(entry, parent, name)
        self._dir_times[path] = entry.mtime

    def _attributes(self, entry: tar.Entry, parent: int, name: str) -> None:
        uid, gid = self._ids_of(entry)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if entry.type != tar.SYMLINK:
            # By a descriptor of the thing itself: a container that runs in this root may swap the name for a link.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    for key, value in entry.xattrs.items():
                        _set_xattr(f"/proc/self/fd/{fd}", key, value)
                    os.chmod(f"/proc/self/fd/{fd}", entry.mode)
            finally:
                os.close(fd)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _file(self, entry: tar.Entry, parent: int, name: str, reader: tar.TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        except FileExistsError:
            self._remove(entry.name, parent, name)
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            if entry.sparse is not None:
                self._sparse(fd, entry, reader)
            elif entry.stored:
                if self._limit is not None and self.size + entry.stored > self._limit:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), entry.name)
                while data := reader.read():
                    self.size += len(data)
                    _write_all(fd, data)
            uid, gid = self._ids_of(entry)
            if uid or gid:
                os.fchown(fd, uid, gid)
            for key, value in entry.xattrs.items():
                _set_xattr(fd, key, value)
            os.fchmod(fd, entry.mode)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _sparse(self, fd: int, entry: tar.Entry, reader: tar.TarReader) -> None:
        os.ftruncate(fd, entry.size)
        for offset, length in entry.sparse or ():
            while length:
                data = reader.read(length)
                if not data:
                    raise tar.TarError("unexpected EOF")
                if self._limit is not None and self.size + len(data) > self._limit:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), entry.name)
                os.pwrite(fd, data, offset)
                self.size += len(data)
                offset += len(data)
                length -= len(data)

    def _hardlink(self, entry: tar.Entry, parent: int, name: str) -> None:
        target = clean_name(entry.linkname)
        above, _, base = target.rpartition("/")
        if not base:
            raise ExtractError(f'invalid hardlink "{entry.linkname}" -> "{entry.name}"')
        if target == entry.name:
            return
        source = self._parent(above)
        parent = self._parent(entry.name.rpartition("/")[0])
        self._create(
            entry.name,
            parent,
            name,
            lambda: os.link(base, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False),
        )

    def _whiteout(self, above: str, name: str) -> None:
        if name == _OPAQUE:
            fd = self._parent(above)
            os.setxattr(f"/proc/self/fd/{fd}", OPAQUE_XATTR, b"y")
            return
        if name.startswith(_META):
            return  # AUFS's own notes: hard link pool, moved folders
        hidden = name[len(_WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise ExtractError(f"invalid whiteout {name!r}")
        parent = self._parent(above)
        path = f"{above}/{hidden}" if above else hidden
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
            self._made_whiteouts.add(path)
        except FileExistsError:
            # The same layer put something here already: only what lies in lower layers is hidden.
            mode = os.stat(hidden, dir_fd=parent, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                os.setxattr(f"/proc/self/fd/{parent}/{hidden}", OPAQUE_XATTR, b"y", follow_symlinks=False)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _set_xattr(target: str | int, key: str, value: bytes) -> None:
    """Set one attribute; overlayfs's own never come from an archive, and what the file system lacks is left out."""
    if key.startswith(("trusted.", "system.")):
        return
    try:
        if isinstance(target, int):
            os.setxattr(target, key, value)
        else:
            os.setxattr(target, key, value)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise


def remove_tree(parent: int, name: str) -> None:
    """rm -rf of a folder by descriptors; links are removed, never followed. Absent: nothing to do."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        os.unlink(name, dir_fd=parent)
        return
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(fd, entry.name)
                else:
                    try:
                        os.unlink(entry.name, dir_fd=fd)
                    except FileNotFoundError:
                        continue
    finally:
        os.close(fd)
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        pass


def remove_path(path: str | os.PathLike[str]) -> None:
    """rm -rf of a path whose parent is ours."""
    parent, name = os.path.split(os.fspath(path).rstrip("/"))
    try:
        fd = os.open(parent or ".", _DIR_FLAGS | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)
