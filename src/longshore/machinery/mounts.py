"""Mounts and unmounts by system call, and what is mounted where.

Source: mount(2), mount_setattr(2), umount2(2), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC = 32, 1024, 2048, 4096, 16384
MS_RELATIME, MS_STRICTATIME = 1 << 21, 1 << 24
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
_MOUNT_SETATTR, _MOUNT_ATTR_RDONLY = 442, 1  # the call's number is the same on every machine
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_FLAGS = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "remount": MS_REMOUNT,
    "noatime": MS_NOATIME, "nodiratime": MS_NODIRATIME, "bind": MS_BIND, "rbind": MS_BIND | MS_REC,
    "relatime": MS_RELATIME, "strictatime": MS_STRICTATIME,
}  # fmt: skip
_CLEARS = {"rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC, "atime": MS_NOATIME}
PROPAGATION = {
    "private": MS_PRIVATE, "rprivate": MS_PRIVATE | MS_REC, "shared": MS_SHARED, "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE, "rslave": MS_SLAVE | MS_REC, "unbindable": MS_UNBINDABLE, "runbindable": MS_UNBINDABLE | MS_REC,
}  # fmt: skip
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. propagation: "shared:N", "master:N" ... as the kernel writes it, "" for private."""

    path: str
    kind: str
    source: str
    root: str
    options: str
    super_options: str
    propagation: str


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda m: chr(int(m[1], 8)), text)


def table(pid: int | str = "self") -> list[Mount]:
    """What is mounted, in mount order."""
    result = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        kind, source, options = [*right.split(" ", 2), "", ""][:3]
        result.append(
            Mount(
                _unescape(fields[4]),
                kind,
                _unescape(source),
                _unescape(fields[3]),
                fields[5],
                options,
                " ".join(fields[6:]),
            )
        )
    return result


def parse_options(options: Iterable[str]) -> tuple[int, str]:
    """mount(8)'s option words as (flags, data for the file system)."""
    flags = 0
    data = []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option in _CLEARS:
            flags &= ~_CLEARS[option]
        elif option and option not in ("defaults", "nofail", "_netdev", *PROPAGATION):
            data.append(option)
    return flags, ",".join(data)


def mount(
    source: str | os.PathLike[str], target: str | os.PathLike[str] | int, kind: str = "", options: Iterable[str] = ()
) -> None:
    """Mount; target: a path, or an O_PATH descriptor (so that nobody can swap the path meanwhile). Raises OSError.

    As with mount(8), a bind mount is read-only where "ro" says so, and words of propagation hold for the new mount.
    """
    where = f"/proc/self/fd/{target}" if isinstance(target, int) else os.fspath(target)
    words = list(options)
    flags, data = parse_options(words)
    _call(source, where, kind, flags, data)
    if flags & (MS_BIND | MS_RDONLY | MS_REMOUNT) == MS_BIND | MS_RDONLY:
        _call("none", where, "", (flags | MS_REMOUNT) & ~MS_REC, "")
    for word in words:
        if word in PROPAGATION:
            set_propagation(where, word)


def _call(source: str | os.PathLike[str], where: str, kind: str, flags: int, data: str) -> None:
    if (
        _libc.mount(
            os.fsencode(source), os.fsencode(where), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
        )
        != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), where)


def bind(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | int,
    *,
    recursive: bool = True,
    readonly: bool = False,
) -> None:
    """Bind mount; a read-only one takes a second call. Raises OSError."""
    where = f"/proc/self/fd/{target}" if isinstance(target, int) else os.fspath(target)
    _call(source, where, "", MS_BIND | (MS_REC if recursive else 0), "")
    if readonly:
        _call("none", where, "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")


def set_readonly(path: str | os.PathLike[str], readonly: bool) -> None:
    """Make a mount and all below it read-only, or writable again, in this mount namespace alone. Raises OSError."""
    attributes = [(0, _MOUNT_ATTR_RDONLY), (_MOUNT_ATTR_RDONLY, 0)][readonly]
    data = struct.pack("=4Q", *attributes, 0, 0)
    arguments = (ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(path)), ctypes.c_uint(_AT_RECURSIVE))
    if _libc.syscall(ctypes.c_long(_MOUNT_SETATTR), *arguments, data, ctypes.c_size_t(len(data))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(path))


def set_propagation(path: str | os.PathLike[str], word: str) -> None:
    """Make a mount private, shared, slave ... (with r: and all below it). Raises OSError."""
    _call("none", os.fspath(path), "", PROPAGATION[word], "")


def is_mounted(path: str | os.PathLike[str]) -> bool:
    """Whether something is mounted exactly there (bind mounts of the same file system included)."""
    real = os.path.realpath(path)
    return any(m.path == real for m in table())


def unmount(path: str | os.PathLike[str], *, detach: bool = True) -> bool:
    """Unmount one layer; detach: also when busy (it goes with its last user). Returns whether anything was mounted.

    Raises OSError for other reasons than that.
    """
    if _libc.umount2(os.fsencode(path), (_MNT_DETACH if detach else 0) | _UMOUNT_NOFOLLOW) == 0:
        return True
    number = ctypes.get_errno()
    if number in (22, 2):  # not a mount point; not there
        return False
    raise OSError(number, os.strerror(number), os.fspath(path))


def unmount_below(folder: str | os.PathLike[str]) -> None:
    """Unmount everything at and under a folder, the deepest first."""
    top = os.path.realpath(folder)
    for entry in reversed(table()):
        if entry.path == top or entry.path.startswith(top + "/"):
            with contextlib.suppress(OSError):
                unmount(entry.path)
