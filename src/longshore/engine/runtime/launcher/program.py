"""The launcher's process: waits for requests, forks for each, tells how each exec ended.

It reads no request itself: the child that carries one out does, so that nothing of an exec is in the memory of the next
one's processes. Its mounts are read-only copies of the few that Python needs (see `housing`): what the container may
find as the program or the libraries of a process that enters it cannot be written (CVE-2019-5736).

Three sockets of packets. The engine's: "one exec", with descriptors. One an exec to the engine: born, failed, ended; from
it "drain" or "hang up"; its end means that the engine has gone. One an exec to the processes that carry it out: the
kernel says which of them speaks, as the command's may be in the container's hands already.

The commands are this process's children. It ends when the engine's socket has ended and no command runs any more.
"""

from __future__ import annotations

import _socket
import gc
import os
import select
import signal
import struct
import sys

from . import entering, kernel

#: First byte of a packet to the engine, and of one from it.
BORN, FAILED, REFUSED, ENDED = b"B", b"F", b"R", b"X"
DRAIN, HANG_UP = b"D", b"H"
READY = b"ready"

_IN = select.POLLIN | select.POLLHUP | select.POLLERR
_PACKET = 65536
_MOST_DESCRIPTORS = 8
_FDS = _socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS)
_CREDENTIALS = _socket.CMSG_SPACE(12)

Socket = _socket.socket


def receive(sock: Socket) -> tuple[bytes, list[int], int]:
    """One packet: what it says (b"" at the end), descriptors with it, and the pid of who sent it (0 where that is not
    told). Raises BlockingIOError when there is none."""
    flags = _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
    try:
        data, parts, _, _ = sock.recvmsg(_PACKET, _FDS + _CREDENTIALS, flags)
    except BlockingIOError:
        raise
    except OSError:
        return b"", [], 0
    fds: list[int] = []
    sender = 0
    for level, kind, content in parts:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        elif level == _socket.SOL_SOCKET and kind == _socket.SCM_CREDENTIALS and len(content) >= 12:
            sender = struct.unpack("iII", content[:12])[0]
    return data, fds, sender


def send(sock: Socket, data: bytes, fds: list[int] | None = None) -> None:
    """One packet; nothing happens when nobody reads any more."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    try:
        sock.sendmsg([data], rights, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)
    except OSError:
        return


class Exec:
    """One exec. channel: to the engine. report: from the processes that carry it out. outputs: our copies of the ends
    where its output can be read, which keep it from breaking while the engine is away."""

    def __init__(self, channel: Socket, outputs: list[int]) -> None:
        self.channel: Socket | None = channel
        self.report: Socket | None = None
        self.carrier = 0
        self.outputs = outputs
        self.failure = b""
        self.pid = 0
        self.pidfd = -1
        self.terminal = -1
        self.draining = False


class Program:
    def __init__(self, control: Socket) -> None:
        self.control: Socket | None = control
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.poll = select.poll()
        self.watched: dict[int, tuple[Exec, str]] = {}
        self.running = 0
        self.poll.register(control.fileno(), _IN)
        send(control, READY)

    def run(self) -> None:
        """Serve until the engine has gone and the last command has ended."""
        while self.control is not None or self.running:
            for fd, _ in self.poll.poll():
                try:
                    self._happened(fd)
                except BlockingIOError:
                    continue  # the event was of a descriptor that has been closed, and its number used again, since

    def _happened(self, fd: int) -> None:
        if self.control is not None and fd == self.control.fileno():
            self._asked()
        elif (found := self.watched.get(fd)) is not None:
            run, what = found
            if what == "channel":
                self._told(run)
            elif what == "report":
                self._reported(run)
            elif what == "command":
                self._ended(run)
            else:
                self._drain(run, fd)

    def _watch(self, fd: int, run: Exec, what: str) -> None:
        self.watched[fd] = (run, what)
        self.poll.register(fd, _IN)

    def _forget(self, fd: int) -> None:
        if self.watched.pop(fd, None) is not None:
            self.poll.unregister(fd)

    # -------------------------------------------------------------------------------------------------- the engine

    def _asked(self) -> None:
        """An exec: (bits of what stdio is given, number of outputs); request, channel, pidfd, outputs, stdio."""
        assert self.control is not None
        data, fds, _ = receive(self.control)
        if not data:
            self.poll.unregister(self.control.fileno())
            self.control.close()
            self.control = None
            return
        given, count = data[0], data[1]
        request, channel, init, *rest = fds
        outputs, stdio = rest[:count], iter(rest[count:])
        wanted = [next(stdio) if given >> n & 1 else self.null for n in range(3)]
        run = Exec(Socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, channel), outputs)
        self.running += 1
        self._watch(channel, run, "channel")
        try:
            self._fork(run, request, init, wanted)
        except OSError as error:
            run.failure = FAILED + entering.words(error).encode()
            self._failed(run)
        finally:
            for fd in {request, init, *wanted} - {self.null}:
                os.close(fd)

    def _fork(self, run: Exec, request: int, init: int, stdio: list[int]) -> None:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        run.carrier = os.fork()
        if run.carrier == 0:
            entering.run(request, init, stdio, theirs)
        theirs.close()
        run.report = ours
        self._watch(ours.fileno(), run, "report")

    def _told(self, run: Exec) -> None:
        """The engine reads no output any more (drain), nobody does (hang up), or it has gone."""
        if run.channel is None:
            return
        data = receive(run.channel)[0]
        if data == HANG_UP:
            self._close_outputs(run)
        elif not run.draining:
            run.draining = True
            for fd in run.outputs:
                self._watch(fd, run, "output")
        if not data:
            self._forget(run.channel.fileno())
            run.channel.close()
            run.channel = None

    def _drain(self, run: Exec, fd: int) -> None:
        """Read what nobody else reads, so that the command does not stand still."""
        try:
            if os.read(fd, _PACKET):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._forget(fd)
        run.outputs.remove(fd)
        os.close(fd)

    def _close_outputs(self, run: Exec) -> None:
        for fd in run.outputs:
            self._forget(fd)
            os.close(fd)
        run.outputs.clear()

    # ------------------------------------------------------------------------------------------------- the command

    def _reported(self, run: Exec) -> None:
        """What the carrier or the command's process before it is the command says; its end: it is the command."""
        assert run.report is not None
        data, fds, sender = receive(run.report)
        if data[:1] == entering.BORN and sender == run.carrier and not run.pid:
            run.pid = int(data[1:])
            run.pidfd = os.pidfd_open(run.pid)
        elif data[:1] == entering.TERMINAL and sender == run.carrier and len(fds) == 1 and run.terminal < 0:
            run.terminal = fds.pop()
        elif data[:1] in (entering.FAILED, entering.REFUSED) and not run.failure:
            run.failure = data
        for fd in fds:
            os.close(fd)
        if not data:
            self._forget(run.report.fileno())
            run.report.close()
            run.report = None
            self._is_born(run)

    def _is_born(self, run: Exec) -> None:
        os.waitpid(run.carrier, 0)
        if run.pidfd < 0 or run.failure:
            self._failed(run)
            return
        if run.channel is not None:
            fds = [run.pidfd, *([run.terminal] if run.terminal >= 0 else [])]
            send(run.channel, BORN + str(run.pid).encode(), fds)
        if run.terminal >= 0:
            run.outputs.append(run.terminal)
            if run.draining:
                self._watch(run.terminal, run, "output")
            run.terminal = -1
        self._watch(run.pidfd, run, "command")

    def _failed(self, run: Exec) -> None:
        if run.channel is not None:
            send(run.channel, run.failure or FAILED + b"process could not be started")
        if run.pidfd < 0:
            self._done(run)
            return
        # Whatever that process is now (it may have been in the container's hands), it is not to be.
        signal.pidfd_send_signal(run.pidfd, signal.SIGKILL)
        self._watch(run.pidfd, run, "command")

    def _ended(self, run: Exec) -> None:
        found = os.waitid(os.P_PIDFD, run.pidfd, os.WEXITED | os.WNOHANG)
        if found is None:
            return
        code = found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
        if run.channel is not None and not run.failure:
            send(run.channel, ENDED + str(code).encode())
        self._done(run)

    def _done(self, run: Exec) -> None:
        self._close_outputs(run)
        if run.terminal >= 0:
            os.close(run.terminal)
        if run.pidfd >= 0:
            self._forget(run.pidfd)
            os.close(run.pidfd)
        if run.channel is not None:
            self._forget(run.channel.fileno())
            run.channel.close()
            run.channel = None
        self.running -= 1


def main(control: int) -> None:
    """Serve the engine at the other end of a socket that was inherited."""
    kernel.hide()
    os.chdir("/")
    kernel.close_others([0, 1, 2, control])
    os.set_inheritable(control, False)
    sys.path.clear()
    gc.disable()  # one object a request, and none in a circle; what is not walked stays shared with the children
    gc.freeze()
    Program(Socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control)).run()
