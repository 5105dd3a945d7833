"""Start other programs without forking a big process, and wait for them without a thread each.

posix_spawn only (vfork underneath): fork() of a process with large caches stalls it for 100 ms and more.
Exits are seen through a pidfd on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a program: its exit code (negative: the signal that ended it) and what it wrote."""

    returncode: int
    stdout: bytes
    stderr: bytes


class ProcessFailed(RuntimeError):
    """A program ended with a code other than 0; `.completed` holds what it said."""

    def __init__(self, argv: Sequence[str], completed: Completed) -> None:
        self.argv = list(argv)
        self.completed = completed
        words = completed.stderr.decode(errors="replace").strip() or completed.stdout.decode(errors="replace").strip()
        super().__init__(f"{argv[0]} ended with {completed.returncode}: {words[-2000:]}")


class Process:
    """A started child. `wait()` may be called by several tasks; the child is reaped once."""

    __slots__ = ("_done", "_pidfd", "pid", "returncode")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        loop = asyncio.get_running_loop()
        self._done: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        loop.add_reader(self._pidfd, self._exited)

    def _exited(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.returncode = os.waitstatus_to_exitcode(status)
        if not self._done.done():
            self._done.set_result(self.returncode)

    async def wait(self) -> int:
        """Wait for the end; returns the exit code, negative for a signal."""
        return await asyncio.shield(self._done)

    def send_signal(self, sig: int) -> None:
        """Signal the child; one that has ended already is left alone (its pid may be another's by now)."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def spawn(
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Mapping[int, int] | None = None,
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
) -> Process:
    """Start a program and watch it from the running loop.

    stdin, stdout, stderr: descriptors of ours for the child's 0, 1, 2 (None: /dev/null for 0, inherited for 1 and 2).
    pass_fds: child's descriptor number to ours. env: the whole environment (None: ours). new_session: setsid first.
    Raises FileNotFoundError or PermissionError when the program cannot be run.
    """
    actions: list[tuple[int, int, int] | tuple[int, int] | tuple[int, int, str, int, int]] = []
    wanted: dict[int, int] = dict(pass_fds or {})
    for number, fd in ((0, stdin), (1, stdout), (2, stderr)):
        if fd is not None:
            wanted[number] = fd
    # A target number may be the source of a later dup2: move every clashing source out of the way first.
    spares: list[int] = []
    try:
        for target, source in list(wanted.items()):
            if source == target or source in wanted:
                # F_DUPFD_CLOEXEC above all targets; dup2 in the child clears close-on-exec.
                import fcntl

                spare = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, max(wanted) + 1)
                spares.append(spare)
                wanted[target] = spare
        if 0 not in wanted:
            actions.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0))
        actions.extend((os.POSIX_SPAWN_DUP2, source, target) for target, source in wanted.items())
        pid = os.posix_spawnp(
            argv[0],
            list(argv),
            dict(os.environ if env is None else env),
            file_actions=actions,
            setsid=new_session,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ),
        )
    finally:
        for spare in spares:
            os.close(spare)
    return Process(pid)


async def _drain(fd: int, limit: int) -> bytes:
    """Read a pipe to its end without blocking the loop; what lies past `limit` bytes is read and dropped."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**20)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    parts: list[bytes] = []
    size = 0
    try:
        while chunk := await reader.read(65536):
            if size < limit:
                parts.append(chunk[: limit - size])
            size += len(chunk)
    finally:
        transport.close()
    return b"".join(parts)


async def _feed(fd: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb"))
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        writer.write(data)
        await writer.drain()
    writer.close()


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: bool = True,
    pass_fds: Mapping[int, int] | None = None,
    output_limit: int = 16 * 2**20,
) -> Completed:
    """Run a program to its end and collect its output.

    timeout: seconds, after which it is killed and TimeoutError raised. check: raise ProcessFailed on a code other than 0.
    """
    close: list[int] = []
    tasks: list[asyncio.Task[bytes]] = []
    feed: asyncio.Task[None] | None = None
    out_r, out_w = os.pipe2(os.O_CLOEXEC)
    err_r, err_w = os.pipe2(os.O_CLOEXEC)
    close += [out_w, err_w]
    in_w = -1
    try:
        stdin_fd: int | None = None
        if stdin is not None:
            stdin_fd, in_w = os.pipe2(os.O_CLOEXEC)
            close.append(stdin_fd)
        try:
            process = spawn(argv, stdin=stdin_fd, stdout=out_w, stderr=err_w, env=env, pass_fds=pass_fds)
        except OSError:
            for fd in (out_r, err_r, *((in_w,) if in_w >= 0 else ())):
                os.close(fd)
            raise
    finally:
        for fd in close:
            os.close(fd)
    tasks = [asyncio.ensure_future(_drain(out_r, output_limit)), asyncio.ensure_future(_drain(err_r, output_limit))]
    if stdin is not None:
        feed = asyncio.ensure_future(_feed(in_w, stdin))
    try:
        async with asyncio.timeout(timeout):
            code = await process.wait()
            stdout, stderr = await asyncio.gather(*tasks)
            if feed:
                await feed
    except BaseException:
        process.kill()
        for task in (*tasks, *((feed,) if feed else ())):
            task.cancel()
        raise
    completed = Completed(code, stdout, stderr)
    if check and code != 0:
        raise ProcessFailed(argv, completed)
    return completed


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors, ignoring those that are closed already."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
