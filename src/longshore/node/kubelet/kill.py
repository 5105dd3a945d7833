"""Ending containers: preStop hook, grace, order; and hooks after a start.

Sources: kubernetes pkg/kubelet/kuberuntime/kuberuntime_container.go (killContainer), KEP-753 (sidecars end last, in
reverse order), pkg/kubelet/lifecycle.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from longshore.machinery.grpc import RpcError, Status
from longshore.node.kubelet import runtime as rt
from longshore.node.kubelet.handlers import Handlers
from longshore.node.kubelet.resources import all_containers, is_sidecar
from longshore.node.kubelet.runtime import RUNNING, UNKNOWN, Container, PodState, Runtime

log = logging.getLogger("longshore.kubelet")
Pod = dict[str, Any]
MINIMUM_GRACE = 2


class HookFailed(Exception):
    """A lifecycle hook did not succeed; the text says why."""


class Killer:
    """Stops containers and sandboxes."""

    def __init__(
        self,
        runtime: Runtime,
        handlers: Handlers,
        event: Callable[[Pod, Mapping[str, Any], str, str, str], None],
        pod_ip: Callable[[Pod], str],
    ) -> None:
        self._runtime, self._handlers, self._event, self._pod_ip = runtime, handlers, event, pod_ip

    async def hook(self, pod: Pod, container: Mapping[str, Any], container_id: str, action: Mapping[str, Any]) -> None:
        """Carry out a postStart or preStop action. Raises HookFailed."""
        if "exec" in action:
            command = list(action["exec"].get("command") or ())
            try:
                code, output = await self._handlers.exec(container_id, command, 3600.0)
            except RpcError as error:
                raise HookFailed(error.message or "exec failed") from error
            if code:
                raise HookFailed(f"command '{' '.join(command)}' exited with {code}: {output[:2048].decode(errors='replace')}")  # fmt: skip
        elif "httpGet" in action:
            try:
                await self._handlers.http(action["httpGet"], container, self._pod_ip(pod), 60.0, "kube-lifecycle/1.36")
            except (OSError, TimeoutError, ValueError) as error:
                raise HookFailed(f"{error or 'timed out'}") from error
        elif "sleep" in action:
            await asyncio.sleep(float(action["sleep"].get("seconds") or 0))
        elif "tcpSocket" in action:
            raise HookFailed("tcpSocket is not supported as a lifecycle handler")

    async def kill(
        self,
        pod: Pod | None,
        known: Container,
        message: str = "",
        *,
        probe: str = "",
        override: int | None = None,
        wait_first: asyncio.Event | None = None,
    ) -> None:
        """Stop one container within its grace. probe: the failed probe ("livenessProbe"), whose own grace counts.

        override: seconds instead of the pod's grace.
        wait_first: set when those that must end before are gone. Raises RpcError.
        """
        pod, container = _restored(pod, known)
        grace = _grace(pod, container, probe) if override is None else override
        self._event(pod, container, "Normal", "Killing", message or f"Stopping container {known.name}")
        begin = time.monotonic()
        action = (container.get("lifecycle") or {}).get("preStop")
        if action and grace > 0:
            try:
                async with asyncio.timeout(grace):
                    await self.hook(pod, container, known.id, action)
            except HookFailed as error:
                log.info("preStop hook of %s failed: %s", known.name, error)
                self._event(pod, container, "Warning", "FailedPreStopHook", "PreStopHook failed")
            except TimeoutError:
                log.info("preStop hook of %s did not end within its grace", known.name)
        if wait_first is not None:
            try:
                async with asyncio.timeout(max(0.0, grace - (time.monotonic() - begin))):
                    await wait_first.wait()
            except TimeoutError:
                pass
        left = grace - int(time.monotonic() - begin)
        if (action or wait_first is not None) and left < MINIMUM_GRACE and override != 0 and grace > 0:
            left = MINIMUM_GRACE
        try:
            await self._runtime.stop_container(known.id, max(0, left))
        except RpcError as error:
            if error.status is not Status.NOT_FOUND:
                raise

    async def kill_pod(self, pod: Pod | None, state: PodState, *, override: int | None = None) -> None:
        """End all containers (sidecars after the others, in reverse order) and stop the sandboxes. Raises RpcError."""
        running = [c for c in state.containers if c.state in (RUNNING, UNKNOWN)]
        order = [c["name"] for c in (pod["spec"].get("initContainers") or ()) if is_sidecar(c)] if pod else []
        sidecars = [c for name in reversed(order) for c in running if c.name == name]
        others = [c for c in running if c not in sidecars]
        gone: dict[str, asyncio.Event] = {c.id: asyncio.Event() for c in running}
        before: dict[str, asyncio.Event] = {}
        tasks = []

        async def end(known: Container, first: asyncio.Event | None) -> None:
            try:
                await self.kill(pod, known, override=override, wait_first=first)
            finally:
                gone[known.id].set()

        earlier = list(others)
        waits: list[asyncio.Task[None]] = []
        for sidecar in sidecars:
            before[sidecar.id] = asyncio.Event()
            waits.append(asyncio.create_task(_when_all([gone[c.id] for c in earlier], before[sidecar.id])))
            earlier.append(sidecar)
        tasks = [asyncio.create_task(end(c, before.get(c.id))) for c in running]
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        finally:
            for task in waits:
                task.cancel()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        for sandbox in state.sandboxes:
            await self._runtime.call("StopPodSandbox", pod_sandbox_id=sandbox.id)


async def _when_all(events: list[asyncio.Event], then: asyncio.Event) -> None:
    for event in events:
        await event.wait()
    then.set()


def _grace(pod: Pod, container: Mapping[str, Any], probe: str) -> int:
    metadata, spec = pod["metadata"], pod["spec"]
    grace = MINIMUM_GRACE
    if metadata.get("deletionGracePeriodSeconds") is not None:
        grace = int(metadata["deletionGracePeriodSeconds"])
    elif spec.get("terminationGracePeriodSeconds") is not None:
        grace = int(spec["terminationGracePeriodSeconds"])
        own = (container.get(probe) or {}).get("terminationGracePeriodSeconds") if probe else None
        if own is not None:
            grace = int(own)
    return grace


def _restored(pod: Pod | None, known: Container) -> tuple[Pod, dict[str, Any]]:
    """The pod and container spec; for a pod that is no longer known, what the container's annotations tell."""
    if pod is not None:
        found = next((c for c in all_containers(pod) if c["name"] == known.name), None)
        if found is not None:
            return pod, found
    notes = known.annotations
    container: dict[str, Any] = {"name": known.name}
    if notes.get(rt.PRE_STOP):
        container["lifecycle"] = {"preStop": orjson.loads(notes[rt.PRE_STOP])}
    if notes.get(rt.PORTS):
        container["ports"] = orjson.loads(notes[rt.PORTS])
    if pod is not None:
        return pod, container
    metadata: dict[str, Any] = {"name": "", "namespace": "", "uid": ""}
    spec: dict[str, Any] = {"containers": [container]}
    if notes.get(rt.DELETION_GRACE, "").isdigit():
        metadata["deletionGracePeriodSeconds"] = int(notes[rt.DELETION_GRACE])
    if notes.get(rt.GRACE, "").isdigit():
        spec["terminationGracePeriodSeconds"] = int(notes[rt.GRACE])
    return {"metadata": metadata, "spec": spec}, container
