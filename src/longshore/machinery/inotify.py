"""inotify(7) on the event loop: a callback a change, no thread, and no polling while the kernel has instances to give.

A user has few instances (fs.inotify.max_user_instances: 128 by default, for all programs together), and every log that
is followed or rotated wants to know of its file. So all `Inotify` of one event loop share one. Where the kernel has
none left, or no watch, folders are looked at every second until it has.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import struct
from collections.abc import Callable
from enum import IntFlag
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

from .foldersight import Sight

log = logging.getLogger("longshore.inotify")
_EVENT = struct.Struct("iIII")
_MASK_ADD = 0x20000000  # add to the bits that others want of the same file
_LOOK_SECONDS = 1.0
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


_EVENTS = Mask(0xFFF)
_NEW = Mask.CREATE | Mask.MOVED_TO | Mask.MODIFY | Mask.CLOSE_WRITE
_CHANGED = Mask.MODIFY | Mask.CLOSE_WRITE | Mask.ATTRIB
_GONE = Mask.DELETE | Mask.MOVED_FROM

#: path watched, event bits, name inside the folder ("" for the watched path itself).
Callback = Callable[[Path, Mask, str], None]


class Inotify:
    """Watches paths and calls back from the running loop.

    An overflow of the kernel's queue is told to every callback as Q_OVERFLOW: look at everything again.
    """

    def __init__(self) -> None:
        self._instance = _instance()
        self._instance.users.add(self)

    def watch(self, path: Path, mask: Mask, callback: Callback) -> None:
        """Begin (or change) the watch on a path. Raises FileNotFoundError when it is not there."""
        self._instance.watch(_Key(self, path), _Watch(mask, callback))

    def forget(self, path: Path) -> None:
        """End the watch on a path, if there is one."""
        self._instance.forget(_Key(self, path))

    def close(self) -> None:
        """End all watches."""
        self._instance.leave(self)


class _Key(NamedTuple):
    user: Inotify
    path: Path


class _Watch(NamedTuple):
    mask: Mask
    callback: Callback


class _Instance:
    """The one inotify instance of an event loop, from its first user to its last."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.users: set[Inotify] = set()
        self._loop = loop
        self._fd = -1
        #: by the kernel's number of a watch: one for each file, whoever watches it by whatever path.
        self._watches: dict[int, dict[_Key, _Watch]] = {}
        self._numbers: dict[_Key, int] = {}
        self._looked: dict[_Key, tuple[_Watch, Sight]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._open()

    def _open(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)

    def watch(self, key: _Key, watch: _Watch) -> None:
        if not self._attach(key, watch):
            self._looked[key] = (watch, Sight(key.path, folder=bool(watch.mask & Mask.ONLYDIR)))
            if self._timer is None:
                log.warning("fs.inotify has nothing left: %s and others are looked at every second", key.path)
                self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _attach(self, key: _Key, watch: _Watch) -> bool:
        """Watch by the kernel. False: it has no instance or watch to give. Raises OSError: what the path is."""
        if self._fd < 0:
            return False
        number = _libc.inotify_add_watch(self._fd, os.fsencode(key.path), int(watch.mask) | _MASK_ADD)
        if number < 0:
            code = ctypes.get_errno()
            if code == errno.ENOSPC:
                return False
            raise OSError(code, os.strerror(code), str(key.path))
        if self._numbers.get(key, number) != number:
            self.forget(key)
        self._looked.pop(key, None)
        self._watches.setdefault(number, {})[key] = watch
        self._numbers[key] = number
        return True

    def forget(self, key: _Key) -> None:
        self._looked.pop(key, None)
        number = self._numbers.pop(key, None)
        if number is None:
            return
        sharing = self._watches[number]
        del sharing[key]
        if not sharing:
            del self._watches[number]
            _libc.inotify_rm_watch(self._fd, number)

    def leave(self, user: Inotify) -> None:
        for key in [key for key in (*self._numbers, *self._looked) if key.user is user]:
            self.forget(key)
        self.users.discard(user)
        if not self.users:
            _instances.pop(self._loop, None)
            if self._timer is not None:
                self._timer.cancel()
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)
                os.close(self._fd)
                self._fd = -1

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
            self._happened(number, Mask(bits), os.fsdecode(name))

    def _happened(self, number: int, mask: Mask, name: str) -> None:
        if mask & Mask.Q_OVERFLOW:
            for sharing in list(self._watches.values()):
                for key, watch in list(sharing.items()):
                    self._tell(key, watch, Mask.Q_OVERFLOW, "")
        elif mask & Mask.IGNORED:
            for key in self._watches.pop(number, {}):
                del self._numbers[key]
        else:
            for key, watch in list(self._watches.get(number, {}).items()):
                if mask & watch.mask & _EVENTS and self._numbers.get(key) == number:
                    self._tell(key, watch, mask, name)

    def _tell(self, key: _Key, watch: _Watch, mask: Mask, name: str) -> None:
        try:
            watch.callback(key.path, mask, name)
        except Exception:  # the next event is perhaps another's
            log.exception("%s changed", key.path)

    def _look(self) -> None:
        """See what has changed where the kernel does not tell, and ask it again whether it would."""
        self._timer = None
        if self._fd < 0:
            self._open()
        for key, (watch, sight) in list(self._looked.items()):
            if self._looked.get(key, (None,))[0] is not watch:
                continue  # forgotten or changed by another's callback
            try:
                # Asked before the last look, so that nothing falls between the two.
                self._attach(key, watch)
                new, changed, gone = sight.changes()
            except OSError:  # gone, as the kernel forgets what is no more
                self.forget(key)
                self._maybe(key, watch, Mask.DELETE_SELF, "")
                continue
            for names, mask in ((new, _NEW), (changed, _CHANGED), (gone, _GONE)):
                for name in names:
                    self._maybe(key, watch, mask, name)
        if not self.users:
            return
        if not self._looked:
            log.info("fs.inotify has room again: nothing is looked at every second any more")
        elif self._timer is None:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _maybe(self, key: _Key, watch: _Watch, mask: Mask, name: str) -> None:
        if mask & watch.mask:
            self._tell(key, watch, mask & watch.mask, name)


_instances: WeakKeyDictionary[asyncio.AbstractEventLoop, _Instance] = WeakKeyDictionary()


def _instance() -> _Instance:
    loop = asyncio.get_running_loop()
    found = _instances.get(loop)
    if found is None:
        found = _instances[loop] = _Instance(loop)
    return found
