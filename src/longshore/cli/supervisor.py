"""The supervisor: starts the parts, starts again what dies, tells how they are, stops them in order.

It holds no state of the cluster: kill it and start it again, and it finds parts that still run by their recorded
pids and takes their place over by ending them; containers belong to their monitors and notice nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery.http import Request, Response, Server
from longshore.machinery.paths import Layout
from longshore.machinery.process import Process, spawn

log = logging.getLogger("longshore.supervisor")

BACKOFF_FIRST, BACKOFF_MOST, STABLE_AFTER = 0.05, 10.0, 30.0


@dataclass(slots=True)
class Part:
    """One supervised process: how it is started, and how it is doing."""

    name: str
    argv: Sequence[str]
    health: Callable[[], Awaitable[str]]
    stop_seconds: float = 10.0
    process: Process | None = None
    started: float = 0.0
    restarts: int = 0
    last_exit: int | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class AlreadyRunning(RuntimeError):
    """Another supervisor holds this run folder."""


class Supervisor:
    """Runs `parts` until told to stop; serves /status and /stop on a unix socket for the command line."""

    def __init__(self, layout: Layout, parts: Sequence[Part]) -> None:
        self.layout = layout
        self.parts = list(parts)
        self._stopping = asyncio.Event()
        self._lock: int | None = None

    def take_lock(self) -> None:
        """One supervisor a run folder: an flock on a file that dies with the process. Raises AlreadyRunning."""
        self.layout.run.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.layout.run / "supervisor.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise AlreadyRunning(f"a supervisor already runs on {self.layout.run}") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock = fd

    async def run(self) -> None:
        """Start all parts and keep them until `/stop`, SIGTERM (as cancellation) or the end of the world."""
        self.take_lock()
        self._end_leftovers()
        self.layout.logs.mkdir(parents=True, exist_ok=True)
        server = Server(self._answer)
        await server.listen_unix(self.layout.run / "control.sock", mode=0o600)
        try:
            keepers = [asyncio.ensure_future(self._keep(part)) for part in self.parts]
            try:
                await self._stopping.wait()
            finally:
                for keeper in keepers:
                    keeper.cancel()
                await asyncio.gather(*keepers, return_exceptions=True)
                await asyncio.shield(self._stop_all())
        finally:
            await server.close()

    async def _keep(self, part: Part) -> None:
        """Keep one part running, with a back-off that a stable run resets."""
        backoff = BACKOFF_FIRST
        while True:
            self._start(part)
            assert part.process is not None
            part.last_exit = await part.process.wait()
            lived = time.monotonic() - part.started
            log.warning("%s (pid %d) ended with %d after %.1f s", part.name, part.process.pid, part.last_exit, lived)
            part.process = None
            part.restarts += 1
            self._record()
            backoff = BACKOFF_FIRST if lived > STABLE_AFTER else backoff
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_MOST)

    def _start(self, part: Part) -> None:
        output = os.open(
            self.layout.logs / f"{part.name}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640
        )
        try:
            part.process = spawn(part.argv, stdout=output, stderr=output, new_session=True)
        finally:
            os.close(output)
        part.started = time.monotonic()
        self._record()

    def _record(self) -> None:
        """Write down the pids, each with its start time so that a reused number is never mistaken for a part."""
        pids = {p.name: [p.process.pid, start_time(p.process.pid)] for p in self.parts if p.process}
        temporary = self.layout.run / "parts.new"
        try:
            temporary.write_bytes(orjson.dumps(pids))
            temporary.replace(self.layout.run / "parts.json")
        except OSError as error:
            # A run folder that is full or gone must not keep the parts from being started, or stopped.
            log.error("cannot record the parts: %s", error)

    def _end_leftovers(self) -> None:
        """End parts that a killed supervisor left running; their containers are not theirs to take along."""
        for pid in recorded_parts(self.layout.run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while recorded_parts(self.layout.run) and time.monotonic() < deadline:
            time.sleep(0.01)

    async def _stop_all(self) -> None:
        """SIGTERM in the reverse order of starting, then SIGKILL to what stays."""
        for part in reversed(self.parts):
            process = part.process
            if process is None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(part.stop_seconds):
                    await process.wait()
            except TimeoutError:
                log.warning("%s does not end: killed", part.name)
                process.kill()
                await process.wait()
            part.process = None
            self._record()

    async def _answer(self, request: Request) -> Response:
        if request.path == "/status" and request.method == "GET":
            return Response(200, orjson.dumps(await self.status()), content_type="application/json")
        if request.path == "/stop" and request.method == "POST":
            self._stopping.set()
            return Response(202, b"")
        return Response(404, b"not found\n", content_type="text/plain")

    async def status(self) -> dict[str, Any]:
        """Every part with its pid, memory (PSS, bytes), age (seconds), restarts and health."""
        health = await asyncio.gather(*(self._health(part) for part in self.parts))
        rows = [
            {
                "name": part.name,
                "pid": part.process.pid if part.process else None,
                "memoryBytes": memory(part.process.pid) if part.process else 0,
                "seconds": round(time.monotonic() - part.started, 1) if part.process else 0,
                "restarts": part.restarts,
                "lastExit": part.last_exit,
                "health": words,
            }
            for part, words in zip(self.parts, health, strict=True)
        ]
        own = {"name": "supervisor", "pid": os.getpid(), "memoryBytes": memory(os.getpid()), "health": "ok"}
        return {"parts": [own, *rows]}

    @staticmethod
    async def _health(part: Part) -> str:
        if part.process is None:
            return "not running"
        try:
            async with asyncio.timeout(3):
                return await part.health()
        except TimeoutError:
            return "no answer"
        except Exception as error:
            return str(error) or type(error).__name__


def start_time(pid: int) -> int:
    """A process's start in clock ticks since boot (proc(5), field 22); 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def recorded_parts(run: Path) -> list[int]:
    """The pids of parts that were recorded and still run (same number and same start time)."""
    try:
        recorded: dict[str, list[int]] = orjson.loads((run / "parts.json").read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return []
    return [pid for pid, started in recorded.values() if started and start_time(pid) == started]


def memory(pid: int) -> int:
    """A process's proportional set size in bytes; its resident size where the kernel does not tell."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
