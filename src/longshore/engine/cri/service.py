"""CRI's RuntimeService: each RPC, on sandboxes, containers, statistics and streams."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

from longshore import __version__
from longshore.engine.cri.containers import Containers
from longshore.engine.cri.records import Container, Sandbox, now
from longshore.engine.cri.sandboxes import Sandboxes
from longshore.engine.cri.stats import Statistics
from longshore.engine.cri.streaming import StreamingServer
from longshore.engine.runtime.runtime import ExecSession, NoSuchContainer, NotRunning, RuntimeFailed
from longshore.machinery import users
from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.streams import Options
from longshore.wire.cri import cri

NAME = "longshore"
OUTPUT_LIMIT = 16 * 2**20
EVENT_LIMIT = 1000
STREAM_PIECE = 100


class Events:
    """Container events to every stream that is open. One that reads too slowly is ended, so that it lists again."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Any]] = set()

    def send(self, message: Any) -> None:
        for queue in list(self._queues):
            try:
                queue.put_nowait(message)
            except asyncio.QueueFull:
                self._queues.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)

    @property
    def wanted(self) -> bool:
        return bool(self._queues)

    async def stream(self) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue(EVENT_LIMIT)
        self._queues.add(queue)
        try:
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self._queues.discard(queue)


class RuntimeService:
    """The RPCs of RuntimeService, one method each."""

    def __init__(
        self, sandboxes: Sandboxes, containers: Containers, statistics: Statistics, streaming: StreamingServer,
        events: Events,
    ) -> None:  # fmt: skip
        self.sandboxes, self.containers = sandboxes, containers
        self.statistics, self.streaming, self.events = statistics, streaming, events

    # -- the runtime itself ------------------------------------------------------------------------------------------

    async def version(self, _: Any) -> Any:
        return cri.VersionResponse(
            version="0.1.0", runtime_name=NAME, runtime_version=__version__, runtime_api_version="v1"
        )

    async def status(self, request: Any) -> Any:
        problem = await self.network_problem()
        conditions = [
            cri.RuntimeCondition(type="RuntimeReady", status=True),
            cri.RuntimeCondition(
                type="NetworkReady",
                status=not problem,
                reason="NetworkPluginNotReady" if problem else "",
                message=problem,
            ),
        ]
        features = cri.RuntimeHandlerFeatures(
            recursive_read_only_mounts=_recursive_read_only(), user_namespaces=users.supported()
        )
        names = ["", *self.containers.runtime.runtimes]
        info = {}
        if request.verbose:
            info["config"] = orjson.dumps(
                {
                    "runtimes": self.containers.runtime.runtimes,
                    "podRanges": [str(r) for r in self.sandboxes.network.ranges],
                }
            ).decode()
        return cri.StatusResponse(
            status=cri.RuntimeStatus(conditions=conditions),
            info=info,
            runtime_handlers=[cri.RuntimeHandler(name=name, features=features) for name in names],
            features=cri.RuntimeFeatures(supplemental_groups_policy=True),
        )

    async def network_problem(self) -> str:
        """Why pods cannot have a network; "" when they can."""
        from longshore.engine.cri import cni

        try:
            conf = cni.load(self.sandboxes.cni_folder)
            if conf is not None:
                await cni.CniNetwork(conf).status()
                return ""
        except cni.CniError as error:
            return f"Network plugin returns error: {error}"
        return self.sandboxes.network.ready()

    async def update_runtime_config(self, request: Any) -> Any:
        cidr = request.runtime_config.network_config.pod_cidr
        if cidr:
            try:
                self.sandboxes.network.configure(cidr)
            except ValueError as error:
                raise RpcError(Status.INVALID_ARGUMENT, f"invalid pod CIDR {cidr!r}: {error}") from error
            await asyncio.to_thread(
                self.sandboxes.hostports.rebuild, list(self.sandboxes.records), self.sandboxes.network.ranges
            )
        return cri.UpdateRuntimeConfigResponse()

    async def runtime_config(self, _: Any) -> Any:
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CGROUPFS))

    # -- sandboxes ---------------------------------------------------------------------------------------------------

    async def run_pod_sandbox(self, request: Any) -> Any:
        sandbox = await self.sandboxes.create(request.config, request.runtime_handler)
        return cri.RunPodSandboxResponse(pod_sandbox_id=sandbox.id)

    async def stop_pod_sandbox(self, request: Any) -> Any:
        sandbox = self.sandboxes.records.find(request.pod_sandbox_id)
        if sandbox is not None:
            await self._stop_sandbox(sandbox)
        return cri.StopPodSandboxResponse()

    async def _stop_sandbox(self, sandbox: Sandbox) -> None:
        await asyncio.gather(*(self.containers.stop(c, 0) for c in self.containers.of_sandbox(sandbox.id)))
        await self.sandboxes.stop(sandbox)

    async def remove_pod_sandbox(self, request: Any) -> Any:
        sandbox = self.sandboxes.records.find(request.pod_sandbox_id)
        if sandbox is not None:
            await self._stop_sandbox(sandbox)
            for container in self.containers.of_sandbox(sandbox.id):
                await self.containers.remove(container)
                self.statistics.forget(container.id)
            await self.sandboxes.remove(sandbox)
            self.statistics.forget(sandbox.id)
        return cri.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, request: Any) -> Any:
        sandbox = self.sandboxes.records.get(request.pod_sandbox_id)
        info = {}
        if request.verbose:
            info["info"] = orjson.dumps(
                {
                    "pid": sandbox.pause_pid,
                    "netNamespace": self.sandboxes.pin(sandbox, "net"),
                    "runtimeHandler": sandbox.runtime_handler,
                    "network": sandbox.network,
                }
            ).decode()
        return cri.PodSandboxStatusResponse(
            status=self.sandboxes.status(sandbox),
            info=info,
            containers_statuses=[self.containers.status(c) for c in self.containers.of_sandbox(sandbox.id)],
            timestamp=now(),
        )

    async def list_pod_sandbox(self, request: Any) -> Any:
        return cri.ListPodSandboxResponse(
            items=[self.sandboxes.listed(s) for s in self.sandboxes.select(request.filter)]
        )

    async def stream_pod_sandboxes(self, request: Any) -> AsyncIterator[Any]:
        found = self.sandboxes.select(request.filter)
        for start in range(0, len(found), STREAM_PIECE):
            piece = [self.sandboxes.listed(s) for s in found[start : start + STREAM_PIECE]]
            yield cri.StreamPodSandboxesResponse(pod_sandboxes=piece)

    async def update_pod_sandbox_resources(self, request: Any) -> Any:
        sandbox = self.sandboxes.records.get(request.pod_sandbox_id)
        sandbox.config.linux.overhead.CopyFrom(request.overhead)
        sandbox.config.linux.resources.CopyFrom(request.resources)
        self.sandboxes.records.save_config(sandbox)
        return cri.UpdatePodSandboxResourcesResponse()

    # -- containers --------------------------------------------------------------------------------------------------

    async def create_container(self, request: Any) -> Any:
        sandbox = self.sandboxes.records.get(request.pod_sandbox_id)
        container = await self.containers.create(sandbox, request.config, request.sandbox_config)
        return cri.CreateContainerResponse(container_id=container.id)

    async def start_container(self, request: Any) -> Any:
        await self.containers.start(self.containers.records.get(request.container_id))
        return cri.StartContainerResponse()

    async def stop_container(self, request: Any) -> Any:
        container = self.containers.records.find(request.container_id)
        if container is not None:
            await self.containers.stop(container, request.timeout)
        return cri.StopContainerResponse()

    async def remove_container(self, request: Any) -> Any:
        container = self.containers.records.find(request.container_id)
        if container is not None:
            await self.containers.remove(container)
            self.statistics.forget(container.id)
        return cri.RemoveContainerResponse()

    async def list_containers(self, request: Any) -> Any:
        return cri.ListContainersResponse(
            containers=[self.containers.listed(c) for c in self.containers.select(request.filter)]
        )

    async def stream_containers(self, request: Any) -> AsyncIterator[Any]:
        found = self.containers.select(request.filter)
        for start in range(0, len(found), STREAM_PIECE):
            piece = [self.containers.listed(c) for c in found[start : start + STREAM_PIECE]]
            yield cri.StreamContainersResponse(containers=piece)

    async def container_status(self, request: Any) -> Any:
        container = self.containers.records.get(request.container_id)
        info = {}
        if request.verbose:
            found: dict[str, Any] = {"sandboxID": container.sandbox_id, "pid": 0, "config": {}}
            try:
                found["pid"] = self.containers.runtime.state(container.id).pid
                found["runtimeSpec"] = self.containers.runtime.spec(container.id)
            except (NoSuchContainer, OSError):
                found["runtimeSpec"] = None
            info["info"] = orjson.dumps(found).decode()
        return cri.ContainerStatusResponse(status=self.containers.status(container), info=info)

    async def update_container_resources(self, request: Any) -> Any:
        container = self.containers.records.get(request.container_id)
        await self.containers.update(container, request.linux)
        return cri.UpdateContainerResourcesResponse()

    async def reopen_container_log(self, request: Any) -> Any:
        container = self.containers.records.get(request.container_id)
        if container.state != cri.CONTAINER_RUNNING:
            raise RpcError(Status.UNKNOWN, "container is not running")
        try:
            self.containers.runtime.reopen_log(container.id)
        except (NotRunning, NoSuchContainer) as error:
            raise RpcError(Status.UNKNOWN, "container is not running") from error
        await self._log_is_back(container)
        return cri.ReopenContainerLogResponse()

    async def _log_is_back(self, container: Container) -> None:
        """The monitor makes the new file on its own time; the answer must not come before it."""
        for pause in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
            if not container.log_path or os.path.exists(container.log_path):
                return
            await asyncio.sleep(pause)

    # -- exec, attach, port-forward ----------------------------------------------------------------------------------

    def _running(self, container_id: str) -> Container:
        container = self.containers.records.get(container_id)
        if container.state != cri.CONTAINER_RUNNING:
            state = cri.value_name("ContainerState", container.state)
            raise RpcError(Status.UNKNOWN, f"container is in {state} state")
        return container

    async def _exec(self, container: Container, command: list[str], *, tty: bool, stdin: bool) -> ExecSession:
        runtime = self.containers.runtime
        base = runtime.spec(container.id)["process"]
        process = {**base, "args": command, "terminal": tty}
        if tty and not any(e.startswith("TERM=") for e in base.get("env") or ()):
            process["env"] = [*(base.get("env") or ()), "TERM=xterm"]
        try:
            return await runtime.exec(
                container.id, process, exec_id=os.urandom(16).hex(), terminal=tty, stdin=stdin, attach=True
            )
        except (RuntimeFailed, NotRunning, NoSuchContainer) as error:
            raise RpcError(Status.UNKNOWN, f"failed to exec in container: {error}") from error

    async def exec_sync(self, request: Any) -> Any:
        container = self._running(request.container_id)
        if not request.cmd:
            raise RpcError(Status.INVALID_ARGUMENT, "command can't be empty")
        output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        session: ExecSession | None = None
        try:
            async with asyncio.timeout(request.timeout if request.timeout > 0 else None):
                session = await self._exec(container, list(request.cmd), tty=False, stdin=False)
                assert session.io is not None
                while (piece := await session.io.read()) is not None:
                    kept = output[piece[0]]
                    kept += piece[1][: OUTPUT_LIMIT - len(kept)]
                code = await session.wait()
        except TimeoutError:
            if session is not None:
                self._kill_tree(container, session)
            raise RpcError(
                Status.DEADLINE_EXCEEDED,
                f"failed to exec in container: timeout {request.timeout}s exceeded: context deadline exceeded",
            ) from None
        except asyncio.CancelledError:
            if session is not None:
                self._kill_tree(container, session)
            raise
        finally:
            if session is not None and session.io is not None:
                session.io.close()
        return cri.ExecSyncResponse(stdout=bytes(output[1]), stderr=bytes(output[2]), exit_code=code)

    def _kill_tree(self, container: Container, session: ExecSession) -> None:
        """Kill an exec's process and what it has started inside the container."""
        parents: dict[int, int] = {}
        for pid in self.containers.runtime.processes(container.id):
            try:
                parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
        doomed = {session.pid}
        grown = True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in doomed} - doomed
            grown = bool(more)
            doomed |= more
        session.kill()
        for pid in doomed - {session.pid}:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue

    async def exec(self, request: Any) -> Any:
        container = self._running(request.container_id)
        if not request.cmd:
            raise RpcError(Status.INVALID_ARGUMENT, "command can't be empty")
        options = Options(request.stdin, request.stdout, request.stderr, request.tty)
        _check(options)
        command = list(request.cmd)
        url = self.streaming.exec(options, lambda: self._exec(container, command, tty=request.tty, stdin=request.stdin))
        return cri.ExecResponse(url=url)

    async def attach(self, request: Any) -> Any:
        container = self._running(request.container_id)
        tty = bool(container.config.tty)
        options = Options(request.stdin, request.stdout, request.stderr and not tty, tty)
        _check(options)
        runtime = self.containers.runtime
        url = self.streaming.attach(
            options,
            lambda: runtime.attach(container.id, stdin=request.stdin),
            lambda rows, columns: runtime.resize(container.id, rows, columns),
        )
        return cri.AttachResponse(url=url)

    async def port_forward(self, request: Any) -> Any:
        sandbox = self.sandboxes.records.get(request.pod_sandbox_id)
        if not sandbox.ready:
            raise RpcError(Status.UNKNOWN, "sandbox container is not running")
        pin = self.sandboxes.pin(sandbox, "net")
        return cri.PortForwardResponse(url=self.streaming.port_forward(Path(pin) if pin else None))

    # -- figures and events ------------------------------------------------------------------------------------------

    async def container_stats(self, request: Any) -> Any:
        container = self.containers.records.get(request.container_id)
        return cri.ContainerStatsResponse(stats=await self.statistics.container(container))

    async def list_container_stats(self, request: Any) -> Any:
        return cri.ListContainerStatsResponse(stats=await self.statistics.select(request.filter))

    async def stream_container_stats(self, request: Any) -> AsyncIterator[Any]:
        yield cri.StreamContainerStatsResponse(container_stats=await self.statistics.select(request.filter))

    async def pod_sandbox_stats(self, request: Any) -> Any:
        sandbox = self.sandboxes.records.get(request.pod_sandbox_id)
        return cri.PodSandboxStatsResponse(stats=await self.statistics.pod(sandbox))

    async def list_pod_sandbox_stats(self, request: Any) -> Any:
        return cri.ListPodSandboxStatsResponse(stats=await self.statistics.pods(request.filter))

    async def stream_pod_sandbox_stats(self, request: Any) -> AsyncIterator[Any]:
        yield cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=await self.statistics.pods(request.filter))

    async def list_metric_descriptors(self, _: Any) -> Any:
        from longshore.engine.cri import metrics

        return cri.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    async def list_pod_sandbox_metrics(self, _: Any) -> Any:
        from longshore.engine.cri.metrics import Metrics

        return cri.ListPodSandboxMetricsResponse(pod_metrics=await Metrics(self.statistics).pods())

    async def stream_pod_sandbox_metrics(self, _: Any) -> AsyncIterator[Any]:
        from longshore.engine.cri.metrics import Metrics

        yield cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=await Metrics(self.statistics).pods())

    async def get_container_events(self, _: Any) -> AsyncIterator[Any]:
        async for message in self.events.stream():
            yield message

    def changed(self, sandbox: Sandbox | None, container_id: str, kind: int) -> None:
        """Tell every event stream what has happened to a container or sandbox, with its pod's state."""
        if not self.events.wanted:
            return
        message = cri.ContainerEventResponse(container_id=container_id, container_event_type=kind, created_at=now())
        if sandbox is not None:
            message.pod_sandbox_status.CopyFrom(self.sandboxes.status(sandbox))
            message.containers_statuses.extend(
                self.containers.status(c) for c in self.containers.of_sandbox(sandbox.id)
            )
        self.events.send(message)


def _check(options: Options) -> None:
    problem = options.problem()
    if problem:
        raise RpcError(Status.INVALID_ARGUMENT, problem)


def _recursive_read_only() -> bool:
    """Whether mount_setattr(2) with AT_RECURSIVE is there (Linux 5.12)."""
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()) or 0)) >= (5, 12)
