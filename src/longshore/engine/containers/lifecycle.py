"""Start, end, restart and remove containers.

A container's lock is held while it is being started, cleaned up after its end, or removed; waiting for its end holds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import Conflict, EngineError, InvalidParameter, NotModified, SystemFailure
from longshore.engine.runtime.runtime import ExitStatus, NoSuchContainer, NotRunning, RuntimeFailed
from longshore.machinery.nftables import NftablesError

from . import health, links, logdrivers, ocispec, signals
from .cleaning import Cleaning
from .memory import MemoryWatch
from .model import Container, format_time, now, parse_time
from .preparation import network_failure, start_error

if TYPE_CHECKING:
    from .service import ContainerService

log = logging.getLogger("longshore.engine.containers")
Json = dict[str, Any]

_RESTART_FIRST, _RESTART_MOST, _RESTART_GOOD = 0.1, 60.0, 10.0
_OCI_FAILED = "failed to create task for container: failed to create shim task: OCI runtime create failed: "


class Lifecycle(Cleaning):
    """The life of containers. One a ContainerService."""

    def __init__(self, service: ContainerService) -> None:
        super().__init__(service)
        self._runtime.on_exit(self._on_exit)
        self._memory = MemoryWatch(self._out_of_memory)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("container task failed", exc_info=task.exception())

    # ------------------------------------------------------------------ start

    async def start(self, container: Container) -> None:
        """Start a container that does not run. Raises NotModified, Conflict, and what starting raises."""
        async with container.lock:
            state = container.state
            if state.paused:
                raise Conflict("cannot start a paused container, try unpause instead")
            if state.running and not state.restarting:
                raise NotModified("")
            if state.removing or state.dead or container.removed:
                raise Conflict("container is marked for removal and cannot be started")
            self._cancel_restart(container)
            container.manually_stopped = False
            container.restart_delay = 0.0
            container.restart_count = 0
            await self._start(container)

    async def _start(self, container: Container) -> None:
        state = container.state
        try:
            await self._run(container)
        except BaseException as error:
            text = error.message if isinstance(error, EngineError) else str(error)
            state.running = state.restarting = False
            state.pid = 0
            state.error = text
            code = 128
            if isinstance(error, InvalidParameter) and _OCI_FAILED in text:
                code = 126 if "permission denied" in text or "is a directory" in text else 127
            state.exit_code = code
            container.save()
            for future in container.pending_attach:
                if not future.done():
                    future.cancel()
            container.pending_attach.clear()
            if container.ended is not None and not container.ended.done():
                container.ended.set_result(None)
            self._wake(container)
            if container.host["AutoRemove"] and not container.removed:
                self._spawn(self._remove_after_failure(container))
            raise

    async def _remove_after_failure(self, container: Container) -> None:
        with contextlib.suppress(EngineError):
            await self.remove(container, force=True, volumes=True)

    async def _run(self, container: Container) -> None:
        service, host = self._service, container.host
        if host.get("Init") and not service.init_program:
            raise SystemFailure('exec: "docker-init": executable file not found in $PATH')
        before = {name: settings["NetworkID"] for name, settings in container.networks.items()}
        sandbox, plugs = self._reserve_network(container)
        merged: Path | None = None
        created = False
        held = contextlib.ExitStack()
        shm: Path | None = None
        plugging: asyncio.Future[None] | None = None
        serving: asyncio.Future[None] | None = None
        try:
            merged = service.roots.mount(container)
            joined = await service.in_thread(self._join_users, container, merged, sandbox, held)
            shm = self._make_shm(container)
            own_files = self._write_files(container)
            await self._mount_devices(container)
            oci_mounts = self._prepare_mounts(container, held, await self._recursive_readonly(container))
            spec = ocispec.build(
                container,
                root=merged,
                merged=joined.root if joined is not None else merged,
                sandbox=sandbox,
                users=joined.owners if joined is not None else None,
                mounts=oci_mounts,
                files=own_files,
                shm=shm,
                find=service.store.find,
                cgroup_parent=service.cgroup_parent,
                init_program=service.init_program,
                profile=service.seccomp,
                linked=links.environment(service, container),
                cdi_folders=service.configuration.cdi_folders if service.configuration.cdi else None,
            )
            await self._open_log(container)
            if container.sandbox_id and sandbox is not None:
                # The runtime joins the namespace while its interfaces are still being made.
                if joined is None:
                    await service.in_thread(service.networks.build, sandbox, [])
                if plugs:
                    plugging = service.in_thread(self._plug, container, sandbox, plugs)
                    if service.networks.resolvers is not None:
                        serving = asyncio.ensure_future(service.networks.resolvers.serve(container, sandbox))
            log_path = None if host["LogConfig"]["Type"] == "none" else container.log_path
            try:
                state_pid = await self._runtime.create(
                    container.id,
                    spec,
                    log_path=log_path,
                    terminal=container.tty,
                    stdin=container.config["OpenStdin"],
                    stdin_once=container.config["StdinOnce"],
                    labels={"owner": "docker"},
                    runtime=host["Runtime"],
                )
                created = True
            except RuntimeFailed as error:
                raise start_error(str(error), container.path) from None
            finally:
                held.close()
            if plugging is not None:
                await plugging
                plugging = None
            if plugs:
                bindings = self.bindings(container)
                if bindings:
                    container.ports = service.networks.publishing.publish(plugs[0][0], bindings)
                links.permit(service, container)
            if serving is not None:
                await serving
                serving = None
            container.ended = asyncio.get_running_loop().create_future()
            state = container.state
            state.running, state.paused, state.restarting = True, False, False
            state.oom_killed = state.dead = False
            state.pid, state.exit_code, state.error = state_pid, 0, ""
            state.started_at = now()
            health.prepare(container)
            self._connect_attached(container)
            self.watch_memory(container)
            container.save()
            keeping = asyncio.ensure_future(service.keep(container))
            try:
                await self._runtime.start(container.id)
            except RuntimeFailed as error:
                raise start_error(str(error), container.path) from None
            finally:
                await keeping
        except BaseException as error:
            held.close()
            for pending in (plugging, serving):
                if pending is not None:
                    with contextlib.suppress(BaseException):
                        await pending
            await asyncio.shield(self._undo(container, sandbox, created))
            if network_failure(error):
                raise type(error)(f"failed to set up container networking: {error}") from None
            for name, id in before.items():
                container.networks[name]["NetworkID"] = id
            if isinstance(error, NftablesError):
                raise SystemFailure(f"failed to set up container networking: {error}") from None
            if isinstance(error, OSError):
                raise SystemFailure(
                    f"{error.filename or container.id}: {(error.strerror or str(error)).lower()}"
                ) from None
            raise
        self._rotate_log(container)
        for name, settings in container.networks.items():
            if settings["EndpointID"]:
                network = service.networks.find(name)
                if network is not None:
                    service.networks.announce("connect", network, container.id)
        links.moved(service, container)
        service.event(container, "start")
        health.start(service, container)

    def _rotate_log(self, container: Container) -> None:
        settings = container.host["LogConfig"]
        container.rotation = logdrivers.start_rotation(
            settings["Type"],
            settings["Config"],
            container.log_path,
            lambda: self._runtime.reopen_log(container.id),
            lambda: container.forwarder.needed() if container.forwarder is not None else 0,
        )
        if container.forwarder is not None:
            container.forwarder.start()

    def _connect_attached(self, container: Container) -> None:
        for future in container.pending_attach:
            if not future.done():
                try:
                    future.set_result(self._runtime.attach(container.id, stdin=getattr(future, "wants_stdin", False)))
                except NotRunning:
                    future.cancel()
        container.pending_attach.clear()

    def watch_memory(self, container: Container) -> None:
        """Tell of it when a process of a running container finds no memory."""
        self._memory.watch(container.id, self._runtime.folder(container.id))

    def _out_of_memory(self, id: str) -> None:
        container = self._service.store.get(id)
        if container is not None:
            self._spawn(self._tell_of_memory(container))

    async def _tell_of_memory(self, container: Container) -> None:
        # A start under way is told of first.
        async with container.lock:
            if container.state.running and not container.state.oom_killed:
                container.state.oom_killed = True
                container.save()
                self._service.event(container, "oom")

    # ------------------------------------------------------------------ end

    def _on_exit(self, id: str, status: ExitStatus) -> None:
        container = self._service.store.get(id)
        if container is not None and container.state.running:
            self._spawn(self._exited(container, status))

    async def _exited(self, container: Container, status: ExitStatus) -> None:
        async with container.lock:
            state = container.state
            if not state.running or container.removed:
                return
            if not state.restarting:
                await self._settle(container, status)

    async def _settle(self, container: Container, status: ExitStatus) -> None:
        """Take note of an end, clean up, and go on as the restart policy says. The lock is held."""
        service, state = self._service, container.state
        ran = status.at - parse_time(state.started_at) / 1e9
        health.stop(container)
        self._memory.forget(self._runtime.folder(container.id))
        if container.rotation is not None:
            container.rotation.close()
            container.rotation = None
        if container.forwarder is not None:
            container.forwarder.end()
        for session in list(container.execs.values()):
            session.container_ended()
            if not session.started:
                container.execs.pop(session.id)
                service.execs.pop(session.id, None)
        await asyncio.gather(self._clean(container), self._delete_from_runtime(container))
        restart = self._should_restart(container, status.code, ran)
        state.pid = 0
        state.paused = False
        state.exit_code = status.code
        unseen = status.oom_killed and not state.oom_killed
        state.oom_killed = state.oom_killed or status.oom_killed
        state.finished_at = format_time(int(status.at * 1e9))
        state.running = state.restarting = restart
        if unseen:
            service.event(container, "oom")
        service.event(container, "die", {"exitCode": str(status.code), "execDuration": str(max(int(ran), 0))})
        if container.ended is not None and not container.ended.done():
            container.ended.set_result(None)
        if restart:
            container.restart_delay = (
                _RESTART_FIRST
                if ran > _RESTART_GOOD or not container.restart_delay
                else min(container.restart_delay * 2, _RESTART_MOST)
            )
            container.restart_count += 1
            container.restart_timer = asyncio.get_running_loop().call_later(
                container.restart_delay, lambda: self._spawn(self._restart_by_policy(container))
            )
        container.save()
        self._wake(container)
        if container.host["AutoRemove"] and not restart:
            await self._remove_locked(container, volumes=True)

    def _should_restart(self, container: Container, code: int, ran: float) -> bool:
        if self._stopping or container.manually_stopped or container.stop_requested:
            return False
        policy = container.host["RestartPolicy"]
        name, most = policy["Name"], policy["MaximumRetryCount"]
        if name in ("always", "unless-stopped"):
            return True
        return name == "on-failure" and code != 0 and (most == 0 or container.restart_count < most)

    async def _restart_by_policy(self, container: Container) -> None:
        container.restart_timer = None
        async with container.lock:
            if not container.state.restarting or container.removed or self._stopping:
                return
            count = container.restart_count
            try:
                await self._start(container)
            except Exception as error:
                log.warning("container %s could not be restarted: %s", container.short, error)
            container.restart_count = count

    def _cancel_restart(self, container: Container) -> None:
        if container.restart_timer is not None:
            container.restart_timer.cancel()
            container.restart_timer = None
        if container.state.restarting:
            container.state.restarting = container.state.running = False

    def _wake(self, container: Container) -> None:
        """Answer those that wait for the end."""
        answer: Json = {"StatusCode": container.state.exit_code}
        if container.state.error:
            answer["Error"] = {"Message": container.state.error}
        for future in container.exit_waiters:
            if not future.done():
                future.set_result(answer)
        container.exit_waiters.clear()

    # ------------------------------------------------------------------ signals

    async def kill(self, container: Container, number: int) -> None:
        """Send a signal; SIGKILL waits for the end. Raises Conflict when it does not run."""
        await self._settled(container)
        state = container.state
        if state.restarting and await self._end_restarting(container):
            return
        if not state.running:
            raise Conflict(f"container {container.id} is not running")
        stop_signal = signals.parse(container.config.get("StopSignal") or "SIGTERM")
        if number in (signal.SIGKILL, stop_signal):
            container.manually_stopped = True
        ended = container.ended
        try:
            self._runtime.kill(container.id, number)
        except (NotRunning, NoSuchContainer):
            raise Conflict(f"container {container.id} is not running") from None
        if number == signal.SIGKILL:
            state.paused = False
        self._service.event(container, "kill", {"signal": str(number)})
        if number == signal.SIGKILL and ended is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await asyncio.shield(ended)

    @staticmethod
    async def _settled(container: Container) -> None:
        """Wait for a start or an end that is under way: a signal in between would meet neither."""
        async with container.lock:
            pass

    async def _end_restarting(self, container: Container) -> bool:
        """Give up a restart that is waited for; False when it has begun in the meantime, and the container runs."""
        container.manually_stopped = True
        async with container.lock:
            if not container.state.restarting:
                return False
            self._cancel_restart(container)
            container.save()
            self._wake(container)
            return True

    async def stop(self, container: Container, timeout: float | None, signal_name: str = "") -> None:
        """Stop by signal, then by SIGKILL after `timeout` seconds (None: the container's own, -1: never).

        Raises NotModified when it does not run.
        """
        await self._settled(container)
        state = container.state
        if not state.running:
            raise NotModified("")
        if state.restarting and await self._end_restarting(container):
            return
        number = signals.parse(signal_name or container.config.get("StopSignal") or "SIGTERM")
        if timeout is None:
            chosen = container.config.get("StopTimeout")
            timeout = 10 if chosen is None else chosen
        container.manually_stopped = container.stop_requested = True
        try:
            ended = container.ended
            with contextlib.suppress(Conflict):
                await self.kill(container, number)
            if ended is not None:
                try:
                    async with asyncio.timeout(None if timeout < 0 else timeout):
                        await asyncio.shield(ended)
                except TimeoutError:
                    with contextlib.suppress(Conflict):
                        await self.kill(container, signal.SIGKILL)
                    async with asyncio.timeout(10):
                        await asyncio.shield(ended)
            async with container.lock:
                pass
        except TimeoutError:
            raise SystemFailure(
                f"cannot stop container: {container.id}: tried to kill container, but did not receive an exit event"
            ) from None
        finally:
            container.stop_requested = False
        self._service.event(container, "stop")
        if not container.removed:
            container.save()
            await self._service.keep(container)

    async def restart(self, container: Container, timeout: float | None, signal_name: str = "") -> None:
        """Stop (when it runs) and start again; it is not removed in between."""
        auto, container.host["AutoRemove"] = container.host["AutoRemove"], False
        try:
            with contextlib.suppress(NotModified):
                await self.stop(container, timeout, signal_name)
        finally:
            container.host["AutoRemove"] = auto
        with contextlib.suppress(NotModified):
            await self.start(container)
        self._service.event(container, "restart")

    async def pause(self, container: Container) -> None:
        async with container.lock:
            state = container.state
            if not state.running:
                raise Conflict(f"container {container.id} is not running")
            if state.paused:
                raise Conflict(f"Container {container.id} is already paused")
            if state.restarting:
                raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
            try:
                await self._runtime.pause(container.id)
            except (RuntimeFailed, NotRunning) as error:
                raise SystemFailure(f"cannot pause container {container.id}: {error}") from None
            state.paused = True
            health.stop(container)
            container.save()
        self._service.event(container, "pause")

    async def unpause(self, container: Container) -> None:
        async with container.lock:
            if not container.state.paused:
                raise SystemFailure(f"Container {container.id} is not paused")
            try:
                await self._runtime.resume(container.id)
            except (RuntimeFailed, NotRunning) as error:
                raise SystemFailure(f"cannot resume container: {container.id}: {error}") from None
            container.state.paused = False
            health.start(self._service, container)
            container.save()
        self._service.event(container, "unpause")

    # ------------------------------------------------------------------ removal

    async def remove(
        self, container: Container, *, force: bool = False, volumes: bool = False, shown: str = ""
    ) -> None:
        """Remove a container; force ends it first. Raises Conflict."""
        shown = shown or container.name.lstrip("/")
        if container.state.removing:
            raise Conflict(f"removal of container {shown} is already in progress")
        if container.state.running:
            if not force:
                advice = "stop the container before removing or force remove"
                status = "restarting" if container.state.restarting else "running"
                raise Conflict(f'cannot remove container "{shown}": container is {status}: {advice}')
            container.manually_stopped = True
            ended = container.ended
            with contextlib.suppress(EngineError):
                await self.kill(container, signal.SIGKILL)
            if ended is not None and container.state.running and not container.state.restarting:
                async with asyncio.timeout(15):
                    await asyncio.shield(ended)
        async with container.lock:
            if not container.removed:
                await self._remove_locked(container, volumes=volumes)

    async def _remove_locked(self, container: Container, *, volumes: bool) -> None:
        service = self._service
        self._cancel_restart(container)
        container.state.removing = True
        if container.forwarder is not None:
            await container.forwarder.finish()
            container.forwarder.close()
            container.forwarder = None
        try:
            with contextlib.suppress(NoSuchContainer):
                await self._runtime.delete(container.id, force=True)
            await service.in_thread(self._remove_files, container)
        except BaseException:
            container.state.removing = False
            container.state.dead = True
            raise
        container.removed = True
        service.store.remove(container)
        for point in container.mounts:
            if point["Type"] == "volume":
                service.volumes.release(point["Name"], container.id)
                if volumes and point.get("_anonymous"):
                    with contextlib.suppress(EngineError):
                        service.volumes.remove(point["Name"])
        for exec_id in container.execs:
            service.execs.pop(exec_id, None)
        service.event(container, "destroy")
        answer: Json = {"StatusCode": container.state.exit_code}
        for future in (*container.remove_waiters, *container.exit_waiters):
            if not future.done():
                future.set_result(answer)

    # ------------------------------------------------------------------ after a restart of the engine

    async def recover(self) -> None:
        """Take over what an earlier engine left: see recovery.recover."""
        from .recovery import recover

        await recover(self)

    async def shut_down(self, timeout: int) -> None:
        """Stop all containers because the engine ends; those with a restart policy start with the next one.

        timeout: seconds for all of them, more where one has longer to stop; negative: no end.
        """
        self._stopping = True
        running = [container for container in self._service.store if container.state.running]
        if not running:
            return
        for container in running:
            own = container.config.get("StopTimeout")
            if timeout >= 0:
                timeout = -1 if own is not None and own < 0 else max(timeout, (10 if own is None else own) + 5)
        ending = [asyncio.ensure_future(self._shut_down(container)) for container in running]
        _, late = await asyncio.wait(ending, timeout=None if timeout < 0 else timeout)
        for task in late:
            task.cancel()

    async def _shut_down(self, container: Container) -> None:
        before = container.manually_stopped
        with contextlib.suppress(EngineError):
            await self.stop(container, None)
        if not container.removed:
            # Nobody asked for this end.
            container.manually_stopped = before
            container.save()

    async def close(self) -> None:
        """The engine ends; containers go on."""
        self._stopping = True
        self._memory.close()
        for container in self._service.store:
            health.stop(container)
            if container.forwarder is not None:
                container.forwarder.close()
            if container.restart_timer is not None:
                container.restart_timer.cancel()
        for task in list(self._tasks):
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await task
