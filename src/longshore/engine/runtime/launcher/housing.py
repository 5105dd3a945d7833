"""Where the launcher's process lives: mounts of its own, the few that Python needs, all read-only.

A process that enters a container can be seen there before it has become the command, and with it the file of its program
and those of its libraries (/proc/PID/exe, /proc/PID/map_files). They lie on mounts that nobody can write through and
no container can reach to change. Source: CVE-2019-5736; mount_namespaces(7), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import longshore
from longshore.machinery import mounts
from longshore.machinery.threads import in_own_thread

_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)

_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from longshore.engine.runtime.launcher.program import main; main(int(sys.argv[2]))"  # fmt: skip


def spawn(control: int) -> int:
    """Start the launcher's process; it serves the socket at the descriptor `control`. Returns its pid. Blocking for some
    milliseconds. Raises OSError where the kernel does not give what it needs."""

    def work() -> int:
        _furnish()
        return _start(control)

    # The namespace is the thread's own and goes with the launcher.
    return in_own_thread(work, "launcher")


def _interpreter() -> str:
    """The Python program itself, not a virtual environment's link."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def _root() -> str:
    """The folder that holds the package `longshore`."""
    return str(Path(longshore.__path__[0]).resolve().parent)


def _needed() -> list[str]:
    """Files and folders that Python and the launcher's program are made of, and that they open."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    library = os.path.realpath(os.path.dirname(os.__file__))
    return [*mapped, _interpreter(), library, _root(), "/etc/ld.so.cache", "/proc/self", "/dev/null"]


def _furnish() -> None:
    """Leave the engine's mounts: keep copies of those that are needed, and make them read-only."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")
    mounts.set_propagation("/", "rprivate")
    needed = _needed()
    groups = [m.path for m in mounts.table("thread-self") if m.kind in ("cgroup", "cgroup2")]
    for mount in reversed(mounts.table("thread-self")):
        above = mount.path.rstrip("/") + "/"
        if not any(path == mount.path or path.startswith(above) for path in [*needed, *groups]):
            mounts.unmount(mount.path)
    mounts.set_readonly("/", True)
    for path in ["/proc", *groups]:
        mounts.set_readonly(path, False)


def _start(control: int) -> int:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    interpreter = _interpreter()
    try:
        return os.posix_spawn(
            interpreter,
            [interpreter, "-I", "-S", "-B", "-c", _PROGRAM, _root(), "3"],
            {"LC_ALL": "C", "TZ": "UTC"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),
                (os.POSIX_SPAWN_DUP2, control, 3),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=range(1, signal.SIGSYS + 1),
        )
    finally:
        os.close(null)
