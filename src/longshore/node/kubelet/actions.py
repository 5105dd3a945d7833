"""What must happen so that a pod's sandbox and containers become as its spec says: a pure function of what is there.

Source: kubernetes pkg/kubelet/kuberuntime/kuberuntime_manager.go (computePodActions, computeInitContainerActions),
pkg/kubelet/container/helpers.go (ShouldContainerBeRestarted), KEP-753 (sidecars), KEP-5307 (restart rules).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from longshore.node.kubelet.resources import is_sidecar
from longshore.node.kubelet.runtime import CREATED, EXITED, RUNNING, UNKNOWN, Container, PodState, container_hash

Pod = dict[str, Any]
#: (probe "startup" or "liveness", container id) -> True passed, False failed, None not known yet
ProbeResult = Callable[[str, str], bool | None]


RESTART, RESTART_ALL = "Restart", "RestartAllContainers"


@dataclass(slots=True)
class Kill:
    """A container to stop before others start."""

    container: Container
    message: str
    reason: str = ""


@dataclass(slots=True)
class Actions:
    """In order: kill the pod or single containers, make the sandbox, start containers (by their place in the spec)."""

    kill_pod: bool = False
    create_sandbox: bool = False
    sandbox_id: str = ""
    attempt: int = 0
    kill: list[Kill] = field(default_factory=list)
    start_ephemeral: list[dict[str, Any]] = field(default_factory=list)
    start_init: list[dict[str, Any]] = field(default_factory=list)
    start: list[dict[str, Any]] = field(default_factory=list)
    #: the container whose end starts the whole pod anew in its sandbox: all are ended and removed first
    reset: Container | None = None

    @property
    def nothing(self) -> bool:
        return not (self.reset or self.kill_pod or self.create_sandbox or self.kill or self.start_ephemeral or self.start_init
                    or self.start)  # fmt: skip


#: (pod, container, what runs) -> whether its new resources need a new container
Resized = Callable[[Pod, Mapping[str, Any], Container], bool]


def _never(_pod: Pod, _container: Mapping[str, Any], _known: Container) -> bool:
    return False


def restart_policy(pod: Pod, container: Mapping[str, Any]) -> str:
    """The container's own restart policy, else the pod's."""
    return str(container.get("restartPolicy") or pod["spec"].get("restartPolicy") or "Always")


def _rule(container: Mapping[str, Any], exit_code: int) -> str:
    """The action of the container's first rule for an exit code; "" where none speaks of it."""
    for rule in container.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes") or {}
        inside = exit_code in (codes.get("values") or ())
        if (codes.get("operator") == "In" and inside) or (codes.get("operator") == "NotIn" and not inside):
            return str(rule.get("action") or "")
    return ""


def restarts_after(pod: Pod, container: Mapping[str, Any], exit_code: int) -> bool:
    """Whether a container that ended with exit_code is started again: its rules first, then its policy."""
    action = _rule(container, exit_code)
    if action:
        return action in (RESTART, RESTART_ALL)
    policy = restart_policy(pod, container)
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def should_restart(pod: Pod, container: Mapping[str, Any], status: Container | None) -> bool:
    """Whether a container that does not run now must be started."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    if status is None or status.state in (CREATED, UNKNOWN):
        return True
    if status.state == RUNNING:
        return False
    return restarts_after(pod, container, status.exit_code)


def restarts_on_failure(pod: Pod) -> bool:
    """Whether the pod's own policy lets anything be started again."""
    return bool(pod["spec"].get("restartPolicy") != "Never")


def sandbox_changed(pod: Pod, state: PodState) -> tuple[bool, int, str]:
    """(a new sandbox is needed, its attempt, the present sandbox's id)."""
    if not state.sandboxes:
        return True, 0, ""
    latest = state.sandboxes[0]
    if sum(s.ready for s in state.sandboxes) > 1 or not latest.ready:
        return True, latest.attempt + 1, latest.id
    host = bool(pod["spec"].get("hostNetwork"))
    if latest.host_network != host:
        return True, latest.attempt + 1, ""
    if not host and not latest.ips:
        return True, latest.attempt + 1, latest.id
    return False, latest.attempt, latest.id


def any_regular_started(pod: Pod, state: PodState) -> bool:
    """Whether an ordinary container has run in this sandbox's life, so that the init phase is over."""
    names = {c["name"] for c in pod["spec"]["containers"]}
    return any(c.name in names and c.state in (RUNNING, EXITED, UNKNOWN) for c in state.containers)


def compute(pod: Pod, state: PodState, probe: ProbeResult, resized: Resized = _never) -> Actions:
    """The actions for a pod that should run. resized: whether a container must be started anew for new resources."""
    spec = pod["spec"]
    changed, attempt, sandbox_id = sandbox_changed(pod, state)
    todo = Actions(kill_pod=changed, create_sandbox=changed, sandbox_id=sandbox_id, attempt=attempt)
    inits = spec.get("initContainers") or []
    if changed:
        return _from_scratch(pod, state, todo, inits)
    todo.reset = _resetting(pod, state)
    if todo.reset is not None:
        todo.kill = [
            Kill(c, f"Container {c.name} will be restarted with all containers of the pod") for c in state.running()
        ]
        return todo
    for container in spec.get("ephemeralContainers") or ():
        if state.latest(container["name"]) is None:
            todo.start_ephemeral.append(container)
    initialized = _init_actions(pod, state, probe, todo, inits)
    if todo.kill_pod or not initialized:
        return todo
    kept = 0
    for container in spec["containers"]:
        status = state.latest(container["name"])
        if status is None or status.state != RUNNING:
            if should_restart(pod, container, status):
                todo.start.append(container)
                if status is not None and status.state == UNKNOWN:
                    todo.kill.append(Kill(status, f"Container is in {status.state!r} state, try killing it before restarting"))  # fmt: skip
            continue
        kill = _why_kill(container, status, probe)
        if kill is None and resized(pod, container, status):
            kill = Kill(status, f"Container {container['name']} resize requires restart")
        if kill is None:
            kept += 1
            continue
        if kill.reason == "" or restarts_after(pod, container, 1):
            kill.message += ", will be restarted"
            todo.start.append(container)
        todo.kill.append(kill)
    if not kept and not todo.start:
        todo.kill_pod = True
        # Sidecars must not keep a finished pod alive.
        todo.start_init = []
    return todo


def _resetting(pod: Pod, state: PodState) -> Container | None:
    """The container that has ended so that all of the pod must start anew (KEP-5532)."""
    if pod["metadata"].get("deletionTimestamp"):
        return None
    for container in (*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]):
        known = state.latest(container["name"])
        if known is not None and known.state == EXITED and _rule(container, known.exit_code) == RESTART_ALL:
            return known
    return None


def _from_scratch(pod: Pod, state: PodState, todo: Actions, inits: list[dict[str, Any]]) -> Actions:
    if not restarts_on_failure(pod) and todo.attempt != 0 and state.containers:
        # A pod that never restarts has had its chance.
        todo.create_sandbox = False
        return todo
    start = [c for c in pod["spec"]["containers"] if not _finished(pod, c, state)]
    if not start:
        started = any_regular_started(pod, state)
        if started or not inits:
            todo.create_sandbox = False
            return todo
    if inits:
        todo.start_init = [inits[0]]
        return todo
    todo.start = start
    return todo


def _finished(pod: Pod, container: Mapping[str, Any], state: PodState) -> bool:
    if restart_policy(pod, container) != "OnFailure":
        return False
    status = state.latest(container["name"])
    return status is not None and status.state == EXITED and status.exit_code == 0


def _why_kill(container: Mapping[str, Any], status: Container, probe: ProbeResult) -> Kill | None:
    name = container["name"]
    if status.hash and status.hash != container_hash(container):
        return Kill(status, f"Container {name} definition changed")
    if probe("liveness", status.id) is False:
        return Kill(status, f"Container {name} failed liveness probe", "LivenessProbe")
    if probe("startup", status.id) is False:
        return Kill(status, f"Container {name} failed startup probe", "StartupProbe")
    return None


def _init_actions(pod: Pod, state: PodState, probe: ProbeResult, todo: Actions, inits: list[dict[str, Any]]) -> bool:
    """Fill in start_init, kill and kill_pod; True when ordinary containers may start."""
    if not inits:
        return True
    initialized = any_regular_started(pod, state)
    statuses = [state.latest(c["name"]) for c in inits]
    if initialized:
        for container, status in zip(inits, statuses, strict=True):
            if is_sidecar(container):
                _keep_sidecar(pod, container, status, probe, todo)
        return True
    place = max((i for i, s in enumerate(statuses) if s is not None), default=-1)
    if place < 0:
        todo.start_init.append(inits[0])
        return False
    for container, status in zip(inits[:place], statuses, strict=False):
        if is_sidecar(container):
            _keep_sidecar(pod, container, status, probe, todo)
    container, status = inits[place], statuses[place]
    assert status is not None
    following = inits[place + 1] if place + 1 < len(inits) else None
    if is_sidecar(container):
        restarting = _keep_sidecar(pod, container, status, probe, todo)
        if restarting or status.state != RUNNING:
            return False
        if container.get("startupProbe") and probe("startup", status.id) is not True:
            return False
    elif status.state == RUNNING:
        return False
    elif status.state in (CREATED, UNKNOWN):
        # One that was made but not started by a kubelet that died, or of which the runtime has lost sight.
        if status.state == UNKNOWN:
            todo.kill.append(Kill(status, "Init container is in unknown state, try killing it before restarting"))
        todo.start_init.append(container)
        return False
    elif status.exit_code != 0:
        if container.get("restartPolicyRules") or container.get("restartPolicy"):
            again = restarts_after(pod, container, status.exit_code)
        else:
            again = restarts_on_failure(pod)
        if again:
            todo.start_init.append(container)
        else:
            todo.kill_pod = True
            todo.start_init = []
        return False
    if following is None:
        return True
    todo.start_init.append(following)
    return False


def _keep_sidecar(
    pod: Pod, container: dict[str, Any], status: Container | None, probe: ProbeResult, todo: Actions
) -> bool:
    """Start a sidecar that does not run, replace one that fails its probes; True when something is to be done."""
    if status is None or status.state != RUNNING:
        if pod["metadata"].get("deletionTimestamp"):
            return False
        if status is not None and status.state == UNKNOWN:
            todo.kill.append(Kill(status, "Container is in unknown state, try killing it before restarting"))
        todo.start_init.append(container)
        return True
    kill = _why_kill(container, status, probe)
    if kill is None:
        return False
    kill.message += ", will be restarted"
    todo.kill.append(kill)
    todo.start_init.append(container)
    return True
