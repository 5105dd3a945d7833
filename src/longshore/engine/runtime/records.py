"""What the runtime keeps of a container and of an exec, and what it says of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from longshore.machinery import process
from longshore.machinery.process import Process

from .attachment import Attachment


class RuntimeFailed(RuntimeError):
    """The OCI runtime refused; the text is its own."""


class NoSuchContainer(KeyError):
    """The runtime holds no container of this id."""

    def __str__(self) -> str:
        return f"no such container: {self.args[0]}"


class NotRunning(RuntimeError):
    """The operation needs a process that lives."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: its code (128 + number for a signal), when (seconds since 1970), whether memory ran out."""

    code: int
    at: float
    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a container. status: created, running, paused or stopped. Times in seconds since 1970, 0: never."""

    id: str
    status: str
    pid: int
    created_at: float
    started_at: float
    exit: ExitStatus | None
    log_path: Path | None
    terminal: bool
    labels: Mapping[str, str]
    cgroup: str
    bundle: Path
    exec_ids: tuple[str, ...]


@dataclass(slots=True)
class Record:
    id: str
    folder: Path
    exited: asyncio.Future[ExitStatus]
    runtime: str
    pid: int = 0
    monitor_pid: int = 0
    created_at: float = 0.0
    started_at: float = 0.0
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False
    log_path: str = ""
    cgroup: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    monitor_fd: int = -1
    init_fd: int = -1
    child: process.Process | None = None
    held: list[socket.socket] = field(default_factory=list)
    execs: dict[str, ExecSession] = field(default_factory=dict)
    paused: bool = False
    oom_before: int = 0


class ExecSession(ABC):
    """A further process in a container. `io` is its stdio when it was started attached."""

    def __init__(self, id: str, container_id: str, pid: int, io: Attachment | None, terminal: bool) -> None:
        self.id = id
        self.container_id = container_id
        self.pid = pid
        self.io = io
        self.terminal = terminal
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._exited.result() if self._exited.done() else None

    async def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        return await asyncio.shield(self._exited)

    def has_ended(self, code: int) -> None:
        """The process has ended (for whoever sees it)."""
        if not self._exited.done():
            self._exited.set_result(code)

    def on_end(self, call: Callable[[], object]) -> None:
        """Have something called when the process has ended."""
        self._exited.add_done_callback(lambda _: call())

    @abstractmethod
    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Signal the process."""

    @abstractmethod
    def hang_up(self) -> None:
        """Nobody reads its output or writes its input any more: close them, whatever the process makes of it.

        It gets SIGPIPE or EPIPE when it writes, the end of its input, SIGHUP from a terminal. One that does neither goes
        on, as on containerd, until it or its container ends.
        """

    @abstractmethod
    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size. Raises NotRunning."""


class MonitoredExec(ExecSession):
    """An exec that runc has started and a monitor holds."""

    def __init__(
        self,
        id: str,
        container_id: str,
        folder: Path,
        pid: int,
        io: Attachment | None,
        terminal: bool,
        monitor: Process,
    ) -> None:
        super().__init__(id, container_id, pid, io, terminal)
        self.folder = folder
        self._monitor = monitor

    def kill(self, sig: int = signal.SIGKILL) -> None:
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def hang_up(self) -> None:
        # The monitor holds the other ends and would drain them for ever, so it goes; the exit code is not known then.
        if not self._exited.done():
            self._monitor.kill()

    def resize(self, rows: int, columns: int) -> None:
        control(self.folder, f"1 {rows} {columns}\n")


def resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def control(folder: Path, line: str) -> None:
    """Write a line to a monitor's control pipe. Raises NotRunning when nobody reads it."""
    try:
        fd = os.open(folder / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotRunning(f"monitor has gone: {error.strerror}") from None
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    os.replace(temporary, path)
