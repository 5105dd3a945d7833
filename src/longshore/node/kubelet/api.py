"""The kubelet's own HTTPS port: pods, logs, exec, attach, port-forward, figures, health.

Source: kubernetes pkg/kubelet/server/server.go (paths, parameters, texts).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from longshore.machinery.grpc import RpcError, Status
from longshore.machinery.http import Client, ClientError, Request, Response, tunnel
from longshore.node.kubelet import logs
from longshore.node.kubelet.auth import Gate
from longshore.node.kubelet.images import go_code
from longshore.node.kubelet.kubelet import Kubelet
from longshore.node.kubelet.resources import all_containers
from longshore.node.kubelet.runtime import RUNNING, PodState

log = logging.getLogger("longshore.kubelet.api")
Pod = dict[str, Any]
Answer = Response | None
_FORWARDED = ("connection", "upgrade", "x-stream-protocol-version", "user-agent")
#: further answers by exact path: figures, metrics, configuration
Pages = dict[str, Callable[[Request], Awaitable[Response]]]


def text(status: int, message: str) -> Response:
    return Response(status, message.encode(), (), "text/plain; charset=utf-8")


class KubeletApi:
    """Answers the port's requests."""

    def __init__(self, kubelet: Kubelet, gate: Gate | None, pages: Pages) -> None:
        """gate: None lets everybody in (for a port that only the node itself can reach)."""
        self.kubelet, self._gate, self._pages = kubelet, gate, pages
        self._streams = Client()

    async def close(self) -> None:
        closing = self._streams.close()
        if asyncio.iscoroutine(closing):
            await closing

    async def handle(self, request: Request) -> Answer:
        """One request."""
        if self._gate is not None:
            status, problem = await self._gate.check(request)
            if status != 200:
                return text(status, problem)
        parts = [p for p in request.path.split("/") if p]
        path = "/" + "/".join(parts)
        if path in self._pages:
            return await self._pages[path](request)
        head = parts[0] if parts else ""
        if head == "healthz":
            return self._health(parts[1:])
        if head == "pods" and len(parts) == 1:
            return Response.json({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self._pods()})
        if head == "runningpods" and len(parts) == 1:
            return await self._running()
        if head == "containerLogs" and len(parts) == 4:
            return await self._container_logs(request, *parts[1:])
        if head in ("exec", "attach") and len(parts) in (4, 5):
            return await self._command(
                request, head, parts[1], parts[2], parts[3] if len(parts) == 5 else "", parts[-1]
            )
        if head == "portForward" and len(parts) in (3, 4):
            return await self._forward(request, parts[1], parts[2], parts[3] if len(parts) == 4 else "")
        if head == "run" and len(parts) in (4, 5):
            return await self._run(request, parts[1], parts[2], parts[3] if len(parts) == 5 else "", parts[-1])
        if head == "logs":
            return await asyncio.to_thread(self._node_logs, parts[1:])
        if head == "checkpoint" and len(parts) == 4:
            return await self._checkpoint(request, *parts[1:])
        return text(404, "404 page not found\n")

    # -- plain answers -----------------------------------------------------------------------------------------------

    def _health(self, parts: list[str]) -> Response:
        if parts in ([], ["ping"], ["log"]):
            return text(200, "ok")
        if parts == ["syncloop"]:
            problem = self.kubelet.unhealthy()
            return text(500, problem) if problem else text(200, "ok")
        return text(404, "404 page not found\n")

    def _pods(self) -> list[Pod]:
        found = []
        for pod in self.kubelet.pods.values():
            status = self.kubelet.statuses.get(pod["metadata"]["uid"]) or pod.get("status") or {}
            found.append({k: v for k, v in {**pod, "status": status}.items() if k not in ("kind", "apiVersion")})
        return found

    async def _running(self) -> Response:
        items = []
        for state in (await self.kubelet.runtime.pods()).values():
            running = state.running()
            if not running:
                continue
            items.append(
                {
                    "metadata": {"name": state.name, "namespace": state.namespace, "uid": state.uid},
                    "spec": {"containers": [{"name": c.name, "image": c.image_ref, "resources": {}} for c in running]},
                    "status": {},
                }
            )
        return Response.json({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

    def _node_logs(self, parts: list[str]) -> Response:
        """Files under /var/log, without following a link out of it. Blocking."""
        from longshore.machinery import rooted

        path = "/" + "/".join(parts)
        try:
            real = rooted.real_path("/var/log", path)
            target = Path("/var/log") / real.lstrip("/")
            if target.is_dir():
                names = sorted(n.name + ("/" if n.is_dir() else "") for n in target.iterdir())
                body = "<pre>\n" + "".join(f'<a href="{n}">{n}</a>\n' for n in names) + "</pre>\n"
                return Response(200, body.encode(), (), "text/html; charset=utf-8")
            return Response(200, rooted.read_file("/var/log", path, 64 * 2**20), (), "text/plain; charset=utf-8")
        except OSError:
            return text(404, "404 page not found\n")

    # -- finding -----------------------------------------------------------------------------------------------------

    def _find(self, namespace: str, name: str, uid: str = "") -> Pod | None:
        for pod in self.kubelet.pods.values():
            metadata = pod["metadata"]
            if metadata["namespace"] == namespace and metadata["name"] == name and uid in ("", metadata["uid"]):
                return pod
        return None

    async def _state(self, pod: Pod) -> PodState:
        metadata = pod["metadata"]
        return await self.kubelet.runtime.pod(metadata["uid"], metadata["name"], metadata["namespace"])

    # -- logs --------------------------------------------------------------------------------------------------------

    async def _container_logs(self, request: Request, namespace: str, name: str, container: str) -> Answer:
        pod = self._find(namespace, name)
        if pod is None:
            return text(404, f'pod "{name}" does not exist\n')
        if not any(c["name"] == container for c in all_containers(pod)):
            return text(404, f'container "{container}" not found in pod "{name}"\n')
        try:
            options = _log_options(request)
        except ValueError as error:
            return text(422, f"{error}\n")
        state = await self._state(pod)
        known = [c for c in state.containers if c.name == container]
        previous = request.param("previous").lower() in ("true", "1")
        if previous:
            known = known[1:]
            if not known:
                return text(400, f'previous terminated container "{container}" in pod "{name}" not found\n')
        if not known:
            reasons = self.kubelet.syncer.reasons.get(pod["metadata"]["uid"], {})
            reason = reasons.get(container, ("", ""))[0]
            if reason in ("ErrImagePull", "ImagePullBackOff"):
                words = "image can't be pulled" if reason == "ErrImagePull" else "trying and failing to pull image"
                return text(400, f'container "{container}" in pod "{name}" is waiting to start: {words}\n')
            waiting = reason or ("PodInitializing" if pod["spec"].get("initContainers") else "ContainerCreating")
            return text(400, f'container "{container}" in pod "{name}" is waiting to start: {waiting}\n')
        target = known[0]
        path = Path(target.log_path)
        uid = pod["metadata"]["uid"]
        wake = asyncio.Event()

        async def running() -> bool:
            try:
                return (await self.kubelet.runtime.container(target.id)).state == RUNNING
            except RpcError:
                return False

        self.kubelet.followers.setdefault(uid, set()).add(wake)
        writer = None
        try:
            async for piece in logs.read(path, options, running=running, wake=wake):
                if writer is None:
                    writer = await request.start(200, [("Content-Type", "text/plain")])
                writer.write(piece)
                await writer.drain()
        except FileNotFoundError:
            return text(
                500, f'failed to try resolving symlinks in path "{path}": lstat {path}: no such file or directory\n'
            )
        except ConnectionError:
            return None
        finally:
            self.kubelet.followers.get(uid, set()).discard(wake)
        if writer is None:
            return Response(200, b"", (), "text/plain")
        await writer.finish()
        return None

    # -- exec, attach, port-forward ----------------------------------------------------------------------------------

    async def _command(
        self, request: Request, kind: str, namespace: str, name: str, uid: str, container: str
    ) -> Answer:
        pod = self._find(namespace, name, uid)
        if pod is None:
            return text(404, "pod does not exist")
        streams = {n: request.param(p) in ("1", "true") for n, p in
                   (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty"))}  # fmt: skip
        if not any(streams[n] for n in ("stdin", "stdout", "stderr")):
            return text(400, "you must specify at least 1 of stdin, stdout, stderr")
        if streams["tty"]:
            streams["stderr"] = False
        known = (await self._state(pod)).latest(container)
        if known is None or known.state != RUNNING:
            if known is None:
                return text(404, f'container not found ("{container}")')
            return text(500, f"container {container} is not running")
        fields: dict[str, Any] = {"container_id": known.id, **streams}
        if kind == "exec":
            fields["cmd"] = request.query.get("command", [])
        try:
            answer = await self.kubelet.runtime.call("Exec" if kind == "exec" else "Attach", **fields)
        except RpcError as error:
            return text(404 if error.status is Status.NOT_FOUND else 500, str(error.message))
        return await self._pass_on(request, answer.url)

    async def _forward(self, request: Request, namespace: str, name: str, uid: str) -> Answer:
        pod = self._find(namespace, name, uid)
        if pod is None:
            return text(404, "pod does not exist")
        sandbox = (await self._state(pod)).ready_sandbox
        if sandbox is None:
            return text(500, f"failed to find sandbox for pod {namespace}/{name}")
        ports = []
        for value in request.query.get("port", []):
            for part in value.split(","):
                if not part.isdigit() or not 0 < int(part) < 65536:
                    return text(400, f'query parameter "port" must be a valid port number: {part!r}')
                ports.append(int(part))
        try:
            answer = await self.kubelet.runtime.call("PortForward", pod_sandbox_id=sandbox.id, port=ports)
        except RpcError as error:
            return text(500, str(error.message))
        return await self._pass_on(request, answer.url)

    async def _pass_on(self, request: Request, url: str) -> Answer:
        """Join an upgrade request with the runtime's streaming server, whatever protocol they speak."""
        headers = [
            (n, v) for n, v in request.headers.items()
            if n.lower() in _FORWARDED or n.lower().startswith("sec-websocket")
        ]  # fmt: skip
        query = request.target.partition("?")[2]
        try:
            response, far = await self._streams.upgrade(
                request.method, f"{url}?{query}" if query else url, headers=headers
            )
        except (ClientError, OSError) as error:
            return text(502, f"unable to upgrade connection: {error}")
        if far is None:
            body = await response.read(1 << 20)
            return Response(response.status, body, (), response.headers.get("content-type") or "text/plain")
        keep = [
            (n, v) for n, v in response.headers.items()
            if n.lower() in ("upgrade", "connection", "x-stream-protocol-version") or n.lower().startswith("sec-websocket")
        ]  # fmt: skip
        near = await request.upgrade(response.status, keep)
        await tunnel(near, far)
        return None

    async def _run(self, request: Request, namespace: str, name: str, uid: str, container: str) -> Answer:
        pod = self._find(namespace, name, uid)
        if pod is None:
            return text(404, "pod does not exist")
        known = (await self._state(pod)).latest(container)
        if known is None or known.state != RUNNING:
            return text(404, f'container not found ("{container}")')
        command = request.query.get("cmd", [""])[0].split(" ")
        try:
            code, output = await self.kubelet.runtime.exec_sync(known.id, command, 120)
        except RpcError as error:
            return text(500, str(error.message))
        if code:
            return Response(500, output + f"\ncommand terminated with exit code {code}".encode(), (), "text/plain")
        return Response(200, output, (), "text/plain")

    async def _checkpoint(self, request: Request, namespace: str, name: str, container: str) -> Answer:
        if request.method != "POST":
            return text(405, "405: Method Not Allowed")
        pod = self._find(namespace, name)
        if pod is None:
            return text(404, "pod does not exist")
        if all(c["name"] != container for c in all_containers(pod)):
            return text(404, f"container {container} does not exist")
        try:
            timeout = int((request.query.get("timeout") or ["0"])[-1])
        except ValueError:
            return text(404, "cannot parse value of timeout parameter")
        problem = f"container {container} not found"
        known = (await self._state(pod)).latest(container)
        if known is not None:
            stamp = datetime.now().astimezone().strftime("%Y-%m-%dT%H:%M:%S%z")
            folder = self.kubelet.config.root / "checkpoints"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            location = str(folder / f"checkpoint-{name}_{namespace}-{container}-{stamp}.tar")
            fields: dict[str, Any] = {"container_id": known.id, "location": location, "timeout": timeout}
            try:
                await self.kubelet.runtime.call("CheckpointContainer", **fields)
                return Response.json({"items": [location]})
            except RpcError as error:
                problem = f"rpc error: code = {go_code(error.status)} desc = {error.message}"
        return text(500, f"checkpointing of {namespace}/{name}/{container} failed ({problem})")


def _log_options(request: Request) -> logs.Options:
    """The query of a log request. Raises ValueError with what is wrong."""
    options = logs.Options()
    options.follow = request.param("follow").lower() in ("true", "1")
    options.timestamps = request.param("timestamps").lower() in ("true", "1")
    stream = request.param("stream")
    options.stream = {"": b"", "All": b"", "Stdout": b"stdout", "Stderr": b"stderr"}.get(stream, b"?")
    if options.stream == b"?":
        raise ValueError(f"Unsupported log stream {stream!r}")
    if (tail := request.param("tailLines")) or ((tail := request.param("tail")) and tail != "all"):
        options.tail = int(tail)
    if request.param("tailLines") and options.tail < 0:
        raise ValueError("tailLines must be greater than or equal to 0")
    if limit := request.param("limitBytes"):
        options.limit = int(limit)
        if options.limit < 1:
            raise ValueError("limitBytes must be greater than 0")
    if seconds := request.param("sinceSeconds"):
        if int(seconds) < 1:
            raise ValueError("sinceSeconds must be greater than 0")
        options.since = time.time_ns() - int(seconds) * 10**9
    elif moment := request.param("sinceTime"):
        options.since = int(datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp() * 1e9)
    return options
