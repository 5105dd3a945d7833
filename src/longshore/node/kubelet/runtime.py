"""The node's container runtime through CRI: what runs of a pod, as plain values.

Source: kubernetes pkg/kubelet/kuberuntime (labels and annotations that make a runtime's state readable again).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery.grpc import Client, RpcError, Status
from longshore.wire.cri import cri

Pod = dict[str, Any]

POD_NAME = "io.kubernetes.pod.name"
POD_NAMESPACE = "io.kubernetes.pod.namespace"
POD_UID = "io.kubernetes.pod.uid"
CONTAINER_NAME = "io.kubernetes.container.name"
HASH = "io.kubernetes.container.hash"
RESTART_COUNT = "io.kubernetes.container.restartCount"
MESSAGE_PATH = "io.kubernetes.container.terminationMessagePath"
MESSAGE_POLICY = "io.kubernetes.container.terminationMessagePolicy"
GRACE = "io.kubernetes.pod.terminationGracePeriod"
DELETION_GRACE = "io.kubernetes.pod.deletionGracePeriod"
PRE_STOP = "io.kubernetes.container.preStopHandler"
PORTS = "io.kubernetes.container.ports"

CREATED, RUNNING, EXITED, UNKNOWN = "created", "running", "exited", "unknown"
_STATES = (CREATED, RUNNING, EXITED, UNKNOWN)
CALL_TIMEOUT = 120.0


@dataclass(slots=True)
class Container:
    """One container as the runtime knows it. Times are nanoseconds since 1970, 0 when it has not happened."""

    id: str
    name: str
    state: str
    attempt: int
    created_at: int
    started_at: int
    finished_at: int
    exit_code: int
    reason: str
    message: str
    image: str
    image_ref: str
    image_id: str
    hash: str
    restart_count: int
    annotations: dict[str, str]
    log_path: str
    mounts: list[Any]
    resources: Any = None
    user: Any = None
    stop_signal: int = 0


@dataclass(slots=True)
class Sandbox:
    id: str
    attempt: int
    ready: bool
    created_at: int
    ips: list[str]
    host_network: bool
    annotations: dict[str, str]
    runtime_handler: str = ""


@dataclass(slots=True)
class PodState:
    """What the runtime has of one pod; sandboxes and containers newest first."""

    uid: str
    name: str = ""
    namespace: str = ""
    sandboxes: list[Sandbox] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)

    def latest(self, name: str) -> Container | None:
        """The newest container of that name."""
        return next((c for c in self.containers if c.name == name), None)

    def running(self) -> list[Container]:
        return [c for c in self.containers if c.state == RUNNING]

    @property
    def ips(self) -> list[str]:
        for sandbox in self.sandboxes:
            if sandbox.ready:
                return sandbox.ips
        return self.sandboxes[0].ips if self.sandboxes else []

    @property
    def ready_sandbox(self) -> Sandbox | None:
        return next((s for s in self.sandboxes if s.ready), None)


def container_hash(container: Mapping[str, Any]) -> str:
    """A number that changes when the container must be made anew: with its name or image."""
    text = orjson.dumps([container["name"], container.get("image", "")])
    return hashlib.blake2b(text, digest_size=4).hexdigest()


def _container(status: Any) -> Container:
    annotations, labels = dict(status.annotations), status.labels
    try:
        restarts = int(annotations.get(RESTART_COUNT, status.metadata.attempt))
    except ValueError:
        restarts = status.metadata.attempt
    return Container(
        id=status.id,
        name=labels.get(CONTAINER_NAME) or status.metadata.name,
        state=_STATES[status.state] if 0 <= status.state < 4 else UNKNOWN,
        attempt=status.metadata.attempt,
        created_at=status.created_at,
        started_at=status.started_at,
        finished_at=status.finished_at,
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        image=status.image.user_specified_image or status.image.image,
        image_ref=status.image_ref,
        image_id=status.image_id,
        hash=annotations.get(HASH, ""),
        restart_count=restarts,
        annotations=annotations,
        log_path=status.log_path,
        mounts=list(status.mounts),
        resources=status.resources if status.HasField("resources") else None,
        user=status.user if status.HasField("user") else None,
        stop_signal=status.stop_signal,
    )


def _sandbox(status: Any) -> Sandbox:
    ips = [status.network.ip] if status.network.ip else []
    ips += [a.ip for a in status.network.additional_ips]
    return Sandbox(
        id=status.id,
        attempt=status.metadata.attempt,
        ready=status.state == cri.SANDBOX_READY,
        created_at=status.created_at,
        ips=ips,
        host_network=status.linux.namespaces.options.network == cri.NODE,
        annotations=dict(status.annotations),
        runtime_handler=status.runtime_handler,
    )


class Runtime:
    """Calls on a CRI endpoint. Every method raises RpcError."""

    def __init__(self, endpoint: str, image_endpoint: str = "") -> None:
        """endpoint: "unix:///path" or a path."""
        self.client = Client(cri.RuntimeService, path=_path(endpoint))
        image = _path(image_endpoint) if image_endpoint else _path(endpoint)
        self.images = Client(cri.ImageService, path=image)
        self.name = "unknown"
        self.version = ""

    def close(self) -> None:
        self.client.close()
        self.images.close()

    async def call(self, method: str, *, deadline: float | None = CALL_TIMEOUT, **fields: Any) -> Any:
        """One RuntimeService call."""
        return await self.client.call(method, deadline=deadline, **fields)

    async def image_call(self, method: str, *, deadline: float | None = CALL_TIMEOUT, **fields: Any) -> Any:
        """One ImageService call."""
        return await self.images.call(method, deadline=deadline, **fields)

    async def hello(self) -> None:
        """Learn the runtime's name and version (also: is it there)."""
        answer = await self.call("Version", version="0.1.0", deadline=10)
        self.name, self.version = answer.runtime_name, answer.runtime_version

    async def pods(self) -> dict[str, PodState]:
        """uid -> what the runtime has, names and states only (no statuses), for every pod that has anything."""
        found: dict[str, PodState] = {}
        sandboxes = await self.call("ListPodSandbox")
        containers = await self.call("ListContainers")
        by_id: dict[str, str] = {}
        for item in sandboxes.items:
            by_id[item.id] = item.metadata.uid
            state = found.setdefault(
                item.metadata.uid, PodState(item.metadata.uid, item.metadata.name, item.metadata.namespace)
            )
            state.sandboxes.append(
                Sandbox(
                    item.id,
                    item.metadata.attempt,
                    item.state == cri.SANDBOX_READY,
                    item.created_at,
                    [],
                    False,
                    dict(item.annotations),
                    item.runtime_handler,
                )
            )
        for item in containers.containers:
            uid = item.labels.get(POD_UID) or by_id.get(item.pod_sandbox_id, "")
            if not uid:
                continue
            state = found.setdefault(
                uid, PodState(uid, item.labels.get(POD_NAME, ""), item.labels.get(POD_NAMESPACE, ""))
            )
            state.containers.append(
                Container(
                    id=item.id,
                    name=item.labels.get(CONTAINER_NAME) or item.metadata.name,
                    state=_STATES[item.state] if 0 <= item.state < 4 else UNKNOWN,
                    attempt=item.metadata.attempt,
                    created_at=item.created_at,
                    started_at=0,
                    finished_at=0,
                    exit_code=0,
                    reason="",
                    message="",
                    image=item.image.image,
                    image_ref=item.image_ref,
                    image_id=item.image_id,
                    hash=item.annotations.get(HASH, ""),
                    restart_count=item.metadata.attempt,
                    annotations=dict(item.annotations),
                    log_path="",
                    mounts=[],
                )
            )
        for state in found.values():
            state.sandboxes.sort(key=lambda s: -s.created_at)
            state.containers.sort(key=lambda c: -c.created_at)
        return found

    async def pod(self, uid: str, name: str = "", namespace: str = "") -> PodState:
        """What the runtime has of one pod, with statuses."""
        state = PodState(uid, name, namespace)
        listed = await self.call("ListPodSandbox", filter=cri.PodSandboxFilter(label_selector={POD_UID: uid}))
        complete = bool(listed.items)
        for item in sorted(listed.items, key=lambda s: -s.created_at):
            state.name, state.namespace = item.metadata.name, item.metadata.namespace
            try:
                answer = await self.call("PodSandboxStatus", pod_sandbox_id=item.id)
            except RpcError as error:
                if error.status is Status.NOT_FOUND:
                    continue
                raise
            state.sandboxes.append(_sandbox(answer.status))
            # A runtime that streams events fills these in; others leave the timestamp 0.
            complete = complete and answer.timestamp != 0
            state.containers.extend(_container(c) for c in answer.containers_statuses)
        if not complete:
            state.containers = await self._containers(uid)
        state.containers.sort(key=lambda c: -c.created_at)
        return state

    async def _containers(self, uid: str) -> list[Container]:
        listed = await self.call("ListContainers", filter=cri.ContainerFilter(label_selector={POD_UID: uid}))
        result: list[Container] = []
        for item in listed.containers:
            try:
                result.append(await self.container(item.id))
            except RpcError as error:
                if error.status is not Status.NOT_FOUND:
                    raise
        return result

    async def container(self, container_id: str) -> Container:
        """One container's status."""
        return _container((await self.call("ContainerStatus", container_id=container_id)).status)

    def events(self) -> AsyncIterator[Any]:
        """The runtime's event stream (Unimplemented on runtimes without one)."""
        return self.client.stream("GetContainerEvents")

    async def stop_container(self, container_id: str, grace: int) -> None:
        """Stop within grace seconds, then kill."""
        request = cri.StopContainerRequest(container_id=container_id, timeout=grace)
        await self.client.call("StopContainer", request, deadline=grace + CALL_TIMEOUT)

    async def exec_sync(self, container_id: str, command: list[str], timeout: float) -> tuple[int, bytes]:
        """Run a command; (exit code, stdout and stderr together)."""
        request = cri.ExecSyncRequest(container_id=container_id, cmd=command, timeout=max(1, math.ceil(timeout)))
        answer = await self.client.call("ExecSync", request, deadline=timeout + 5)
        return answer.exit_code, answer.stdout + answer.stderr


def _path(endpoint: str) -> Path:
    return Path(endpoint.removeprefix("unix://"))
