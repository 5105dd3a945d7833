"""Probes: a task a probe of a running container, its result, and a nudge to the pod's worker when it changes.

Source: kubernetes pkg/kubelet/prober (worker.go, prober.go).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from longshore.machinery.grpc import RpcError, Status
from longshore.node.kubelet.handlers import LATE_SECONDS, Handlers
from longshore.node.kubelet.resources import is_sidecar
from longshore.node.kubelet.runtime import RUNNING, Container, PodState

log = logging.getLogger("longshore.kubelet.probes")
Pod = dict[str, Any]
KINDS = {"startup": "startupProbe", "readiness": "readinessProbe", "liveness": "livenessProbe"}
_INITIAL: dict[str, bool | None] = {"startup": None, "readiness": False, "liveness": True}
_RETRIES = 3
MESSAGE_LIMIT = 10 * 1024


class Unusable(Exception):
    """A probe could not be carried out; it counts neither as passed nor as failed."""


class Late(Exception):
    """A probe's time was over, but this process had no time itself to see the answer: it says little."""

    def __init__(self, output: str) -> None:
        super().__init__(output)
        self.output = output


class ProbeManager:
    """All probes of a node."""

    def __init__(
        self,
        handlers: Handlers,
        *,
        changed: Callable[[str], None],
        event: Callable[[Pod, Mapping[str, Any], str, str, str], None],
        pod_ip: Callable[[Pod], str],
        told: Callable[[Pod], Mapping[str, Any]] = lambda pod: pod.get("status") or {},
        metric: Callable[[str, str, Pod, str], None] = lambda *_: None,
    ) -> None:
        """changed(uid): a result is new. event(pod, container, type, reason, message). told(pod): the status that the
        API server has of it. metric(kind, result, pod, name)."""
        self._told = told
        self._began = time.time()
        self._handlers, self._changed, self._event, self._pod_ip, self.metric = (
            handlers,
            changed,
            event,
            pod_ip,
            metric,
        )
        self._results: dict[tuple[str, str], bool | None] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._of_pod: dict[str, set[tuple[str, str]]] = {}
        self._started: dict[str, asyncio.Event] = {}
        self._pods: dict[str, Pod] = {}

    def result(self, kind: str, container_id: str) -> bool | None:
        """True passed, False failed, None: not known."""
        return self._results.get((kind, container_id))

    def sync(self, pod: Pod, state: PodState) -> None:
        """Probe exactly the running containers of the pod that have probes."""
        uid = pod["metadata"]["uid"]
        self._pods[uid] = pod
        wanted: dict[tuple[str, str], tuple[dict[str, Any], Container]] = {}
        containers = list(pod["spec"]["containers"])
        containers += [c for c in pod["spec"].get("initContainers") or () if is_sidecar(c)]
        deleting = bool(pod["metadata"].get("deletionTimestamp"))
        for container in containers:
            known = state.latest(container["name"])
            if known is None or known.state != RUNNING:
                continue
            for kind, field in KINDS.items():
                if container.get(field) and not (deleting and kind != "readiness"):
                    wanted[kind, known.id] = (container, known)
        have = self._of_pod.get(uid, set())
        for key in have - wanted.keys():
            self._end(key)
        for key, (container, known) in wanted.items():
            if key not in self._tasks:
                self._results[key] = self._initial(pod, container, known, key[0])
                if key[0] == "startup" and self._results[key]:
                    self._started.setdefault(known.id, asyncio.Event()).set()
                self._tasks[key] = asyncio.create_task(
                    self._work(uid, container, known, key[0]), name=f"{key[0]} probe {container['name']}"
                )
        self._of_pod[uid] = set(wanted)

    def _initial(self, pod: Pod, container: Mapping[str, Any], known: Container, kind: str) -> bool | None:
        """What holds until the first results: a container that ran before this process keeps what was told of it.

        Otherwise each restart of the kubelet would take all its pods out of their Services.
        Source: kubernetes pkg/kubelet (ChangeContainerStatusOnKubeletRestart, off since 1.35).
        """
        if kind == "liveness":
            return _INITIAL[kind]
        status = self._told(pod)
        for field in ("containerStatuses", "initContainerStatuses"):
            for entry in status.get(field) or ():
                if entry.get("name") == container["name"] and entry.get("containerID", "").endswith(f"//{known.id}"):
                    if entry.get("started" if kind == "startup" else "ready"):
                        return True
        return _INITIAL[kind]

    def forget(self, uid: str) -> None:
        """The pod's probes end."""
        for key in self._of_pod.pop(uid, set()):
            self._end(key)
        self._pods.pop(uid, None)

    def stop_liveness(self, uid: str) -> None:
        """A pod that is being ended is no longer killed or started anew by its probes."""
        for key in list(self._of_pod.get(uid, ())):
            if key[0] != "readiness":
                self._end(key)
                self._of_pod[uid].discard(key)

    def _end(self, key: tuple[str, str]) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
        self._results.pop(key, None)
        if not any(k[1] == key[1] for k in self._tasks):
            self._started.pop(key[1], None)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for uid in list(self._of_pod):
            self.forget(uid)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _set(self, uid: str, key: tuple[str, str], value: bool) -> None:
        if self._results.get(key) is value:
            return
        self._results[key] = value
        if key[0] == "startup" and value:
            self._started.setdefault(key[1], asyncio.Event()).set()
        self._changed(uid)

    async def _work(self, uid: str, container: dict[str, Any], known: Container, kind: str) -> None:
        spec = container[KINDS[kind]]
        period = float(spec.get("periodSeconds") or 10)
        key = (kind, known.id)
        if kind == "startup" and self._results.get(key):
            return
        if known.started_at / 1e9 < self._began and time.time() - self._began < period:
            # After a restart all containers of the node are found at once: their probes are spread over the period.
            await asyncio.sleep(random.random() * period)
        if kind != "startup" and container.get("startupProbe"):
            await self._started.setdefault(known.id, asyncio.Event()).wait()
        delay = known.started_at / 1e9 + float(spec.get("initialDelaySeconds") or 0) - time.time()
        if delay > 0:
            await asyncio.sleep(delay)
        last: bool | None = None
        run = 0
        while True:
            begin = time.monotonic()
            pod = self._pods.get(uid)
            if pod is None:
                return
            try:
                passed = await self._probe(pod, container, known, kind, spec)
            except Unusable:
                passed = None
            if passed is not None:
                run = run + 1 if passed is last else 1
                last = passed
                needed = int(spec.get("successThreshold") or 1) if passed else int(spec.get("failureThreshold") or 3)
                if run >= needed:
                    self._set(uid, key, passed)
                    if kind == "startup" and passed:
                        return
                    if kind != "readiness" and not passed:
                        # The container is going to be killed: there is nothing more to learn of it.
                        return
            await asyncio.sleep(max(0.0, begin + period - time.monotonic()))

    async def _probe(
        self, pod: Pod, container: dict[str, Any], known: Container, kind: str, spec: Mapping[str, Any]
    ) -> bool:
        problem: Exception | None = None
        for attempt in range(_RETRIES):
            try:
                passed, output = await self._once(pod, container, known, kind, spec)
                break
            except Late as late:
                if attempt == _RETRIES - 1:
                    passed, output = False, late.output
                    break
            except Unusable as error:
                problem = error
        else:
            self.metric(kind, "unknown", pod, container["name"])
            self._event(pod, container, "Warning", "Unhealthy", f"{kind.capitalize()} probe errored: {problem}")
            raise Unusable
        self.metric(kind, "successful" if passed else "failed", pod, container["name"])
        if not passed:
            text = f"{kind.capitalize()} probe failed: {output}"
            self._event(pod, container, "Warning", "Unhealthy", text)
            log.debug("%s/%s %s: %s", pod["metadata"]["namespace"], pod["metadata"]["name"], container["name"], text)
        return passed

    async def _once(
        self, pod: Pod, container: dict[str, Any], known: Container, kind: str, spec: Mapping[str, Any]
    ) -> tuple[bool, str]:
        timeout = float(spec.get("timeoutSeconds") or 1)
        begin = time.monotonic()
        ip = self._pod_ip(pod)
        if "exec" in spec:
            try:
                code, output = await self._handlers.exec(known.id, list(spec["exec"].get("command") or ()), timeout)
            except RpcError as error:
                if error.status is Status.DEADLINE_EXCEEDED:
                    return False, f"command timed out: {' '.join(spec['exec'].get('command') or ())!r} timed out after {timeout:g}s"  # fmt: skip
                raise Unusable(error.message) from error
            return code == 0, output[:MESSAGE_LIMIT].decode(errors="replace")
        try:
            if "httpGet" in spec:
                status, body, _ = await self._handlers.http(spec["httpGet"], container, ip, timeout)
                if 300 <= status < 400:
                    words = f"Probe terminated redirects, Response body: {body.decode(errors='replace')}"
                    self._event(pod, container, "Warning", "ProbeWarning", f"{kind.capitalize()} probe warning: {words}")  # fmt: skip
                    return True, words
                if 200 <= status < 300:
                    return True, body.decode(errors="replace")
                return False, f"HTTP probe failed with statuscode: {status}"
            if "tcpSocket" in spec:
                await self._handlers.tcp(spec["tcpSocket"], container, ip, timeout)
                return True, ""
            if "grpc" in spec:
                return await self._handlers.grpc(spec["grpc"], ip, timeout)
        except TimeoutError as error:
            text = str(error)
            text = (
                text
                or f"{_shown(spec, ip)}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )
            if time.monotonic() - begin > timeout + LATE_SECONDS:
                raise Late(text) from None
            return False, text
        except OSError as error:
            return False, f"{_shown(spec, ip)}: {_go_error(error)}"
        except ValueError as error:
            raise Unusable(str(error)) from error
        raise Unusable(f"missing probe handler for {pod['metadata']['name']}:{container['name']}")


def _shown(spec: Mapping[str, Any], ip: str) -> str:
    if "httpGet" in spec:
        action = spec["httpGet"]
        scheme = str(action.get("scheme") or "HTTP").lower()
        return f'Get "{scheme}://{action.get("host") or ip}:{action["port"]}{action.get("path") or "/"}"'
    action = spec.get("tcpSocket") or {}
    return f"dial tcp {action.get('host') or ip}:{action.get('port')}"


def _go_error(error: OSError) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    text = cause.strerror or str(cause) or str(error)
    return "connect: connection refused" if isinstance(cause, ConnectionRefusedError) else text.lower()
