"""The status of a simulated pod at each station of its life. Pure: a pod and a moment in, a status out.

Source: what kubernetes' kubelet writes (pkg/kubelet/status, api-conventions); kwok's documented pod-ready, pod-complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longshore.client.objects import set_condition

Object = dict[str, Any]
RUNTIME = "simulated"
#: The conditions that a kubelet writes; others' are left to them.
OWNED = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def _identity(pod: Object, name: str, restarts: int) -> str:
    return f"{RUNTIME}://{pod['metadata']['uid']}/{name}/{restarts}"


def _is_sidecar(container: Object) -> bool:
    return container.get("restartPolicy") == "Always"


def _ended(pod: Object, name: str, code: int, started: str, at: str, restarts: int) -> Object:
    return {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "startedAt": started,
        "finishedAt": at,
        "containerID": _identity(pod, name, restarts),
    }


def _entry(pod: Object, container: Object, restarts: int, last: Mapping[str, Any], **more: Any) -> Object:
    name = container["name"]
    return {
        "name": name,
        "image": container.get("image", ""),
        "imageID": more.pop("image_id", ""),
        "restartCount": restarts,
        "lastState": dict(last),
        **more,
    }


class Moment:
    """What a status is made of. at: metav1.Time; started: when the present run began; last: lastState by container."""

    def __init__(
        self, pod: Object, at: str, *, host_ip: str, pod_ip: str = "", restarts: int = 0, started: str = "",
        last: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.pod, self.at, self.host_ip, self.pod_ip = pod, at, host_ip, pod_ip
        self.restarts, self.started = restarts, started or at
        self.last = last or {}

    # -- containers ------------------------------------------------------------------------------------------------

    def _waiting(self, container: Object, reason: str, message: str = "") -> Object:
        state = {"reason": reason, **({"message": message} if message else {})}
        last = self.last.get(container["name"], {})
        return _entry(self.pod, container, self.restarts, last, ready=False, started=False, state={"waiting": state})

    def _running(self, container: Object, ready: bool) -> Object:
        name = container["name"]
        return _entry(
            self.pod, container, self.restarts, self.last.get(name, {}), ready=ready, started=True,
            state={"running": {"startedAt": self.started}}, image_id=container.get("image", ""),
            containerID=_identity(self.pod, name, self.restarts),
        )  # fmt: skip

    def _terminated(self, container: Object, code: int, ready: bool = False) -> Object:
        name = container["name"]
        return _entry(
            self.pod, container, self.restarts, self.last.get(name, {}), ready=ready, started=False,
            state={"terminated": _ended(self.pod, name, code, self.started, self.at, self.restarts)},
            image_id=container.get("image", ""), containerID=_identity(self.pod, name, self.restarts),
        )  # fmt: skip

    def ended_runs(self, code: int) -> dict[str, Object]:
        """lastState by container after the present run ended with code."""
        return {
            c["name"]: {"terminated": _ended(self.pod, c["name"], code, self.started, self.at, self.restarts)}
            for c in self.pod["spec"]["containers"]
        }

    # -- whole statuses --------------------------------------------------------------------------------------------

    def pending(self, reason: str, message: str = "") -> Object:
        """Nothing runs yet. reason: ContainerCreating, ErrImagePull, ImagePullBackOff."""
        spec = self.pod["spec"]
        init = [self._waiting(c, reason, message) for c in spec.get("initContainers") or ()]
        plain = [self._waiting(c, "PodInitializing" if init else reason, message) for c in spec["containers"]]
        return self._status("Pending", init, plain, initialized=not init, ready=False, sandbox=False)

    def running(self, *, ready: bool) -> Object:
        """All run; init containers have ended well, sidecars run too."""
        spec = self.pod["spec"]
        plain = [self._running(c, ready) for c in spec["containers"]]
        return self._status("Running", self._init(running=True), plain, initialized=True, ready=ready)

    def waiting(self, pause: float) -> Object:
        """Between two runs."""
        meta = self.pod["metadata"]
        whose = f"{meta['name']}_{meta.get('namespace', '')}({meta['uid']})"
        plain = [
            self._waiting(
                c, "CrashLoopBackOff", f"back-off {pause:g}s restarting failed container={c['name']} pod={whose}"
            )
            for c in self.pod["spec"]["containers"]
        ]
        return self._status("Running", self._init(running=True), plain, initialized=True, ready=False)

    def finished(self, code: int) -> Object:
        """All have ended, for good."""
        phase = "Succeeded" if code == 0 else "Failed"
        plain = [self._terminated(c, code) for c in self.pod["spec"]["containers"]]
        reason = "PodCompleted" if code == 0 else "PodFailed"
        return self._status(
            phase, self._init(running=False), plain, initialized=True, ready=False, sandbox=False, reason=reason
        )

    def _init(self, *, running: bool) -> list[Object]:
        return [
            self._running(c, True) if running and _is_sidecar(c) else self._terminated(c, 0, ready=True)
            for c in self.pod["spec"].get("initContainers") or ()
        ]

    def _status(
        self, phase: str, init: list[Object], plain: list[Object], *, initialized: bool, ready: bool,
        sandbox: bool = True, reason: str = "",
    ) -> Object:  # fmt: skip
        old = self.pod.get("status") or {}
        names = [c["name"] for c in self.pod["spec"]["containers"]]
        unready: Object = {}
        if reason:
            unready = {"reason": reason}
        elif not ready:
            message = f"containers with unready status: [{' '.join(names)}]"
            unready = {"reason": "ContainersNotReady", "message": message}
        gates = [g["conditionType"] for g in self.pod["spec"].get("readinessGates") or ()]
        met = {c["type"] for c in old.get("conditions") or () if c.get("status") == "True"}
        pod_ready: Object = dict(unready)
        if ready and not met.issuperset(gates):
            pod_ready = {"reason": "ReadinessGatesNotReady", "message": "corresponding condition of pod readiness gate is not True"}  # fmt: skip
        conditions = old.get("conditions") or []
        generation = self.pod["metadata"].get("generation")
        for kind, holds, why in (
            ("PodReadyToStartContainers", sandbox, {}),
            ("Initialized", initialized, {"reason": reason} if reason == "PodCompleted" else {}),
            ("Ready", ready and not pod_ready, pod_ready),
            ("ContainersReady", ready, unready),
            ("PodScheduled", True, {}),
        ):
            entry: Object = {"type": kind, "status": "True" if holds else "False", "lastProbeTime": None, **why}
            if generation:
                entry["observedGeneration"] = generation
            conditions = set_condition(conditions, {**entry, "lastTransitionTime": self.at})
        result: Object = {
            "phase": phase,
            "conditions": [c for c in conditions if c["type"] in OWNED],
            "hostIP": self.host_ip,
            "hostIPs": [{"ip": self.host_ip}],
            "startTime": old.get("startTime") or self.at,
            "containerStatuses": plain,
        }
        if generation:
            result["observedGeneration"] = generation
        if init:
            result["initContainerStatuses"] = init
        if self.pod_ip:
            result |= {"podIP": self.pod_ip, "podIPs": [{"ip": self.pod_ip}]}
        return result
