"""One exec: from a request to the command inside the container.

Runs in a child of the launcher that nobody else sees: it joins the container's cgroups and namespaces (of processes'
numbers as the last; only children are in that one), takes the command's identity and gives up every right that the
command is not to have. Only then the command's process is born, a child of the launcher as its parent's sibling: what
of it can be seen inside the container has no more rights, descriptors or secrets than the command (CVE-2016-9962).
Nothing is imported, and no path of the host opened, once the container has been entered.
Source: runtime-spec config.md and runc's libcontainer (setns_init_linux.go, init_linux.go), whose texts of errors these are.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import stat
import struct
import sys
import termios

from . import kernel
from .request import Request

_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
_PASSWD_LIMIT = 1 << 20
_TEXT_LIMIT = 16384

#: First byte of what a process of an exec tells the launcher.
BORN, FAILED, REFUSED, TERMINAL = b"B", b"F", b"R", b"T"


class ExecFailed(Exception):
    """The exec cannot be; the text is what runc would say after "unable to start container process: "."""


def words(error: OSError) -> str:
    """What has gone wrong, as Go puts it."""
    return os.strerror(error.errno or 0).lower()


def run(request_fd: int, init: int, stdio: list[int], report: _socket.socket) -> None:
    """Carry an exec out; never returns. init: pidfd of the container's first process. stdio: three descriptors; none
    for a terminal."""
    try:
        sys.meta_path.clear()
        kernel.close_others([request_fd, init, report.fileno(), *stdio])
        request = Request.loads(_whole(request_fd))
        _enter(request, init)
        _start(request, stdio, report)
    except ExecFailed as failure:
        _fail(report, str(failure))
    except OSError as error:
        _fail(report, f"{error.filename or 'exec'}: {words(error)}")
    except BaseException as error:
        _fail(report, f"{type(error).__name__}: {error}")


def _fail(report: _socket.socket, text: str) -> None:
    try:
        report.send(FAILED + text.encode(errors="replace")[:_TEXT_LIMIT])
    finally:
        os._exit(1)


def _whole(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0)


# ---------------------------------------------------------------------------------------------- into the container


def _enter(request: Request, init: int) -> None:
    """Join the cgroups and namespaces of the container."""
    for folder in request.cgroups:
        _join_cgroup(folder, init)
    if request.oom_score is not None:
        _write("/proc/self/oom_score_adj", str(request.oom_score))
    for number, soft, hard in request.limits:
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError):
            text = f"error setting rlimits for process: error setting rlimit type {number}: operation not permitted"
            raise ExecFailed(text) from None
    try:
        # While this is root of the host every namespace can be joined, whichever user namespace owns it.
        others = request.namespaces & ~kernel.CLONE_NEWUSER
        if others:
            kernel.setns(init, others)
        if request.namespaces & kernel.CLONE_NEWUSER:
            kernel.setns(init, kernel.CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
    except OSError as error:
        raise ExecFailed(f"error joining the container's namespaces: {words(error)}") from None
    kernel.hide()
    try:
        kernel.join_keyring(request.keyring)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise ExecFailed(f"unable to join session keyring: {words(error)}") from None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _join_cgroup(folder: str, init: int) -> None:
    try:
        try:
            _write(folder + "/cgroup.procs", "0")
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EOPNOTSUPP):
                raise
            # A unified group that delegates to groups of its own holds no process: the first process's one does.
            _write(_group_of(folder, init) + "/cgroup.procs", "0")
    except OSError as error:
        raise ExecFailed(f"error adding pid to cgroup {folder}: {words(error)}") from None


def _group_of(folder: str, init: int) -> str:
    """The folder of the unified group below `folder` that holds the container's first process."""
    pid = _pid_of(init)
    with open(f"/proc/{pid}/cgroup") as lines:
        for line in lines:
            number, _, path = line.rstrip("\n").split(":", 2)
            at = folder.find(path.split("/")[1]) if number == "0" and path != "/" else -1
            if at > 0 and (found := folder[: at - 1] + path).startswith(folder):
                return found
    return folder


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        for line in lines:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return -1


# ------------------------------------------------------------------------------------------------------ the command


def _start(request: Request, stdio: list[int], report: _socket.socket) -> None:
    """Take the command's identity and start it."""
    environment = dict(request.env)
    if not environment.get("HOME"):
        environment["HOME"] = _home(request.uid)
    if request.terminal:
        stdio = _open_terminal(request, report)
    _give(stdio, request)
    os.umask(request.umask)
    _privileges(request)
    program = _look_up(request.args[0], environment.get("PATH", ""))
    kernel.arrange([*stdio, report.fileno()])
    os.set_inheritable(3, False)
    report = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, 3)
    kernel.default_signals()
    _launch(request, program, environment, report)


def _launch(request: Request, program: str, environment: dict[str, str], report: _socket.socket) -> None:
    """Give birth to the command's process, and leave. `report` is descriptor 3 of both and closes as the command runs."""
    early = request.filter and request.filter_early
    try:
        if early:
            _load_filter(request)
        pid = _born(report)
        if pid:
            report.send(BORN + str(pid).encode())
            os._exit(0)
        os.setsid()
        if request.terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if request.filter and not early:
            _load_filter(request)
    except OSError as error:
        _fail(report, f"{error.filename or 'exec'}: {words(error)}")
    try:
        os.execve(program, request.args, environment)
    except OSError as error:
        # The command has been started as far as anybody can tell: this is its output.
        os.write(2, f"exec {program}: {words(error)}\n".encode(errors="replace"))
    except ValueError as error:
        _fail(report, str(error))
    os._exit(1)


def _born(report: _socket.socket) -> int:
    """The command's process: its pid, 0 in itself. A container that may have no more processes has room for one that
    comes from outside all the same, as runc's does: it is told that this is runc's to do."""
    try:
        return kernel.clone(kernel.CLONE_PARENT)
    except BlockingIOError:
        report.send(REFUSED)
        os._exit(1)


def _load_filter(request: Request) -> None:
    kernel.load_filter(request.filter, request.filter_flags)
    kernel.set_capabilities(*request.capabilities[1:4])


def _home(uid: int) -> str:
    """The folder that the container's passwd file gives a user."""
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return "/"
    try:
        data = os.read(fd, _PASSWD_LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == str(uid).encode():
            return os.fsdecode(fields[5]) or "/"
    return "/"


def _open_terminal(request: Request, report: _socket.socket) -> list[int]:
    """A terminal of the container's own devpts; the other end goes to the launcher."""
    try:
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        info = os.fstat(master)
        if not stat.S_ISCHR(info.st_mode) or info.st_rdev != os.makedev(5, 2):
            raise ExecFailed("open /dev/ptmx: no terminal multiplexer")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        # By descriptor: /dev/pts/N is a name that the container can put anything under (CVE-2025-52565).
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise ExecFailed(f"open /dev/ptmx: {words(error)}") from None
    if any(request.size):
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", *request.size, 0, 0))
    report.sendmsg([TERMINAL], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", master))])
    os.close(master)
    return [slave, slave, slave]


def _give(stdio: list[int], request: Request) -> None:
    """Let the command's user open its stdio again (/dev/stdout); /dev/null is everybody's."""
    for fd in set(stdio):
        info = os.fstat(fd)
        if info.st_uid == request.uid or (stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)):
            continue
        try:
            os.fchown(fd, request.uid, -1)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise


def _privileges(request: Request) -> None:
    """Become the command's user in its folder, with no capability but the command's (and, for a filter that
    no_new_privs does not let a plain user load, the one that loads it)."""
    bounding, effective, permitted, inheritable, ambient = request.capabilities
    kernel.bound_capabilities(bounding)
    inside = _change_folder(request.cwd)
    kernel.keep_capabilities(True)
    try:
        os.setgroups(request.groups)
    except PermissionError:
        if request.groups:
            raise ExecFailed("setgroups: operation not permitted") from None
    try:
        os.setresgid(request.gid, request.gid, request.gid)
        os.setresuid(request.uid, request.uid, request.uid)
    except OSError as error:
        raise ExecFailed(f"setting the user: {words(error)}") from None
    kernel.hide()
    if not inside and not _change_folder(request.cwd):
        raise ExecFailed(f'chdir to cwd ("{request.cwd}") set in config.json failed: permission denied')
    if not _is_inside():
        raise ExecFailed(
            "current working directory is outside of container mount namespace root -- possible container breakout detected"
        )
    kernel.keep_capabilities(False)
    if request.no_new_privileges:
        kernel.no_new_privileges()
    loading = 1 << kernel.CAP_SYS_ADMIN if request.filter and not request.no_new_privileges else 0
    kernel.set_capabilities(effective | loading, permitted | loading, inheritable)
    kernel.set_ambient(ambient)


def _is_inside() -> bool:
    """Whether the working folder is one of the container's (CVE-2024-21626)."""
    try:
        return kernel.working_folder().startswith(b"/")
    except OSError as error:
        return error.errno == errno.ERANGE  # too deep for the call, but there


def _change_folder(path: str) -> bool:
    """Whether the folder could be entered; one that a user may reach and root may not is tried again as the user."""
    try:
        os.chdir(path)
    except PermissionError:
        return False
    except OSError as error:
        raise ExecFailed(f'chdir to cwd ("{path}") set in config.json failed: {words(error)}') from None
    return True


def _look_up(name: str, path: str) -> str:
    """The program that a name means, by the command's own PATH and rights. Source: Go's exec.LookPath."""
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if "/" in name:
        if problem := _unfit(name):
            raise ExecFailed(f"exec: {quoted}: {problem}")
        return name
    for folder in path.split(":") if path else ():
        found = f"{folder or '.'}/{name}"
        if not _unfit(found):
            if not found.startswith("/"):
                raise ExecFailed(f"exec: {quoted}: cannot run executable found relative to current directory")
            return found
    raise ExecFailed(f"exec: {quoted}: executable file not found in $PATH")


def _unfit(path: str) -> str:
    """Why a path is no program; "" when it is one."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"stat {path}: {words(error)}"
    return "permission denied" if stat.S_ISDIR(mode) or not mode & 0o111 else ""
