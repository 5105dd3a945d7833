"""A pod's namespaces: network, IPC and UTS pinned as files, and a first process where they share a PID namespace.

No pause process holds them: a bind mount does. Only a shared PID namespace needs one, because its first process must
live; that one is a program of some hundred bytes, written here. Source: namespaces(7), pid_namespaces(7), elf(5).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from longshore.engine.runtime import cgroups
from longshore.machinery import mounts, netns, users
from longshore.machinery.threads import in_own_thread
from longshore.machinery.users import Owners

_NEWUTS, _NEWIPC, _NEWPID, _NEWNET = 0x04000000, 0x08000000, 0x20000000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
# ignore SIGCHLD, so that orphans of the pod are reaped by the kernel; then sleep for ever
_X86_64 = bytes.fromhex(
    "b80d000000"  # mov eax, 13 (rt_sigaction)
    "bf11000000"  # mov edi, 17 (SIGCHLD)
    "488d351a000000"  # lea rsi, [rip + 26]
    "31d2"  # xor edx, edx
    "41ba08000000"  # mov r10d, 8
    "0f05"  # syscall
    "b822000000"  # mov eax, 34 (pause)
    "0f05"  # syscall
    "ebf7"  # jmp to the mov before
    "90909090909090"
)
_AARCH64 = b"".join(
    struct.pack("<I", word)
    for word in (
        0xD28010C8,  # mov x8, 134 (rt_sigaction)
        0xD2800220,  # mov x0, 17 (SIGCHLD)
        0x10000101,  # adr x1, . + 32
        0xD2800002,  # mov x2, 0
        0xD2800103,  # mov x3, 8
        0xD4000001,  # svc 0
        0xD2800928,  # mov x8, 73 (ppoll)
        0xD2800000,  # mov x0, 0
        0xD2800001,  # mov x1, 0
        0x17FFFFFD,  # b to ppoll
    )
)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _enter(path: Path, flag: int) -> None:
    """This thread joins a pinned namespace."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(fd, flag), "setns")
    finally:
        os.close(fd)


def make(
    folder: Path,
    *,
    network: bool,
    ipc: bool,
    hostname: str,
    sysctls: Mapping[str, str],
    owners: Owners | None = None,
) -> None:
    """Make and pin what a sandbox does not share with the host: folder/net, folder/ipc and folder/uts.

    hostname: "" for a sandbox that keeps the host's UTS namespace. sysctls: in dotted or slashed form, written inside.
    owners: a user namespace that is made as well, as folder/user, and owns the others. Blocking. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"net": network, "ipc": ipc, "uts": bool(hostname)}
    flags = {"net": _NEWNET, "ipc": _NEWIPC, "uts": _NEWUTS}
    kinds = [kind for kind, is_wanted in wanted.items() if is_wanted]
    if owners is not None:
        users.make(folder, kinds, owners.uids, owners.gids)
    elif network:
        netns.create(folder / "net")

    def work() -> None:
        for kind in kinds:
            if owners is not None or kind == "net":
                _enter(folder / kind, flags[kind])
            else:
                _check(_libc.unshare(flags[kind]), "unshare")
                (folder / kind).touch(mode=0o444)
                here = f"/proc/self/task/{threading.get_native_id()}/ns/{kind}"
                mounts.bind(here, folder / kind, recursive=False)
        if owners is not None and network:
            netns.raise_loopback()
        if hostname:
            name = hostname.encode()
            _check(_libc.sethostname(name, len(name)), "sethostname")
        for key, value in sysctls.items():
            path = "/proc/sys/" + (key if "/" in key else key.replace(".", "/"))
            with open(path, "w") as file:
                file.write(value)

    in_own_thread(work, "namespaces")


def release(folder: Path) -> None:
    """Unpin whatever is pinned in the folder."""
    for kind in ("net", "ipc", "uts", "user"):
        netns.delete(folder / kind)


def intact(folder: Path, kinds: tuple[str, ...]) -> bool:
    """Whether every one of these namespaces is still pinned there."""
    return all(netns.pinned(folder / kind) for kind in kinds)


def pause_program() -> bytes:
    """A static ELF program that ignores SIGCHLD and sleeps. Raises OSError on machines it is not written for."""
    machine = platform.machine()
    if machine == "x86_64":
        code, number = _X86_64, 62
    elif machine == "aarch64":
        code, number = _AARCH64, 183
    else:
        raise OSError(95, f"a shared PID namespace is not supported on {machine}")
    # struct kernel_sigaction: handler SIG_IGN, flags, restorer, mask
    body = code + struct.pack("<QQQQ", 1, 0, 0, 0)
    base, offset = 0x400000, 120
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, number, 1, base + offset, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, offset + len(body), offset + len(body), 0x1000)
    return header + segment + body


def _pause_owned(program: Path, user: Path) -> int:
    """The pause program in a PID namespace that a user namespace owns; returns its pid."""
    enter = ["nsenter", f"--user={user}", "--setuid", "0", "--setgid", "0", "--", "unshare", "--pid", "--fork", "--"]
    null = subprocess.DEVNULL
    parent = subprocess.Popen([*enter, str(program)], start_new_session=True, stdin=null, stdout=null, stderr=null)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    try:
        for _ in range(500):
            try:
                found = children.read_text().split()
                if found and Path(f"/proc/{found[0]}/cmdline").read_bytes().startswith(os.fsencode(program)):
                    return int(found[0])
            except OSError:
                break
            # Another's child is told by nobody; it is there within some milliseconds.
            time.sleep(0.002)
        raise OSError(1, "the pause process did not start", str(program))
    finally:
        parent.kill()
        parent.wait()


def start_pause(folder: Path, *, ipc: Path | None, cgroup: str, user: Path | None = None) -> int:
    """Start the first process of a new PID namespace; returns its pid. Blocking. Raises OSError.

    folder: where the program is written. ipc: an IPC namespace to share. cgroup: path of its own cgroup. user: the user
    namespace that is to own it.
    """
    program = folder / "pause"
    program.write_bytes(pause_program())
    program.chmod(0o755)
    pids: list[int] = []

    def work() -> None:
        if ipc is not None:
            _enter(ipc, _NEWIPC)
        _check(_libc.unshare(_NEWPID), "unshare")
        pids.append(
            os.posix_spawn(
                program, ["/pause"], {},
                file_actions=[(os.POSIX_SPAWN_OPEN, n, "/dev/null", os.O_RDWR, 0) for n in range(3)],
                setsid=True, setsigmask=(), setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGXFSZ),
            )
        )  # fmt: skip

    if user is not None:
        pids.append(_pause_owned(program, user))
    else:
        in_own_thread(work, "namespaces")
    pid = pids[0]
    if cgroup:
        for where in dict.fromkeys(cgroups.mounts().values()):
            own = where / cgroup.lstrip("/")
            try:
                own.mkdir(parents=True, exist_ok=True)
                if where.name == "cpuset":
                    _fill_cpuset(where, own)
                (own / "cgroup.procs").write_text(str(pid))
            except OSError:
                continue
    return pid


def _fill_cpuset(top: Path, own: Path) -> None:
    """A v1 cpuset takes no process before it has cpus and nodes: copy the parent's down."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        current = top
        for part in own.relative_to(top).parts:
            value = (current / name).read_text()
            current = current / part
            if not (current / name).read_text().strip():
                (current / name).write_text(value)


def alive(pid: int, start: int) -> bool:
    """Whether the process that had this pid and start time still lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return False
    return int(fields[19]) == start and fields[0] not in ("Z", "X")


def start_time(pid: int) -> int:
    """A process's start in ticks since boot; 0 when it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])
    except OSError:
        return 0


def end(pid: int, start: int) -> None:
    """Kill the first process of a PID namespace, and so all that is in it; reap it if it is our child."""
    if pid and alive(pid, start):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
    if pid:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            return
