"""Open files inside another's root folder without ever leaving it: openat2 with RESOLVE_IN_ROOT.

A path such as /etc/passwd in a container's root may be a symbolic link that its author made to point at the host's.
The kernel resolves it as if the folder were /, so neither links nor ".." lead out. Source: openat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x02, 0x08, 0x10
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_in(root: str | os.PathLike[str] | int, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Open `path` as seen by a process whose root is `root` (a folder, or a descriptor of one).

    flags: as os.open; close-on-exec is added. Returns a descriptor. Raises OSError.
    """
    return _open(root, path or "/", flags, mode, _RESOLVE_IN_ROOT)


def open_beneath(root: str | os.PathLike[str] | int, path: str, flags: int = os.O_RDONLY) -> int:
    """Open a relative `path` below a folder; what leads out on the way (an absolute link, "..") is an error and not taken
    as inside. Returns a descriptor. Raises OSError, EXDEV for what leads out."""
    return _open(root, path, flags, 0, _RESOLVE_BENEATH)


def _open(root: str | os.PathLike[str] | int, path: str, flags: int, mode: int, resolve: int) -> int:
    how = _OpenHow(
        flags | os.O_CLOEXEC,
        mode if flags & (os.O_CREAT | os.O_TMPFILE) else 0,
        resolve | _RESOLVE_NO_MAGICLINKS,
    )
    own = -1
    if isinstance(root, int):
        directory = root
    else:
        directory = own = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            fd = int(_libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
            if fd >= 0:
                return fd
            code = ctypes.get_errno()
            if code not in (4, 11):  # EINTR; EAGAIN when a rename raced with the resolution
                raise OSError(code, os.strerror(code), path)
    finally:
        if own >= 0:
            os.close(own)


@contextmanager
def opened(root: str | os.PathLike[str] | int, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> Iterator[int]:
    """`open_in` that closes again."""
    fd = open_in(root, path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def read_file(root: str | os.PathLike[str] | int, path: str, limit: int) -> bytes:
    """The first `limit` bytes of a regular file in the root. Raises OSError (also for what is no regular file)."""
    with opened(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(22, "not a regular file", path)
        with os.fdopen(os.dup(fd), "rb") as file:
            return file.read(limit)


def real_path(root: str | os.PathLike[str] | int, path: str) -> str:
    """Where `path` really lies, as an absolute path inside the root. Raises OSError."""
    own = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if not isinstance(root, int) else os.dup(root)
    try:
        with opened(own, path, os.O_PATH) as fd:
            base = os.readlink(f"/proc/self/fd/{own}")
            full = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(own)
    if base == "/":
        return full
    if full == base:
        return "/"
    if not full.startswith(base + "/"):
        raise OSError(18, "path left its root", path)
    return full[len(base) :]


def _link(folder: int, name: str) -> str:
    """What a link means, "" for what is none."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return ""


def make_dirs(
    root: str | os.PathLike[str] | int, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0, *, links: int = 40
) -> int:
    """Make a folder and its missing parents inside the root; existing ones are kept as they are, and what a link means is
    made where the link means it (inside the root).

    links: how many links to nothing may be on the way. Returns an O_PATH descriptor of the folder. Raises OSError
    (NotADirectoryError when a file is in the way).
    """
    current = open_in(root, "/", os.O_PATH | os.O_DIRECTORY)
    top = os.dup(current)
    walked = ""
    try:
        for part in Path("/" + path).parts[1:]:
            walked += "/" + part
            try:
                step = open_in(top, walked, os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                if part == "..":
                    raise
                meant = _link(current, part)
                if meant:
                    if not links:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                    where = posixpath.join(posixpath.dirname(walked), meant)
                    step = make_dirs(top, where, mode, uid, gid, links=links - 1)
                else:
                    os.mkdir(part, mode, dir_fd=current)
                    step = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
                    os.chown(f"/proc/self/fd/{step}", uid, gid)
                    os.chmod(f"/proc/self/fd/{step}", mode)
            os.close(current)
            current = step
        result, current = current, -1
        return result
    finally:
        os.close(top)
        if current >= 0:
            os.close(current)
