"""Start conmon, which holds a container's stdio, log and exit status and outlives the engine.

conmon reports over pipes named in its environment: the sync pipe carries the pid (or the runtime's complaint), for an
exec then the exit code; the attach pipe says that the attach socket listens. Source: conmon(8) and its sources.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from longshore.machinery import process


class SyncPipe:
    """The read end of a pipe on which a monitor sends lines."""

    def __init__(self) -> None:
        self._read, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_end, True)
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._ended = False
        self._wake: asyncio.Future[None] | None = None
        self._loop.add_reader(self._read, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._read, 65536)
        except BlockingIOError:
            return
        if data:
            self._buffer += data
        else:
            self._ended = True
            self._loop.remove_reader(self._read)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def started(self) -> None:
        """Close our copy of the write end once the monitor has it."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    async def message(self) -> tuple[int, str] | None:
        """The next (number, text); None when the monitor closed the pipe."""
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline or (self._ended and line):
                self._buffer = rest
                try:
                    value = orjson.loads(line)
                except orjson.JSONDecodeError:
                    # conmon escapes the runtime's text by hand and does not always get it right.
                    return -1, line.decode(errors="replace")
                return int(value.get("data", value.get("pid", -1))), str(value.get("message", ""))
            if self._ended:
                return None
            self._wake = self._loop.create_future()
            await self._wake

    def close(self) -> None:
        self.started()
        if self._read >= 0:
            self._loop.remove_reader(self._read)
            os.close(self._read)
            self._read = -1
        if self._wake is not None and not self._wake.done():
            self._ended = True
            self._wake.set_result(None)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of monitors: a path to find runtimes, timestamps in UTC, nothing of ours besides."""
    path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    env = {"PATH": path, "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    if extra:
        env.update(extra)
    return env


def launch(
    argv: Sequence[str],
    sync: SyncPipe,
    folder: Path,
    *,
    attach: SyncPipe | None = None,
    start: int | None = None,
) -> process.Process:
    """Start conmon with its pipes, in a folder (where it leaves a file named "oom" when memory runs out). start: our end's
    counterpart of the start pipe."""
    fds = {3: sync.write_end}
    env = {"_OCI_SYNCPIPE": "3"}
    if attach is not None:
        fds[4] = attach.write_end
        env["_OCI_ATTACHPIPE"] = "4"
    if start is not None:
        fds[5] = start
        env["_OCI_STARTPIPE"] = "5"
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # posix_spawn has no folder of its own; nothing in this process goes by relative paths meanwhile.
        os.chdir(folder)
        return process.spawn(
            argv, stdin=null, stdout=null, stderr=null, pass_fds=fds, env=environment(env), new_session=True
        )
    finally:
        os.fchdir(here)
        os.close(here)
        os.close(null)
        sync.started()
        if attach is not None:
            attach.started()


def runtime_message(text: str) -> str:
    """The gist of what runc wrote to stderr: its last `level=error msg=...` line, unquoted."""
    message = text.strip()
    for line in reversed(message.splitlines()):
        start = line.find('msg="')
        if "level=error" in line and start >= 0:
            with contextlib.suppress(orjson.JSONDecodeError):
                return str(orjson.loads(line[start + 4 : line.rfind('"') + 1]))
            return line[start + 5 :].rstrip('"')
        if "level=error" in line and "msg=" in line:
            return line.split("msg=", 1)[1].strip('"')
    return message
