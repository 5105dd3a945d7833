"""A kernel that has no inotify to give."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from longshore.machinery import inotify


class PoorKernel:
    """A C library whose kernel has no inotify instances (EMFILE) or no watches (ENOSPC) until it is `rich`."""

    def __init__(self, code: int) -> None:
        self.rich = False
        self._real, self._code = inotify._libc, code
        self.inotify_rm_watch = self._real.inotify_rm_watch

    @classmethod
    def into(cls, monkeypatch: pytest.MonkeyPatch, code: int) -> PoorKernel:
        """One that this process now runs on, where folders are looked at every 20 ms."""
        kernel = cls(code)
        monkeypatch.setattr(inotify, "_libc", kernel)
        monkeypatch.setattr(inotify, "ctypes", SimpleNamespace(get_errno=lambda: code))
        monkeypatch.setattr(inotify, "_LOOK_SECONDS", 0.02)
        return kernel

    def inotify_init1(self, flags: int) -> int:
        if self._code == errno.EMFILE and not self.rich:
            return -1
        return int(self._real.inotify_init1(flags))

    def inotify_add_watch(self, fd: int, path: bytes, mask: int) -> int:
        return int(self._real.inotify_add_watch(fd, path, mask)) if self.rich else -1
