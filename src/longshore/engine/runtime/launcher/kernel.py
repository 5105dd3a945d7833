"""The system calls of entering a container that Python's `os` does not have.

Used in the launcher's processes of one thread: the calls keep Python's lock, and clone() needs no more than that.
Source: the manual pages of the calls; numbers from the kernel's system call tables.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
from collections.abc import Iterable, Sequence

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

#: By machine: numbers that differ. A machine that is not here has no launcher.
_MACHINES = {
    "x86_64": {"clone": 56, "capset": 126, "keyctl": 250, "seccomp": 317, "rt_sigaction": 13, "getcwd": 79},
    "aarch64": {"clone": 220, "capset": 91, "keyctl": 219, "seccomp": 277, "rt_sigaction": 134, "getcwd": 17},
}
_NUMBERS = _MACHINES.get(os.uname().machine, {})
_CLOSE_RANGE = 436  # the same on every machine

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_PARENT = 0x00008000

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 4, 8, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
CAP_SYS_ADMIN = 21
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SECCOMP_SET_MODE_FILTER = 1


def known() -> bool:
    """Whether the numbers of this machine's calls are known here."""
    return bool(_NUMBERS)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _call(name: str, *arguments: int | bytes | None) -> int:
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _check(int(_libc.syscall(ctypes.c_long(_NUMBERS[name]), *values)), name)


def _prctl(option: int, second: int = 0, third: int = 0) -> None:
    arguments = [ctypes.c_ulong(n) for n in (second, third, 0, 0)]
    _check(int(_libc.prctl(ctypes.c_int(option), *arguments)), "prctl")


def hide() -> None:
    """Let nobody trace this process or look into it (what changes credentials may undo that)."""
    _prctl(_PR_SET_DUMPABLE, 0)


def setns(fd: int, kinds: int) -> None:
    """Join namespaces of the process that a pidfd names. Raises OSError, ESRCH when it has ended."""
    _check(int(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kinds))), "setns")


def keep_capabilities(keep: bool) -> None:
    """Whether a change of user leaves the permitted capabilities."""
    _prctl(_PR_SET_KEEPCAPS, int(keep))


def bound_capabilities(mask: int) -> None:
    """Take every capability that is not in `mask` out of the bounding set."""
    for number in range(64):
        if mask >> number & 1:
            continue
        try:
            _prctl(_PR_CAPBSET_DROP, number)
        except OSError:
            if number > CAP_SYS_ADMIN:  # past the last one that this kernel has
                return
            raise


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Set the three sets of this process; bit N of a mask is capability N."""
    sets = [(m & 0xFFFFFFFF, m >> 32) for m in (effective, permitted, inheritable)]
    data = struct.pack("=6I", *(sets[kind][half] for half in (0, 1) for kind in (0, 1, 2)))
    _call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data)


def set_ambient(mask: int) -> None:
    """Set the ambient set; what is raised has to be permitted and inheritable."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(64):
        if mask >> number & 1:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def no_new_privileges() -> None:
    """Let no program that is run give more rights than there are."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def join_keyring(name: str) -> None:
    """Join the session keyring of this name, or make it."""
    _call("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, name.encode())


def load_filter(program: bytes, flags: int) -> None:
    """Load a seccomp filter (struct sock_filter after another)."""
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _call("seccomp", _SECCOMP_SET_MODE_FILTER, flags, head)


def default_signals() -> None:
    """Let no signal be ignored: what is ignored stays so in the program that is run.

    Python ignores two, posix_spawn two more, which are libc's own and which only the call itself can set.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ, 32, 33):
        _call("rt_sigaction", int(number), bytes(32), None, 8)


def working_folder() -> bytes:
    """Where this process is, as the kernel says it: from "/" on, or "(unreachable)..." for what is not under its root.
    (libc would look for a way itself.)"""
    buffer = ctypes.create_string_buffer(4096)
    length = _check(int(_libc.syscall(ctypes.c_long(_NUMBERS["getcwd"]), buffer, ctypes.c_size_t(4096))), "getcwd")
    return buffer.raw[: length - 1]


def clone(flags: int) -> int:
    """A child by clone(2), without a stack of its own: 0 in the child, its pid in the parent."""
    return _call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)


def close_others(keep: Iterable[int]) -> None:
    """Close every descriptor but these."""
    first = 0
    for fd in [*sorted(set(keep)), -1]:
        last = fd - 1 if fd >= 0 else 0xFFFFFFFF
        if last >= first:
            arguments = (ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0))
            _check(int(_libc.syscall(ctypes.c_long(_CLOSE_RANGE), *arguments)), "close_range")
        first = fd + 1


def arrange(fds: Sequence[int]) -> None:
    """Make `fds` the descriptors 0, 1, 2 ... in this order, and close all others."""
    count = len(fds)
    # A source that is somebody's target moves out of the way; others stay, as there may be few numbers left (RLIMIT_NOFILE).
    sources = [fd if fd >= count else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, count) for fd in fds]
    for target, fd in enumerate(sources):
        os.dup2(fd, target)
    close_others(range(count))
