"""`Runtime`: bundles in, processes out.

A container is a folder under the run directory (config.json, state.json, the monitor's sockets) and a conmon that holds
its stdio, log and exit status. So the engine may be killed at any moment: `recover()` reads everything back from there.
State kept here dies with the machine's boot, as the containers do; what must outlive it belongs to the callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery import process

from . import cgroups, monitor
from .launcher.client import Launcher
from .records import (
    ExecSession,
    ExitStatus,
    NoSuchContainer,
    NotRunning,
    Record,
    RuntimeFailed,
    State,
    replace_file,
    resolve,
)
from .spec import Spec, UnsafeRoot, check_root
from .stdio import UNKNOWN_EXIT, Stdio

log = logging.getLogger("longshore.engine.runtime")


class Runtime(Stdio):
    """Containers of one engine. Construct it in a running loop, then `await recover()`.

    run: folder for bundles and sockets (on a file system that empties at boot). cgroup_parent: where containers go that
    name no cgroup. runtimes: name to program of OCI runtimes; the first is the default. launcher: whether execs in runc's
    containers are Longshore's own launcher's.
    """

    def __init__(
        self,
        run: Path,
        *,
        cgroup_parent: str = "/longshore",
        runtimes: Mapping[str, str] | None = None,
        conmon: str = "conmon",
        launcher: bool = True,
    ) -> None:
        self._run = run
        self._cgroup_parent = cgroup_parent.rstrip("/")
        self.runtimes = dict(runtimes or {"runc": "runc"})
        self.default_runtime = next(iter(self.runtimes))
        self._conmon = conmon
        self._containers: dict[str, Record] = {}
        self._callbacks: list[Callable[[str, ExitStatus], None]] = []
        self._loop = asyncio.get_running_loop()
        self.launcher = Launcher() if launcher else None
        self._programs: dict[str, str] = {}
        self._mount_options: dict[str, frozenset[str]] = {}
        for name in ("containers", "runc"):
            (run / name).mkdir(parents=True, exist_ok=True)
        os.chmod(run, 0o711)

    # ------------------------------------------------------------------ life cycle

    async def create(
        self,
        id: str,
        spec: Spec,
        *,
        log_path: Path | None = None,
        terminal: bool = False,
        stdin: bool = False,
        stdin_once: bool = False,
        labels: Mapping[str, str] | None = None,
        runtime: str = "",
    ) -> int:
        """Make the container's namespaces and hold its process before its first instruction.

        id: unique among all users of this Runtime. spec: OCI config.json; a missing cgroup path is filled in, and
        terminal overrides process.terminal. log_path: CRI-format log file, appended to; None: output goes to
        attachments only. stdin: whether there is an input; stdin_once: it ends with the first attachment that had it.
        labels: kept and given back by state(), also after a restart. runtime: a name in `runtimes`.
        Returns the pid. Raises RuntimeFailed, and ValueError when the id is in use.
        """
        if id in self._containers:
            raise ValueError(f"container {id} exists")
        folder = self.folder(id)
        record = Record(id, folder, self._loop.create_future(), self._program(runtime or self.default_runtime))
        record.terminal, record.stdin, record.stdin_once = terminal, stdin, stdin_once
        record.log_path = str(log_path) if log_path else ""
        record.labels = dict(labels or {})
        record.created_at = time.time()
        spec["process"]["terminal"] = terminal
        record.cgroup = spec["linux"].setdefault("cgroupsPath", f"{self._cgroup_parent}/{id}")
        self._containers[id] = record
        try:
            check_root(spec)
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            (folder / "config.json").write_bytes(orjson.dumps(spec))
            if log_path:
                log_path.parent.mkdir(parents=True, exist_ok=True)
            argv = [
                self._program(self._conmon), "--api-version", "1", "--sync", "-c", id, "-u", id, "-n", id,
                "-r", record.runtime, *self._runtime_arguments("--runtime-arg"),
                "-b", str(folder), "--full-attach", "-p", str(folder / "pid"), "--persist-dir", str(folder), "--no-sync-log", "--log-level", "error",
                "-l", f"k8s-file:{log_path}" if log_path else "none",
            ]  # fmt: skip
            if terminal:
                argv.append("-t")
            if stdin:
                argv.append("-i")
                if not stdin_once:
                    argv.append("--leave-stdin-open")
            sync = monitor.SyncPipe()
            try:
                record.child = monitor.launch(argv, sync, folder)
                record.monitor_pid = record.child.pid
                answer = await sync.message()
            finally:
                sync.close()
            if answer is None or answer[0] <= 0:
                await record.child.wait()
                text = monitor.runtime_message(answer[1]) if answer else "container monitor ended without a word"
                raise RuntimeFailed(text)
            record.pid = answer[0]
            record.oom_before = cgroups.oom_kills(record.cgroup)
            self._watch(record)
            self._save(record)
        except BaseException as error:
            self._containers.pop(id, None)
            if isinstance(error, UnsafeRoot):
                raise RuntimeFailed(str(error)) from None
            if record.child is not None and not record.pid:
                record.child.kill()
            await asyncio.shield(asyncio.to_thread(self._sweep, record))
            raise
        return record.pid

    async def start(self, id: str) -> None:
        """Let a created container run its program. Raises RuntimeFailed."""
        record = self._get(id)
        if record.started_at:
            raise RuntimeFailed(
                "cannot start a container that has stopped" if record.exited.done() else "container is running"
            )
        fifo = self._run / "runc" / id / "exec.fifo"
        record.started_at = time.time()
        try:
            if os.path.basename(record.runtime) == "runc" and fifo.exists():
                await self._open_gate(record, fifo)
            else:
                await self._call(record, "start", id)
        except BaseException:
            record.started_at = 0.0
            raise
        self._save(record)

    async def _open_gate(self, record: Record, fifo: Path) -> None:
        """What `runc start` does, without a process: runc's init waits until somebody reads its fifo."""
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    if os.read(fd, 16):
                        break
                ready: asyncio.Future[None] = self._loop.create_future()
                self._loop.add_reader(fd, resolve, ready)
                try:
                    waiting: list[asyncio.Future[Any]] = [ready, record.exited]
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self._loop.remove_reader(fd)
                if not ready.done():
                    # A program that ends at once may be seen to end before its start is: what init wrote is still there.
                    with contextlib.suppress(BlockingIOError):
                        if os.read(fd, 16):
                            break
                    raise RuntimeFailed("container init has ended before it was started")
        finally:
            os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fifo)

    def kill(self, id: str, sig: int = signal.SIGKILL, *, all: bool = False) -> None:
        """Send a signal to the container's first process, or to every process of its cgroup.

        A paused container is thawed for SIGKILL, as it could not die otherwise. Raises NotRunning when it has ended.
        """
        record = self._get(id)
        if record.exited.done():
            raise NotRunning(f"container {id} is not running")
        if all:
            for pid in cgroups.processes(record.cgroup):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)
        else:
            try:
                if record.init_fd >= 0:
                    signal.pidfd_send_signal(record.init_fd, sig)
                else:
                    os.kill(record.pid, sig)
            except ProcessLookupError:
                raise NotRunning(f"container {id} is not running") from None
        if sig == signal.SIGKILL and record.paused:
            cgroups.thaw(record.cgroup)
            record.paused = False

    async def pause(self, id: str) -> None:
        """Freeze all processes. Raises NotRunning or RuntimeFailed."""
        record = self._running(id)
        await self._call(record, "pause", id)
        record.paused = True

    async def resume(self, id: str) -> None:
        """Thaw a paused container."""
        record = self._running(id)
        await self._call(record, "resume", id)
        record.paused = False

    async def update(self, id: str, resources: Mapping[str, Any]) -> None:
        """Change limits of a created or running container. resources: OCI linux.resources; what is absent stays."""
        record = self._running(id)
        file = record.folder / "resources.json"
        file.write_bytes(orjson.dumps(resources))
        await self._call(record, "update", "--resources", str(file), id)

    async def wait(self, id: str) -> ExitStatus:
        """Wait for the end of the container's first process and of its output."""
        return await asyncio.shield(self._get(id).exited)

    async def delete(self, id: str, *, force: bool = False) -> None:
        """Forget a stopped container and remove its cgroup and bundle; the log file stays.

        force: kill it first. Raises NoSuchContainer, or RuntimeFailed when it runs and force is not given.
        """
        record = self._get(id)
        if not record.exited.done():
            if not force and record.started_at:
                raise RuntimeFailed(f"container {id} is not stopped")
            with contextlib.suppress(NotRunning):
                self.kill(id, signal.SIGKILL)
            await asyncio.shield(record.exited)
        if os.path.basename(record.runtime) != "runc":
            with contextlib.suppress(RuntimeFailed):
                await self._call(record, "delete", "--force", id)
        self._containers.pop(id, None)
        self._release(record)
        await asyncio.to_thread(self._sweep, record)

    def _release(self, record: Record) -> None:
        for fd in (record.monitor_fd, record.init_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    self._loop.remove_reader(fd)
                    os.close(fd)
        record.monitor_fd = record.init_fd = -1
        for sock in record.held:
            sock.close()
        record.held.clear()

    def _sweep(self, record: Record) -> None:
        """Remove what lies on disk and in cgroupfs of a container whose first process has ended. Blocking."""
        if record.cgroup and ":" not in record.cgroup and not cgroups.remove(record.cgroup):
            log.warning("cgroup %s could not be removed", record.cgroup)
        shutil.rmtree(self._run / "runc" / record.id, ignore_errors=True)
        shutil.rmtree(record.folder, ignore_errors=True)

    def folder(self, id: str) -> Path:
        """Where a container's bundle lies while it exists."""
        return self._run / "containers" / id

    # ------------------------------------------------------------------ what is there

    def ids(self) -> list[str]:
        """The ids of all containers held."""
        return list(self._containers)

    def state(self, id: str) -> State:
        """What is known of a container. Raises NoSuchContainer."""
        record = self._get(id)
        ended = record.exited.result() if record.exited.done() else None
        if ended is not None:
            status = "stopped"
        elif record.paused:
            status = "paused"
        else:
            status = "running" if record.started_at else "created"
        return State(
            id=id,
            status=status,
            pid=0 if ended else record.pid,
            created_at=record.created_at,
            started_at=record.started_at,
            exit=ended,
            log_path=Path(record.log_path) if record.log_path else None,
            terminal=record.terminal,
            labels=record.labels,
            cgroup=record.cgroup,
            bundle=record.folder,
            exec_ids=tuple(record.execs),
        )

    def stats(self, id: str) -> cgroups.Stats:
        """The container's cgroup figures now."""
        return cgroups.stats(self._get(id).cgroup)

    async def mount_options(self, runtime: str = "") -> frozenset[str]:
        """The options of mounts that an OCI runtime says it knows (its `features`); none when it does not say."""
        program = self._program(runtime or self.default_runtime)
        if program not in self._mount_options:
            done = await process.run([program, "features"], check=False)
            known: frozenset[str] = frozenset()
            with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
                if done.returncode == 0:
                    known = frozenset(orjson.loads(done.stdout).get("mountOptions") or ())
            self._mount_options[program] = known
        return self._mount_options[program]

    def processes(self, id: str) -> list[int]:
        """The pids (of the host) in the container."""
        return cgroups.processes(self._get(id).cgroup)

    def spec(self, id: str) -> Spec:
        """The OCI configuration the container was created with."""
        spec: Spec = orjson.loads((self._get(id).folder / "config.json").read_bytes())
        return spec

    def on_exit(self, callback: Callable[[str, ExitStatus], None]) -> None:
        """Call `callback(id, status)` on the loop whenever a container's first process has ended."""
        self._callbacks.append(callback)

    async def recover(self) -> list[str]:
        """Take over the containers that an earlier engine left: those that run go on, ends that it missed are seen now.

        Exit callbacks are not called for containers that had ended already; ask `state`. Returns the ids.
        """
        for folder in sorted((self._run / "containers").iterdir()):
            try:
                kept = orjson.loads((folder / "state.json").read_bytes())
            except (OSError, orjson.JSONDecodeError):
                await self._discard(folder)
                continue
            if folder.name in self._containers:
                continue
            record = Record(folder.name, folder, self._loop.create_future(), kept["runtime"])
            for name in ("pid", "monitor_pid", "created_at", "started_at", "terminal", "stdin", "stdin_once", "log_path",
                         "cgroup", "labels", "oom_before"):  # fmt: skip
                setattr(record, name, kept[name])
            self._containers[record.id] = record
            record.paused = cgroups.frozen(record.cgroup)
            self._watch(record)
            # An exec's exit code went to the engine that is gone; its process is left alone.
            if (
                not record.started_at
                and not (self._run / "runc" / record.id / "exec.fifo").exists()
                and not record.exited.done()
            ):
                record.started_at = time.time()
                self._save(record)
        return list(self._containers)

    async def _discard(self, folder: Path) -> None:
        """A creation that was cut short: end its monitor and process and remove its traces."""
        record = Record(folder.name, folder, self._loop.create_future(), self._program(self.default_runtime))
        with contextlib.suppress(OSError, orjson.JSONDecodeError, KeyError):
            record.cgroup = orjson.loads((folder / "config.json").read_bytes())["linux"]["cgroupsPath"]
        with contextlib.suppress(RuntimeFailed):
            await self._call(record, "delete", "--force", record.id)
        await asyncio.to_thread(self._sweep, record)

    # ------------------------------------------------------------------ inside

    def _get(self, id: str) -> Record:
        try:
            return self._containers[id]
        except KeyError:
            raise NoSuchContainer(id) from None

    def _running(self, id: str) -> Record:
        record = self._get(id)
        if record.exited.done():
            raise NotRunning(f"container {id} is not running")
        return record

    def _program(self, name: str) -> str:
        """The full path of a program (conmon looks for none)."""
        name = self.runtimes.get(name, name)
        if name not in self._programs:
            found = shutil.which(name)
            if found is None:
                raise RuntimeFailed(f"{name}: executable file not found in $PATH")
            self._programs[name] = found
        return self._programs[name]

    def _runtime_arguments(self, flag: str = "") -> list[str]:
        arguments = ["--root", str(self._run / "runc")]
        if not flag:
            return arguments
        return [part for argument in arguments for part in (flag, argument)]

    async def _call(self, record: Record, *arguments: str) -> None:
        done = await process.run(
            [record.runtime, *self._runtime_arguments(), *arguments], env=monitor.environment(), check=False
        )
        if done.returncode != 0:
            raise RuntimeFailed(monitor.runtime_message(done.stderr.decode(errors="replace")))

    def _save(self, record: Record) -> None:
        kept = {
            name: getattr(record, name)
            for name in ("runtime", "pid", "monitor_pid", "created_at", "started_at", "terminal", "stdin", "stdin_once",
                         "log_path", "cgroup", "labels", "oom_before")
        }  # fmt: skip
        replace_file(record.folder / "state.json", orjson.dumps(kept))

    def _watch(self, record: Record) -> None:
        """See the monitor's end, which follows the exit file; a descriptor of the first process guards its pid."""
        with contextlib.suppress(OSError):
            record.init_fd = os.pidfd_open(record.pid)
        try:
            record.monitor_fd = os.pidfd_open(record.monitor_pid)
            if record.child is None and not self._is_monitor(record):
                os.close(record.monitor_fd)
                record.monitor_fd = -1
        except OSError:
            record.monitor_fd = -1
        if record.monitor_fd < 0:
            self._ended(record)
        else:
            self._loop.add_reader(record.monitor_fd, self._ended, record)

    def _is_monitor(self, record: Record) -> bool:
        """Whether the process of the remembered pid is still this container's monitor and not a stranger."""
        with contextlib.suppress(OSError):
            return record.id.encode() in Path(f"/proc/{record.monitor_pid}/cmdline").read_bytes().split(b"\0")
        return False

    def _ended(self, record: Record) -> None:
        if record.monitor_fd >= 0:
            self._loop.remove_reader(record.monitor_fd)
            os.close(record.monitor_fd)
            record.monitor_fd = -1
        file = record.folder / "exit"
        try:
            code, at = int(file.read_text()), file.stat().st_mtime
        except (OSError, ValueError):
            # The monitor was killed. Its container lost its stdio; end it, as nobody could tell how it ends.
            code, at = UNKNOWN_EXIT, time.time()
            if record.init_fd >= 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(record.init_fd, signal.SIGKILL)
        if record.init_fd >= 0:
            os.close(record.init_fd)
            record.init_fd = -1
        for sock in record.held:
            sock.close()
        record.held.clear()
        oom = cgroups.oom_kills(record.cgroup) > record.oom_before
        status = ExitStatus(code & 0xFF if code >= 0 else 255, at, oom)
        if record.exited.done():
            return
        record.exited.set_result(status)
        for callback in self._callbacks:
            try:
                callback(record.id, status)
            except Exception:
                log.exception("exit callback failed for container %s", record.id)

    def close(self) -> None:
        """Stop watching; containers and their monitors go on."""
        if self.launcher is not None:
            self.launcher.close()
        for record in self._containers.values():
            self._release(record)
        self._containers.clear()


__all__ = ["ExecSession", "ExitStatus", "NoSuchContainer", "NotRunning", "Runtime", "RuntimeFailed", "State"]
