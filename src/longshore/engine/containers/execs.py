"""Further processes in running containers: docker exec.

Source: Docker Engine API, Exec; the texts of errors are dockerd's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import Conflict, EngineError, InvalidParameter, NotFound, SystemFailure
from longshore.engine.runtime.runtime import NoSuchContainer, NotRunning, RuntimeFailed

from . import detach, ocispec
from .model import Container, new_id

if TYPE_CHECKING:
    from longshore.engine.runtime.attachment import Attachment
    from longshore.engine.runtime.runtime import ExecSession

    from .service import ContainerService

Json = dict[str, Any]


@dataclass(eq=False)
class Exec:
    """One exec instance, from its creation until its container goes."""

    container: Container
    args: list[str]
    settings: Json
    id: str = field(default_factory=new_id)
    started: bool = False
    running: bool = False
    exit_code: int | None = None
    session: ExecSession | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def container_ended(self) -> None:
        if self.running:
            self.running = False
            if self.exit_code is None:
                self.exit_code = 137

    def show(self) -> Json:
        """As exec inspect gives it."""
        s = self.settings
        process: Json = {
            "tty": bool(s.get("Tty")),
            "entrypoint": self.args[0],
            "arguments": self.args[1:],
            "privileged": bool(s.get("Privileged")),
        }
        if s.get("User"):
            process["user"] = s["User"]
        return {
            "ID": self.id,
            "Running": self.running,
            "ExitCode": self.exit_code,
            "ProcessConfig": process,
            "OpenStdin": bool(s.get("AttachStdin")),
            "OpenStderr": bool(s.get("AttachStderr")),
            "OpenStdout": bool(s.get("AttachStdout")),
            "CanRemove": False,
            "ContainerID": self.container.id,
            "DetachKeys": detach.shown(s.get("DetachKeys") or ""),
            "Pid": self.session.pid if self.session else 0,
        }


async def create(service: ContainerService, container: Container, settings: Json, shown: str = "") -> Exec:
    """Register an exec in a running container. shown: the container as the client named it. Raises EngineError classes."""
    state = container.state
    if not state.running:
        raise Conflict(f"container {container.id} is not running")
    if state.paused:
        raise Conflict(f"Container {shown or container.name[1:]} is paused, unpause the container before exec")
    if state.restarting:
        raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
    args = settings.get("Cmd") or []
    if isinstance(args, str):
        args = [args]
    if not args:
        raise InvalidParameter("No exec command specified")
    if settings.get("DetachKeys"):
        try:
            detach.parse(settings["DetachKeys"])
        except ValueError:
            raise SystemFailure(f"Invalid escape keys ({settings['DetachKeys']}) provided") from None
    user = settings.get("User") or ""
    if user:
        try:
            ocispec.user_of(container, service.roots.root(container).merged, user)
        except SystemFailure as error:
            raise InvalidParameter(error.message) from None
    entry = Exec(container, list(args), settings)
    container.execs[entry.id] = entry
    service.execs[entry.id] = entry
    announce(service, entry, "exec_create")
    return entry


def announce(service: ContainerService, entry: Exec, action: str) -> None:
    """Tell of an exec's creation or start; as dockerd does, with a blank after a command without arguments."""
    text = f"{action}: {entry.args[0]} {' '.join(entry.args[1:])}"
    service.event(entry.container, text, {"execID": entry.id})


def find(service: ContainerService, id: str) -> Exec:
    """An exec by id. Raises NotFound, Conflict when its container is gone or paused."""
    entry = service.execs.get(id)
    if entry is None:
        raise NotFound(f"No such exec instance: {id}")
    return entry


async def start(
    service: ContainerService, entry: Exec, *, attach: bool, console: tuple[int, int] | None
) -> Attachment | None:
    """Run an exec; returns its stdio when attached.

    Raises Conflict, or SystemFailure or InvalidParameter with the runtime's text; the exit code is noted then.
    """
    container = entry.container
    if entry.running:
        raise Conflict(f"exec command {entry.id} is already running")
    if entry.started:
        raise Conflict(f"exec command {entry.id} has already run")
    if not container.state.running:
        raise Conflict(f"container {container.id} is not running")
    if container.state.paused:
        raise Conflict(f"Container {container.name[1:]} is paused, unpause the container before exec")
    s = entry.settings
    entry.started = entry.running = True
    tty = bool(s.get("Tty"))
    size = s.get("ConsoleSize")
    if console is None and size and any(size):
        console = (size[0], size[1])
    announce(service, entry, "exec_start")
    try:
        user = None
        if s.get("User"):
            user = ocispec.user_of(container, service.roots.root(container).merged, s["User"])
        process = ocispec.exec_process(
            container,
            service.runtime.spec(container.id),
            args=entry.args,
            env=s.get("Env") or [],
            cwd=s.get("WorkingDir") or "",
            user=user,
            privileged=bool(s.get("Privileged")),
            tty=tty,
            console=console,
        )
        session = await service.runtime.exec(
            container.id,
            process,
            exec_id=entry.id,
            terminal=tty,
            stdin=bool(s.get("AttachStdin")) and attach,
            attach=attach,
        )
    except NoSuchContainer:  # it has ended, and been removed, meanwhile
        entry.running = False
        entry.exit_code = 126
        raise Conflict(f"container {container.id} is not running") from None
    except (RuntimeFailed, NotRunning, EngineError) as error:
        entry.running = False
        text = error.message if isinstance(error, EngineError) else str(error)
        entry.exit_code = 126
        if isinstance(error, RuntimeFailed):
            text = f"OCI runtime exec failed: {text}"
            lowered = text.lower()
            if "permission denied" not in lowered and (
                "executable file not found" in lowered or "no such file" in lowered
            ):
                entry.exit_code = 127
            raise InvalidParameter(text) from None
        raise
    entry.session = session
    entry.ready.set()
    service.spawn(_ended(service, entry, session))
    return session.io


async def _ended(service: ContainerService, entry: Exec, session: ExecSession) -> None:
    code = await session.wait()
    entry.exit_code = code
    entry.running = False
    service.event(entry.container, "exec_die", {"execID": entry.id, "exitCode": str(code)})


async def resize(entry: Exec, rows: int, columns: int) -> None:
    """Set the size of an exec's terminal. Raises SystemFailure, NotFound, Conflict."""
    if not entry.container.state.running:
        raise Conflict(f"container {entry.container.id} is not running")
    if not entry.ready.is_set():
        try:
            async with asyncio.timeout(10 if entry.started else 0.05):
                await entry.ready.wait()
        except TimeoutError:
            raise SystemFailure("timeout waiting for exec session ready") from None
    if entry.session is None or not entry.running:
        raise NotFound("exec process is not started")
    try:
        entry.session.resize(rows, columns)
    except NotRunning:
        raise NotFound("exec process is not started") from None
