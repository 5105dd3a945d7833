"""Containers of frontends and debuggers (NewContainer, ExecProcess): results mounted, commands run in them with their own streams.

Source: BuildKit frontend/gateway/gateway.go (ExecProcess: the order of messages), frontend/gateway/container.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.build.buildkit.mounting import Mounting
from longshore.engine.build.buildkit.schemas import bridge
from longshore.engine.build.step import Attached, Mount, RunStep, StepRoot
from longshore.engine.errors import EngineError
from longshore.engine.images.streams import in_thread
from longshore.machinery.grpc import RpcError, Status

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.definitions import Solver
    from longshore.engine.build.step import Runner

_PIECE = 32 << 10
_UNKNOWN_EXIT = 255
_LIMIT = 64


class Containers:
    """The containers that one build's client or frontend made, by the ids that it gave them."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._made: dict[str, GatewayContainer] = {}

    async def new(self, solver: Solver, request: Any, chains: list[str], *, insecure: bool) -> None:
        """Make one. chains: the layers of each mount's result, "" for none. insecure: commands may ask for all privileges."""
        name = request.ContainerID
        if name in self._made or len(self._made) >= _LIMIT:
            raise RpcError(Status.ALREADY_EXISTS, f"container {name!r} already exists")
        made = GatewayContainer(self._runner, solver, request, insecure)
        self._made[name] = made
        try:
            await made.prepare(chains)
        except BaseException:
            await self.release(name)
            raise

    def get(self, name: str) -> GatewayContainer:
        """Raises RpcError for one that is not there."""
        found = self._made.get(name)
        if found is None:
            raise RpcError(Status.NOT_FOUND, f'container "{name}" previously released or not created')
        return found

    async def release(self, name: str) -> None:
        """End a container's processes and let go of its mounts."""
        made = self._made.pop(name, None)
        if made is None:
            raise RpcError(Status.NOT_FOUND, f'container "{name}" previously released or not created')
        await asyncio.shield(made.close())

    async def close(self) -> None:
        for name in list(self._made):
            await self.release(name)


class GatewayContainer:
    """One container: its files, and the commands in it. The first command is the container's own, others join it."""

    def __init__(self, runner: Runner, solver: Solver, request: Any, insecure: bool) -> None:
        self._runner, self._solver, self._request, self._insecure = runner, solver, request, insecure
        self._stack = contextlib.AsyncExitStack()
        self._root: StepRoot | None = None
        self._mounts: list[Mount] = []
        self._roots: list[Path | None] = []
        self._first: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[int]] = set()

    async def prepare(self, chains: list[str]) -> None:
        """Mount what the request says."""
        wanted = []
        inputs: list[str] = []
        for mount, chain in zip(self._request.Mounts, chains, strict=True):
            mount.output = -1
            mount.input = -1
            if mount.resultID:
                mount.input = len(inputs)
                inputs.append(chain)
            wanted.append(mount)
        mounting = Mounting(self._solver, inputs, "/", self._stack)
        self._root, self._mounts = await mounting.all(wanted)
        self._roots = mounting.roots
        points = [(mount.target, mount.folder) for mount in self._mounts]
        await in_thread(self._root.add_mount_points, points)

    def files(self, index: int) -> Path:
        """The folder that shows a mount's files. Raises RpcError."""
        root = self._roots[index] if 0 <= index < len(self._roots) else None
        if root is None:
            raise RpcError(Status.INVALID_ARGUMENT, f"mount {index} has no files")
        return root

    async def run(self, message: Any, attached: Attached) -> int:
        """Run a command; its exit code. Raises EngineError, RpcError."""
        task = asyncio.ensure_future(self._run(message, attached))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await task

    async def _run(self, message: Any, attached: Attached) -> int:
        if message.Security and not self._insecure:
            raise RpcError(Status.UNKNOWN, "security.insecure is not allowed")
        step = await self._step(message)
        if self._first is not None:
            await asyncio.shield(self._first)
            return await self._runner.join(step, attached)
        self._first = first = asyncio.get_running_loop().create_future()
        told = attached.started

        def started() -> None:
            if not first.done():
                first.set_result(None)
            told()

        attached.started = started
        try:
            return await self._runner.run(step, lambda _, __: None, attached)
        finally:
            if not first.done():
                first.cancel()

    async def _step(self, message: Any) -> RunStep:
        assert self._root is not None
        meta = message.Meta
        env = list(meta.env)
        if message.Tty and not any(entry.startswith("TERM=") for entry in env):
            env.append("TERM=xterm")
        for secret in message.secretenv:
            value = await self._solver.session.secret(secret.ID)
            if value is None and not secret.optional:
                raise RpcError(Status.NOT_FOUND, f"secret {secret.ID}: not found")
            env.append(f"{secret.name}={(value or b'').decode('utf-8', 'replace')}")
        request = self._request
        return RunStep(
            self._root.id,
            self._root.merged,
            list(meta.args),
            env,
            meta.cwd or "/",
            user=meta.user,
            network={1: "host", 2: "none"}.get(request.Network, "default"),
            mounts=self._mounts,
            hosts=[(host.Host, host.IP) for host in request.extraHosts],
            hostname=request.hostname,
            privileged=bool(message.Security),
        )

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


class Exchange:
    """One ExecProcess call: commands of the client's containers, told apart by the ids that it gives them."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self._out: asyncio.Queue[Any] = asyncio.Queue(_LIMIT)
        self._processes: dict[str, _Process] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def messages(self, stream: Any) -> AsyncGenerator[Any, None]:
        """What is to go to the client, until it has closed its side and all commands have ended."""
        ending = asyncio.ensure_future(self._all(stream))
        try:
            while True:
                message = await self._out.get()
                if message is None:
                    await ending
                    return
                yield message
        finally:
            ending.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(ending, *self._tasks, return_exceptions=True)
            for process in self._processes.values():
                process.close()

    async def _all(self, stream: Any) -> None:
        try:
            async for message in stream:
                await self._take(message)
            await asyncio.gather(*self._tasks)
        finally:
            await self._out.put(None)

    async def _take(self, message: Any) -> None:
        name, kind = message.ProcessID, message.WhichOneof("Input")
        if not name:
            raise RpcError(Status.INVALID_ARGUMENT, "ProcessID required")
        process = self._processes.get(name)
        if kind == "Init":
            if process is not None or len(self._processes) >= _LIMIT:
                raise RpcError(Status.ALREADY_EXISTS, f"Process {name} already exists")
            container = self._containers.get(message.Init.ContainerID)
            process = self._processes[name] = _Process(name, message.Init, self._out)
            self._tasks.append(asyncio.ensure_future(process.run(container)))
            return
        if process is None:
            raise RpcError(Status.NOT_FOUND, f'IO for process "{name}" not found')
        if kind == "File":
            await process.write(message.File)
        elif kind == "Resize":
            process.resize(message.Resize.Rows, message.Resize.Cols)
        elif kind == "Signal":
            process.signal(message.Signal.Name)


class _Process:
    """One command's streams: pipes, or a terminal."""

    def __init__(self, name: str, message: Any, out: asyncio.Queue[Any]) -> None:
        self._name, self._message, self._out = name, message, out
        self._started = asyncio.Event()
        self._stdin = -1
        self._readers: dict[int, int] = {}
        self._theirs: list[int] = []
        wanted = set(message.Fds)
        if message.Tty:
            master, slave = os.openpty()
            self._stdin, self._readers, self._theirs = master, {1: master}, [slave]
            self._attached = Attached(slave, slave, slave, tty=True)
        else:
            self._attached = Attached()
            if 0 in wanted:
                self._attached.stdin, self._stdin = os.pipe2(os.O_CLOEXEC)
                self._theirs.append(self._attached.stdin)
            for number, field in ((1, "stdout"), (2, "stderr")):
                if number in wanted:
                    reading, writing = os.pipe2(os.O_CLOEXEC)
                    self._readers[number] = reading
                    self._theirs.append(writing)
                    setattr(self._attached, field, writing)
        for fd in {self._stdin, *self._readers.values()} - {-1}:
            os.set_blocking(fd, False)
        self._attached.started = self._started.set

    async def _send(self, **fields: Any) -> None:
        await self._out.put(bridge.ExecMessage(ProcessID=self._name, **fields))

    async def run(self, container: GatewayContainer) -> None:
        """Run it to its end and tell of everything: Started, what it says, Exit, Done."""
        work = asyncio.ensure_future(container.run(self._message, self._attached))
        begun = asyncio.ensure_future(self._started.wait())
        pumps: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait((work, begun), return_when=asyncio.FIRST_COMPLETED)
            await self._send(Started=bridge.StartedMessage())
            pumps = [asyncio.ensure_future(self._pump(number, fd)) for number, fd in self._readers.items()]
            code, error = 0, None
            try:
                code = await work
                if code:
                    error = bridge.Status(code=Status.UNKNOWN.value, message=f"exit code: {code}")
            except (EngineError, RpcError) as failure:
                code, error = _UNKNOWN_EXIT, bridge.Status(code=Status.UNKNOWN.value, message=str(failure.message))
            finally:
                self._let_go()
            await self._send(Exit=bridge.ExitMessage(Code=code, Error=error))
            await asyncio.gather(*pumps)
            await self._send(Done=bridge.DoneMessage())
        finally:
            for task in (work, begun, *pumps):
                task.cancel()
            await asyncio.gather(work, begun, *pumps, return_exceptions=True)
            self.close()

    async def _pump(self, number: int, fd: int) -> None:
        while True:
            try:
                data = os.read(fd, _PIECE)
            except BlockingIOError:
                await _ready(fd)
                continue
            except OSError:
                # A terminal whose other side is gone.
                data = b""
            if not data:
                break
            await self._send(File=bridge.FdMessage(Fd=number, Data=data))
        await self._send(File=bridge.FdMessage(Fd=number, EOF=True))

    async def write(self, message: Any) -> None:
        """What the client types; at the end a pipe is closed, a terminal is not."""
        data = memoryview(message.Data)
        while data and self._stdin >= 0:
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                await _ready(self._stdin, writing=True)
            except OSError:
                return
        if message.EOF and self._stdin >= 0 and not self._message.Tty:
            os.close(self._stdin)
            self._stdin = -1

    def resize(self, rows: int, columns: int) -> None:
        if self._message.Tty and self._stdin >= 0:
            fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))
            if self._attached.holder is not None:
                self._attached.holder.send_signal(signal.SIGWINCH)

    def signal(self, name: str) -> None:
        """Raises RpcError for a signal that there is not."""
        number = getattr(signal, f"SIG{name.removeprefix('SIG')}", None)
        if not isinstance(number, signal.Signals):
            raise RpcError(Status.INVALID_ARGUMENT, f"Unknown signal {name}")
        holder = self._attached.holder
        if self._attached.pid and holder is not None and holder.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._attached.pid, number)

    def _let_go(self) -> None:
        """Close the command's side: what it wrote can be read to its end."""
        for fd in self._theirs:
            os.close(fd)
        self._theirs = []

    def close(self) -> None:
        self._let_go()
        for fd in {self._stdin, *self._readers.values()} - {-1}:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._stdin, self._readers = -1, {}


async def _ready(fd: int, *, writing: bool = False) -> None:
    """Returns when a descriptor can be read (or written)."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
