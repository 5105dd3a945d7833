"""The stdio of containers and of further processes in them: attached, resized, logged anew."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson

from longshore.machinery import process

from . import attachment, monitor
from .attachment import Attachment
from .records import ExecSession, NotRunning, Record, RuntimeFailed, control

UNKNOWN_EXIT = 137
"""The exit code of a container whose monitor was killed with it: nobody saw how it ended."""


class Stdio(ABC):
    """The part of the runtime that speaks to containers' monitors about input and output."""

    _conmon: str
    _loop: asyncio.AbstractEventLoop

    @abstractmethod
    def _get(self, id: str) -> Record:
        """The record of a container. Raises NoSuchContainer."""

    @abstractmethod
    def _running(self, id: str) -> Record:
        """The record of a running container. Raises NotRunning."""

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
        return Attachment(sock, keep_input=record.stdin_once and not stdin, on_close=record.held.append)

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
                    io = Attachment(attachment.connect(folder))
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
        session = ExecSession(exec_id, id, folder, answer[0], io, terminal, child)
        record.execs[exec_id] = session
        task = self._loop.create_task(self._exec_ended(record, session, sync, child))
        task.add_done_callback(lambda t: t.cancelled() or t.exception())
        return session

    async def _exec_ended(
        self, record: Record, session: ExecSession, sync: monitor.SyncPipe, child: process.Process
    ) -> None:
        try:
            answer = await sync.message()
            code = answer[0] if answer is not None else -1
            if code < 0:
                await child.wait()
                text = b""
                with contextlib.suppress(OSError):
                    text = (session._folder / "exit").read_bytes()
                code = int(text) if text.strip().isdigit() else UNKNOWN_EXIT
        finally:
            sync.close()
        session._exited.set_result(code)
        record.execs.pop(session.id, None)
        await child.wait()
        await asyncio.to_thread(shutil.rmtree, session._folder, True)
