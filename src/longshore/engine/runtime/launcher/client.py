"""The engine's side of the launcher: starts its process when it is first needed, asks it, and ends it when it has had
nothing to do for a while."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import struct
import termios

from longshore.engine.runtime.attachment import STDOUT, Attachment
from longshore.engine.runtime.pipes import Ends, PipeAttachment
from longshore.engine.runtime.records import ExecSession, NotRunning, RuntimeFailed, resolve
from longshore.machinery.process import Process

from . import housing, program
from .request import NotCarried, Request

log = logging.getLogger("longshore.engine.runtime")

_IDLE_SECONDS = 60.0
_START_SECONDS = 30.0
_LOST = 137
"""The exit code of an exec whose launcher was killed: nobody saw how it ended."""


class LauncherMissing(RuntimeError):
    """This machine gives the launcher's process not what it needs; the text says what."""


class LaunchedExec(ExecSession):
    """An exec that the launcher has started."""

    def __init__(
        self, id: str, container_id: str, pid: int, io: Attachment | None, pidfd: int, terminal: int, channel: _Channel
    ) -> None:
        """pidfd, terminal (-1: none): descriptors that become the session's."""
        super().__init__(id, container_id, pid, io, terminal >= 0)
        self._pidfd = pidfd
        self._terminal = terminal
        self._channel = channel

    def has_ended(self, code: int) -> None:
        super().has_ended(code)
        if isinstance(self.io, PipeAttachment):
            self.io.ended()
        os.close(self._pidfd)
        self._close_terminal()

    def kill(self, sig: int = signal.SIGKILL) -> None:
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, sig)

    def hang_up(self) -> None:
        if not self._exited.done():
            self._channel.say(program.HANG_UP)
            if self.io is not None:
                self.io.close()
            self._close_terminal()

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal < 0:
            raise NotRunning("terminal is closed")
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("4H", rows & 0xFFFF, columns & 0xFFFF, 0, 0))

    def _close_terminal(self) -> None:
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1


class _Channel:
    """What the launcher says of one exec."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._packets: asyncio.Queue[tuple[bytes, list[int]]] = asyncio.Queue()
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data, fds, _ = program.receive(self._sock)
            if not data:
                self._loop.remove_reader(self._sock.fileno())
            self._packets.put_nowait((data, fds))

    async def packet(self) -> tuple[bytes, list[int]]:
        """The next packet and its descriptors; b"" at the end."""
        return await self._packets.get()

    def say(self, word: bytes) -> None:
        if self._sock.fileno() >= 0:
            program.send(self._sock, word)

    def release(self) -> None:
        """Listen no more; the socket stays open."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())

    def close(self) -> None:
        self.release()
        self._sock.close()


class Launcher:
    """Starts commands in containers. Belongs to one event loop."""

    def __init__(self, idle: float = _IDLE_SECONDS) -> None:
        """idle: seconds without a running exec after which the process goes."""
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._control: socket.socket | None = None
        self._process: Process | None = None
        self._starting = asyncio.Lock()
        self._sending = asyncio.Lock()
        self._running = 0
        self._following: dict[asyncio.Task[None], _Channel] = {}
        self._ending: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """The process's number; 0 while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def exec(
        self, id: str, container_id: str, request: Request, init: int, *, stdin: bool, attach: bool
    ) -> ExecSession:
        """Start a command. init: pidfd of the container's first process. stdin: whether it has an input. attach: whether
        its stdio is given back.

        Raises LauncherMissing, NotCarried, or RuntimeFailed when the command cannot be run.
        """
        await self._started()
        ends = Ends(stdin=stdin and attach and not request.terminal, output=attach and not request.terminal)
        channel: _Channel | None = None
        self._running += 1
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                ours.setblocking(False)
                channel = _Channel(ours)
                await self._ask(request, theirs.fileno(), init, ends)
            ends.given()
            if not attach:
                channel.say(program.DRAIN)
            said, given = await channel.packet()
            if said[:1] == program.REFUSED:
                raise NotCarried("the container may have no more processes")
            if said[:1] != program.BORN:
                text = said[1:].decode(errors="replace") or "process could not be started"
                raise RuntimeFailed(f"exec failed: unable to start container process: {text}")
            session = self._session(id, container_id, int(said[1:]), given, ends, channel, request.terminal, attach)
        except BaseException:
            ends.close()
            if channel is not None:
                channel.say(program.HANG_UP)
                channel.close()
            self._has_ended()
            raise
        task = self._loop.create_task(self._follow(session, channel))
        self._following[task] = channel
        task.add_done_callback(lambda task: self._following.pop(task, None))
        return session

    async def _ask(self, request: Request, channel: int, init: int, ends: Ends) -> None:
        """Send a request; the launcher's side of it is program.Program._asked."""
        memory = os.memfd_create("exec", os.MFD_CLOEXEC)
        try:
            data = request.dumps()
            if os.write(memory, data) != len(data):
                raise RuntimeFailed("exec failed: request could not be written")
            outputs, stdio = list(ends.outputs.values()), sorted(ends.theirs.items())
            head = bytes([sum(1 << stream for stream, _ in stdio), len(outputs)])
            await self._send(head, [memory, channel, init, *outputs, *(fd for _, fd in stdio)])
        finally:
            os.close(memory)

    def _session(
        self,
        id: str,
        container: str,
        pid: int,
        given: list[int],
        ends: Ends,
        channel: _Channel,
        tty: bool,
        attach: bool,
    ) -> LaunchedExec:
        pidfd, *more = given
        outputs, input = ends.outputs, ends.input
        if tty:
            os.set_blocking(more[0], False)
        if tty and attach:
            input = os.dup(more[0])
            outputs = {STDOUT: input}
        io = None
        if attach:
            io = PipeAttachment(outputs, input, terminal=tty, on_close=lambda: channel.say(program.DRAIN))
        return LaunchedExec(id, container, pid, io, pidfd, more[0] if tty else -1, channel)

    async def _follow(self, session: LaunchedExec, channel: _Channel) -> None:
        try:
            said, _ = await channel.packet()
            if said[:1] == program.ENDED:
                session.has_ended(int(said[1:]))
            else:
                session.kill()  # what nobody holds any more is not to go on as if it had ended
                session.has_ended(_LOST)
        finally:
            channel.close()
            self._has_ended()

    # ------------------------------------------------------------------------------------------------- its process

    async def _started(self) -> socket.socket:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        async with self._starting:
            if self._control is not None and self.pid:
                return self._control
            self._leave()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            channel = _Channel(ours)
            try:
                with theirs:
                    pid = await asyncio.to_thread(housing.spawn, theirs.fileno())
                self._process = Process(pid)
                async with asyncio.timeout(_START_SECONDS):
                    said, _ = await channel.packet()
                if said != program.READY:
                    raise LauncherMissing("its process has ended at once")
            except (OSError, TimeoutError) as error:
                channel.close()
                raise LauncherMissing(str(error) or "its process does not answer") from None
            except BaseException:
                channel.close()
                raise
            channel.release()
            self._control = ours
            return ours

    async def _send(self, data: bytes, fds: list[int]) -> None:
        """Hand a request over; to a new process when the one that was there has just ended."""
        for last in (False, True):
            control = await self._started()
            try:
                async with self._sending:
                    await self._send_to(control, data, fds)
                return
            except OSError:
                self._leave()
                if last:
                    raise RuntimeFailed("exec failed: the launcher has ended") from None

    async def _send_to(self, control: socket.socket, data: bytes, fds: list[int]) -> None:
        while True:
            try:
                socket.send_fds(control, [data], fds)
                return
            except BlockingIOError:
                ready: asyncio.Future[None] = self._loop.create_future()
                self._loop.add_writer(control.fileno(), resolve, ready)
                try:
                    await ready
                finally:
                    self._loop.remove_writer(control.fileno())

    def _has_ended(self) -> None:
        self._running -= 1
        if not self._running:
            self._ending = self._loop.call_later(self._idle, self._leave)

    def _leave(self) -> None:
        """Let the process go: it ends with its last command."""
        if self._control is not None:
            self._control.close()
            self._control = None

    def close(self) -> None:
        """Leave; commands that run go on, and their output is read by the launcher."""
        for task, channel in self._following.items():
            task.cancel()
            channel.close()
        if self._ending is not None:
            self._ending.cancel()
        self._leave()
