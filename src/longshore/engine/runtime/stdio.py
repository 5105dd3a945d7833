"""The stdio of containers and of further processes in them: attached, resized, logged anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from longshore.machinery import process

from . import attachment, cgroups, monitor
from .attachment import Attachment, MonitorAttachment
from .records import ExecSession, MonitoredExec, NotRunning, Record, RuntimeFailed, control

if TYPE_CHECKING:
    from .launcher.client import Launcher
    from .spec import Spec

log = logging.getLogger("longshore.engine.runtime")

UNKNOWN_EXIT = 137
"""The exit code of a container whose monitor was killed with it: nobody saw how it ended."""


class Stdio(ABC):
    """The part of the runtime that speaks to containers' monitors about input and output."""

    _conmon: str
    launcher: Launcher | None
    _loop: asyncio.AbstractEventLoop

    @abstractmethod
    def _get(self, id: str) -> Record:
        """The record of a container. Raises NoSuchContainer."""

    @abstractmethod
    def _running(self, id: str) -> Record:
        """The record of a running container. Raises NotRunning."""

    @abstractmethod
    def spec(self, id: str) -> Spec:
        """The OCI configuration the container was created with."""

    @abstractmethod
    def _program(self, name: str) -> str:
        """Where a program is."""

    @abstractmethod
    def _runtime_arguments(self, flag: str = "") -> list[str]:
        """What every call of the OCI runtime begins with; flag: put before each word."""

    def attach(self, id: str, *, stdin: bool = True) -> Attachment:
        """Connect to the stdio of a created or running container. Output from before is in the log only.

        stdin: whether this connection's end may end the container's input (with stdin_once). Raises NotRunning.
        """
        record = self._get(id)
        try:
            sock = attachment.connect(record.folder)
        except OSError:
            raise NotRunning(f"container {id} is not running") from None
        return MonitorAttachment(sock, keep_input=record.stdin_once and not stdin, on_close=record.held.append)

    def resize(self, id: str, rows: int, columns: int) -> None:
        """Set the size of the container's terminal. Raises NotRunning."""
        record = self._get(id)
        if record.exited.done():
            raise NotRunning(f"container {id} is not running")
        control(record.folder, f"1 {rows} {columns}\n")

    def reopen_log(self, id: str) -> None:
        """Let the monitor make a new log file in the place of the old one (which the caller has renamed)."""
        record = self._get(id)
        if not record.exited.done():
            control(record.folder, "2 0 0\n")

    async def exec(
        self,
        id: str,
        process_spec: Mapping[str, Any],
        *,
        exec_id: str,
        terminal: bool = False,
        stdin: bool = False,
        attach: bool = True,
    ) -> ExecSession:
        """Start a further process in a running container.

        process_spec: OCI `process` object (args, env, cwd, user, capabilities). attach: connect its stdio before it
        starts, so that nothing is lost. Raises NotRunning, or RuntimeFailed with the runtime's text (e.g. the command
        is missing).
        """
        record = self._running(id)
        session = await self._launch(record, process_spec, exec_id, terminal=terminal, stdin=stdin, attach=attach)
        if session is None:
            session = await self._monitored(record, process_spec, exec_id, terminal, stdin, attach)
        return session

    async def _launch(
        self,
        record: Record,
        process_spec: Mapping[str, Any],
        exec_id: str,
        *,
        terminal: bool,
        stdin: bool,
        attach: bool,
    ) -> ExecSession | None:
        """An exec by Longshore's own launcher; None where it is the OCI runtime's to do."""
        if self.launcher is None or record.init_fd < 0 or os.path.basename(record.runtime) != "runc":
            return None
        from .launcher import client, translation
        from .launcher.request import NotCarried

        try:
            wanted = {**process_spec, "terminal": terminal}
            request = translation.request(record.id, self.spec(record.id), wanted, record.cgroup)
            if not cgroups.holds(record.cgroup, record.pid):
                raise NotCarried("its first process is not in its cgroup")
            session = await self.launcher.exec(exec_id, record.id, request, record.init_fd, stdin=stdin, attach=attach)
        except NotCarried as reason:
            log.info("exec in container %s by %s: %s", record.id, record.runtime, reason)
            return None
        except client.LauncherMissing as reason:
            log.warning("execs are %s's from now on, as the launcher cannot start: %s", record.runtime, reason)
            self.launcher = None
            return None
        record.execs[exec_id] = session
        session.on_end(lambda: record.execs.pop(exec_id, None))
        return session

    async def _monitored(
        self,
        record: Record,
        process_spec: Mapping[str, Any],
        exec_id: str,
        terminal: bool,
        stdin: bool,
        attach: bool,
    ) -> ExecSession:
        """An exec by the OCI runtime, under a monitor of its own."""
        id = record.id
        folder = record.folder / "exec" / exec_id
        folder.mkdir(parents=True)
        spec = {**process_spec, "terminal": terminal}
        (folder / "process.json").write_bytes(orjson.dumps(spec))
        argv = [
            self._program(self._conmon), "--api-version", "1", "--sync", "-e", "-c", id, "-u", exec_id, "-n", id,
            "-r", record.runtime, *self._runtime_arguments("--runtime-arg"),
            "-b", str(folder), "--full-attach", "-p", str(folder / "pid"), "--persist-dir", str(folder),
            "--exec-process-spec", str(folder / "process.json"), "--no-sync-log", "--log-level", "error", "-l", "none",
        ]  # fmt: skip
        if terminal:
            argv.append("-t")
        if stdin:
            argv.append("-i")
        sync = monitor.SyncPipe()
        listening = monitor.SyncPipe() if attach else None
        start_read = start_write = -1
        io: Attachment | None = None
        try:
            if attach:
                argv.append("--exec-attach")
                start_read, start_write = os.pipe2(os.O_CLOEXEC)
            child = monitor.launch(argv, sync, folder, attach=listening, start=start_read if attach else None)
            if attach and listening is not None:
                os.close(start_read)
                start_read = -1
                os.write(start_write, b"0")
                if await listening.message() is not None:
                    io = MonitorAttachment(attachment.connect(folder))
                    with contextlib.suppress(BrokenPipeError):
                        os.write(start_write, b"0")
            answer = await sync.message()
            if answer is None or answer[0] <= 0:
                await child.wait()
                raise RuntimeFailed(
                    monitor.runtime_message(answer[1]) if answer else "exec failed: process could not be started"
                )
        except BaseException:
            sync.close()
            if io is not None:
                io.close()
            await asyncio.to_thread(shutil.rmtree, folder, True)
            raise
        finally:
            if listening is not None:
                listening.close()
            for fd in (start_read, start_write):
                if fd >= 0:
                    os.close(fd)
        session = MonitoredExec(exec_id, id, folder, answer[0], io, terminal, child)
        record.execs[exec_id] = session
        task = self._loop.create_task(self._exec_ended(record, session, sync, child))
        task.add_done_callback(lambda t: t.cancelled() or t.exception())
        return session

    async def _exec_ended(
        self, record: Record, session: MonitoredExec, sync: monitor.SyncPipe, child: process.Process
    ) -> None:
        try:
            answer = await sync.message()
            code = answer[0] if answer is not None else -1
            if code < 0:
                await child.wait()
                text = b""
                with contextlib.suppress(OSError):
                    text = (session.folder / "exit").read_bytes()
                code = int(text) if text.strip().isdigit() else UNKNOWN_EXIT
        finally:
            sync.close()
        session.has_ended(code)
        record.execs.pop(session.id, None)
        await child.wait()
        await asyncio.to_thread(shutil.rmtree, session.folder, True)
