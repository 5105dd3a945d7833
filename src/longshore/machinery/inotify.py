"""inotify(7) on the event loop: a callback a change, no polling, no thread."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Callable
from enum import IntFlag
from pathlib import Path

_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Mask(IntFlag):
    """The event bits of inotify(7) that are used here."""

    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    Q_OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x1000000
    ISDIR = 0x40000000


#: path watched, event bits, name inside the folder ("" for the watched path itself).
Callback = Callable[[Path, Mask, str], None]


class Inotify:
    """Watches paths and calls back from the running loop.

    An overflow of the kernel's queue is told to every callback as Q_OVERFLOW: look at everything again.
    """

    def __init__(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watches: dict[int, tuple[Path, Callback]] = {}
        self._numbers: dict[Path, int] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def watch(self, path: Path, mask: Mask, callback: Callback) -> None:
        """Begin (or change) the watch on a path. Raises FileNotFoundError when it is not there."""
        number = _libc.inotify_add_watch(self._fd, os.fsencode(path), int(mask))
        if number < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        self._watches[number] = (path, callback)
        self._numbers[path] = number

    def forget(self, path: Path) -> None:
        """End the watch on a path, if there is one."""
        number = self._numbers.pop(path, None)
        if number is not None:
            self._watches.pop(number, None)
            _libc.inotify_rm_watch(self._fd, number)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            number, bits, _, length = _EVENT.unpack_from(data, offset)
            name = data[offset + _EVENT.size : offset + _EVENT.size + length].rstrip(b"\0")
            offset += _EVENT.size + length
            mask = Mask(bits)
            if mask & Mask.Q_OVERFLOW:
                for path, callback in list(self._watches.values()):
                    callback(path, Mask.Q_OVERFLOW, "")
                continue
            found = self._watches.get(number)
            if found is None:
                continue
            if mask & Mask.IGNORED:
                self._watches.pop(number, None)
                if self._numbers.get(found[0]) == number:
                    del self._numbers[found[0]]
                continue
            found[1](found[0], mask, os.fsdecode(name))

    def close(self) -> None:
        """End all watches."""
        self._loop.remove_reader(self._fd)
        with contextlib.suppress(OSError):
            os.close(self._fd)
