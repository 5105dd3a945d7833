"""User namespaces with their mappings, pinned as files, and mounts whose owners are shown through them.

Source: user_namespaces(7), mount_setattr(2) "ID-mapped mounts", open_tree(2), move_mount(2), setfsuid(2), capset(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from longshore.machinery import mounts

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_EMPTY_PATH, _AT_FDCWD = 1, 0x8000, 0x1000, -100
_MOVE_MOUNT_F_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 4, 0x00100000
_CAPABILITY_VERSION = 0x20080522
_OVERFLOW = 65534  # /proc/sys/kernel/overflowuid's default
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

#: (id inside, id on the host, how many)
Mapping = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Owners:
    """A user namespace, pinned at a path, and what it maps."""

    namespace: Path
    uids: tuple[Mapping, ...]
    gids: tuple[Mapping, ...]

    @property
    def root(self) -> tuple[int, int]:
        """The host's user and group of the namespace's root. Raises ValueError where it has none."""
        return self.outside(0, 0)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """The host's ids of a file's owner inside. Raises ValueError for one that is not mapped."""
        mapped = outside(self.uids, uid), outside(self.gids, gid)
        if mapped[0] is None or mapped[1] is None:
            raise ValueError(f"container ID {uid if mapped[0] is None else gid} cannot be mapped to a host ID")
        return mapped[0], mapped[1]

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """How a file's owner on the host is seen inside: who is not mapped is the overflow user there."""
        return inside(self.uids, uid), inside(self.gids, gid)


@cache
def supported() -> bool:
    """Whether this kernel gives user namespaces, and overlayfs over ID-mapped folders (Linux 5.19)."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    try:
        some = int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 0
    except OSError:
        return False
    return some and version is not None and (int(version[1]), int(version[2])) >= (5, 19)


def _call(number: int, what: str, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
    return int(result)


def outside(mappings: Iterable[Mapping], inside: int) -> int | None:
    """The host's id of one inside; None when it has none."""
    for first, host, count in mappings:
        if first <= inside < first + count:
            return host + inside - first
    return None


def inside(mappings: Iterable[Mapping], outside: int) -> int:
    """The id inside of one of the host's; the kernel's overflow id when it has none."""
    for first, host, count in mappings:
        if host <= outside < host + count:
            return first + outside - host
    return _OVERFLOW


@contextlib.contextmanager
def acting(user: tuple[int, int]) -> Iterator[None]:
    """The calling thread makes files as this user and group of the host, with all its capabilities kept.

    A file system that is shown with mapped owners takes nothing from an owner who is not mapped, and the host's root is
    not. What is mounted meanwhile works as this user from then on. Other threads never notice.
    """
    _libc.setfsgid(user[1])
    _libc.setfsuid(user[0])
    try:
        # The kernel takes the rights to files away with the user; they are the thread's own to take back.
        _raise_capabilities()
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)


def _raise_capabilities() -> None:
    """Make every capability that the thread is permitted effective. Raises OSError."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) == 0:
        words = struct.unpack("=6I", data.raw)
        raised = (words[1], words[1], words[2], words[4], words[4], words[5])
        if _libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *raised), 24)) == 0:
            return
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error), "capset")


def make(
    folder: Path, kinds: Sequence[str], uids: Sequence[Mapping], gids: Sequence[Mapping], *, within: Path | None = None
) -> None:
    """Make a user namespace and, owned by it, those of `kinds` ("net", "ipc", "uts"); pin them as folder/user, /net ...

    within: a user namespace that there is, which owns them in place of a new one. Blocking. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A process of its own: a thread of a process with others cannot leave its user namespace.
    flags = [{"net": "-n", "ipc": "-i", "uts": "-u"}[kind] for kind in kinds]
    enter = ["-U"] if within is None else []
    before = [] if within is None else ["nsenter", f"--user={within}", "--setuid", "0", "--setgid", "0", "--"]
    with subprocess.Popen(
        [*before, "unshare", *enter, *flags, "sh", "-c", "echo; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        if not holder.stdout.read(1):
            raise OSError(1, "the kernel gives no user namespace", "unshare")
        for name, mappings in (("uid_map", uids), ("gid_map", gids)) if within is None else ():
            text = "".join(f"{inside} {host} {count}\n" for inside, host, count in mappings)
            Path(f"/proc/{holder.pid}/{name}").write_text(text)
        for kind in ("user", *kinds):
            (folder / kind).touch(mode=0o444)
            mounts.bind(f"/proc/{holder.pid}/ns/{kind}", folder / kind, recursive=False)


def mount(source: str | os.PathLike[str], target: str | os.PathLike[str], namespace: int, *, recursive: bool) -> None:
    """Bind `source` at `target` so that owners are those that the user namespace (a descriptor) maps.

    Raises OSError (EINVAL where the file system cannot be shown so).
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    tree = _call(_OPEN_TREE, str(source), ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(source)), ctypes.c_uint(flags))  # fmt: skip
    try:
        attributes = struct.pack("<QQQQ", _MOUNT_ATTR_IDMAP, 0, mounts.MS_PRIVATE, namespace)
        _call(
            _MOUNT_SETATTR, str(source), ctypes.c_int(tree), ctypes.c_char_p(b""),
            ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)),
            ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)),
        )  # fmt: skip
        _call(
            _MOVE_MOUNT, str(target), ctypes.c_int(tree), ctypes.c_char_p(b""), ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(target)), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        )  # fmt: skip
    finally:
        os.close(tree)
