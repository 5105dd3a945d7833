"""The few system calls that Python does not offer: openat2, mount, umount2."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_OPENAT2 = 437

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_DETACH = 2
O_PATH = 0o10000000


def _failed(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def openat2(dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """Open with path resolution confined to dir_fd (RESOLVE_IN_ROOT: as in a chroot there). Raises OSError.

    Source: openat2(2). EAGAIN (a rename raced with "..") is tried again.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve | RESOLVE_NO_MAGICLINKS)
    raw = os.fsencode(path) or b"."
    for _ in range(32):
        fd = _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(raw),
            ctypes.c_char_p(how),
            ctypes.c_size_t(24),
        )
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() != errno.EAGAIN:
            break
    raise _failed(path)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    if _libc.mount(
        os.fsencode(source), os.fsencode(target), os.fsencode(fstype), ctypes.c_ulong(flags), os.fsencode(data) or None
    ):
        raise _failed(target)


def umount(target: str, *, detach: bool = False) -> None:
    """umount2(2); detach: lazily. What is not mounted (EINVAL) or not there (ENOENT) is well. Raises OSError."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH if detach else 0):
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
            raise _failed(target)
