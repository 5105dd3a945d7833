"""The PodStatus that the API shows, made from the spec, what the runtime has, and the last status told.

Sources: kubernetes pkg/kubelet/kubelet_pods.go (generateAPIPodStatus, getPhase, convertToAPIContainerStatuses),
pkg/kubelet/status/generate.go (conditions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from longshore.machinery import quantity
from longshore.node.kubelet import resources
from longshore.node.kubelet.actions import any_regular_started, restarts_after
from longshore.node.kubelet.resources import is_sidecar
from longshore.node.kubelet.runtime import CREATED, EXITED, RUNNING, Container, PodState

Pod = dict[str, Any]
OWNED = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
# Conditions that are ours as well, and that go when they no longer hold.
OPTIONAL = ("PodResizePending", "PodResizeInProgress")
#: container name -> (waiting reason, message) of the last failed start
Reasons = Mapping[str, tuple[str, str]]


def timestamp(nanoseconds: int | None = None) -> str:
    """RFC 3339 in UTC with whole seconds, as metav1.Time; now when None."""
    when = datetime.now(UTC) if nanoseconds is None else datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _terminated(status: Container, runtime: str) -> dict[str, Any]:
    reason = status.reason or ("Completed" if status.exit_code == 0 else "Error")
    result: dict[str, Any] = {
        "exitCode": status.exit_code,
        "reason": reason,
        "startedAt": timestamp(status.started_at) if status.started_at else None,
        "finishedAt": timestamp(status.finished_at) if status.finished_at else None,
        "containerID": f"{runtime}://{status.id}",
    }
    if status.message:
        result["message"] = status.message
    return result


def container_status(
    container: Mapping[str, Any], status: Container, runtime: str, *, message: Callable[[Container], str]
) -> dict[str, Any]:
    """One ContainerStatus from the runtime's. message: the termination message of an ended container."""
    result: dict[str, Any] = {
        "name": container["name"],
        "restartCount": status.restart_count,
        "image": status.image or container.get("image", ""),
        "imageID": status.image_ref,
        "containerID": f"{runtime}://{status.id}",
        "ready": False,
        "started": False,
        "lastState": {},
    }
    if status.state == RUNNING:
        result["state"] = {"running": {"startedAt": timestamp(status.started_at)}}
    elif status.state == EXITED or (status.state == CREATED and status.exit_code):
        status.message = message(status)
        result["state"] = {"terminated": _terminated(status, runtime)}
    else:
        result["state"] = {"waiting": {"reason": "ContainerCreating"}}
    return result


def container_statuses(
    pod: Pod,
    kind: str,
    state: PodState,
    *,
    runtime: str,
    reasons: Reasons,
    previous: Iterable[Mapping[str, Any]],
    message: Callable[[Container], str],
) -> list[dict[str, Any]]:
    """The statuses of all containers of one kind ("initContainers", "containers", "ephemeralContainers")."""
    containers = pod["spec"].get(kind) or []
    is_init = kind == "initContainers"
    has_init = bool(pod["spec"].get("initContainers"))
    before = {s["name"]: s for s in previous}
    waiting = "PodInitializing" if has_init and kind != "ephemeralContainers" else "ContainerCreating"
    found: list[dict[str, Any]] = []
    for container in containers:
        name = container["name"]
        known = [c for c in state.containers if c.name == name]
        if known:
            status = container_status(container, known[0], runtime, message=message)
            if len(known) > 1 and known[1].state == EXITED:
                known[1].message = message(known[1])
                status["lastState"] = {"terminated": _terminated(known[1], runtime)}
            _add_details(container, known[0], status)
        else:
            status = {
                "name": name, "restartCount": 0, "image": container.get("image", ""), "imageID": "", "ready": False,
                "started": False, "state": {"waiting": {"reason": waiting}}, "lastState": {},
            }  # fmt: skip
            old = before.get(name)
            if old is not None:
                _carry_over(pod, container, old, status, is_init)
        _explain_wait(pod, container, status, known[0] if known else None, reasons, is_init)
        found.append(status)
    return found


def _add_details(container: Mapping[str, Any], known: Container, status: dict[str, Any]) -> None:
    want = container.get("resources") or {}
    if want.get("requests"):
        status["allocatedResources"] = dict(want["requests"])
    if known.state == RUNNING or want:
        status["resources"] = _actual_resources(want, known)
    user = known.user.linux if known.user is not None and known.user.HasField("linux") else None
    if user is not None:
        linux: dict[str, Any] = {"uid": user.uid, "gid": user.gid}
        if user.supplemental_groups:
            linux["supplementalGroups"] = list(user.supplemental_groups)
        status["user"] = {"linux": linux}
    mounts = [
        {k: v for k, v in (("name", m["name"]), ("mountPath", m["mountPath"]),
                           ("readOnly", m.get("readOnly") or None),
                           ("recursiveReadOnly", "Disabled" if m.get("readOnly") else None)) if v is not None}
        for m in container.get("volumeMounts") or ()
    ]  # fmt: skip
    for mount in mounts:
        found = next((m for m in known.mounts if m.container_path == mount["mountPath"] and m.image.image_ref), None)
        if found is not None:
            mount["volumeStatus"] = {"image": {"imageRef": found.image.image_ref}}
    if mounts:
        status["volumeMounts"] = mounts


def _actual_resources(want: Mapping[str, Any], known: Container) -> dict[str, Any]:
    """What is in force: the asked amounts, with cpu and memory as the runtime reports them where they differ."""
    result: dict[str, Any] = {k: dict(want[k]) for k in ("limits", "requests") if want.get(k)}
    linux = known.resources.linux if known.resources is not None and known.resources.HasField("linux") else None
    if linux is None or known.state != RUNNING:
        return result
    limits, requests = result.get("limits"), result.get("requests")
    if limits and "memory" in limits and linux.memory_limit_in_bytes > 0:
        if resources.amount(limits["memory"]) != linux.memory_limit_in_bytes:
            limits["memory"] = str(quantity.from_number(linux.memory_limit_in_bytes, quantity.BINARY))
    if limits and "cpu" in limits and linux.cpu_quota > 0 and linux.cpu_period:
        milli = linux.cpu_quota * 1000 // linux.cpu_period
        if max(10, resources.milli(limits["cpu"])) != max(10, milli):
            limits["cpu"] = f"{milli}m"
    if requests and "cpu" in requests and linux.cpu_shares > 0:
        if resources.shares(resources.milli(requests["cpu"])) != linux.cpu_shares:
            requests["cpu"] = quantity.canonical(f"{linux.cpu_shares * 1000 // resources.SHARES_PER_CPU}m")
    return result


def _carry_over(
    pod: Pod, container: Mapping[str, Any], old: Mapping[str, Any], status: dict[str, Any], is_init: bool
) -> None:
    """The runtime has lost a container that the API server knew: keep what is known of it."""
    state = old.get("state") or {}
    if state.get("terminated"):
        status.update({k: old[k] for k in ("restartCount", "imageID", "containerID", "image") if k in old})
        status["state"] = {"terminated": state["terminated"]}
        if old.get("lastState"):
            status["lastState"] = old["lastState"]
        if is_init and state["terminated"].get("exitCode") == 0:
            status["ready"] = True
        if not is_init and restarts_after(pod, container, state["terminated"].get("exitCode", 0)):
            status["lastState"] = {"terminated": state["terminated"]}
            status["state"] = {"waiting": {"reason": "ContainerCreating"}}
    elif state.get("running"):
        gone = {
            "reason": "ContainerStatusUnknown", "exitCode": 137, "startedAt": None, "finishedAt": None,
            "message": "The container could not be located when the pod was terminated",
        }  # fmt: skip
        status["restartCount"] = old.get("restartCount", 0)
        if pod["metadata"].get("deletionTimestamp"):
            status["state"] = {"terminated": gone}
        else:
            gone["message"] = "The container could not be located when the pod was deleted.  The container used to be Running"  # fmt: skip
            status["lastState"] = {"terminated": gone}
            status["restartCount"] = old.get("restartCount", 0) + 1
    else:
        status["restartCount"] = old.get("restartCount", 0)
        if old.get("lastState"):
            status["lastState"] = old["lastState"]


def _explain_wait(
    pod: Pod,
    container: Mapping[str, Any],
    status: dict[str, Any],
    known: Container | None,
    reasons: Reasons,
    is_init: bool,
) -> None:
    """A container that could not be started shows why, and what it ended with before moves to lastState."""
    reason = reasons.get(container["name"])
    if known is not None and known.state == RUNNING:
        return
    if known is not None and known.state == EXITED:
        if is_init and not is_sidecar(container) and known.exit_code == 0:
            status["ready"] = True
            return
        if pod["metadata"].get("deletionTimestamp") or not restarts_after(pod, container, known.exit_code):
            if not (is_init and is_sidecar(container)) or pod["metadata"].get("deletionTimestamp"):
                return
    if reason is None:
        return
    if status["state"].get("terminated"):
        status["lastState"] = {"terminated": status["state"]["terminated"]}
    status["state"] = {"waiting": {"reason": reason[0], "message": reason[1]}}
    if not reason[1]:
        del status["state"]["waiting"]["message"]


def phase(pod: Pod, statuses: Iterable[Mapping[str, Any]], terminal: bool) -> str:
    """The pod's phase. terminal: its worker has ended all its containers for good."""
    spec = pod["spec"]
    by_name = {s["name"]: s for s in statuses}
    pending_init = failed_init = 0
    started_regular = any(
        (by_name.get(c["name"]) or {}).get("state", {}).keys() & {"running", "terminated"}
        or (by_name.get(c["name"]) or {}).get("lastState", {}).get("terminated")
        for c in spec["containers"]
    )
    for container in spec.get("initContainers") or ():
        status = by_name.get(container["name"])
        state = (status or {}).get("state") or {}
        if is_sidecar(container):
            if status is None or (not status.get("started") and not started_regular):
                pending_init += 1
            continue
        if status is None:
            pending_init += 1
        elif "terminated" in state:
            failed_init += state["terminated"]["exitCode"] != 0
        elif "waiting" in state:
            last = (status.get("lastState") or {}).get("terminated")
            if last:
                failed_init += last["exitCode"] != 0
            else:
                pending_init += 1
        else:
            pending_init += 1
    unknown = running = waiting = stopped = succeeded = 0
    restartable = 0
    for container in spec["containers"]:
        status = by_name.get(container["name"])
        state = (status or {}).get("state") or {}
        if status is None:
            unknown += 1
        elif "running" in state:
            running += 1
        elif "terminated" in state:
            stopped += 1
            code = state["terminated"]["exitCode"]
            succeeded += code == 0
            restartable += restarts_after(pod, container, code)
        elif "waiting" in state:
            if (status.get("lastState") or {}).get("terminated"):
                stopped += 1
                restartable += 1
            else:
                waiting += 1
        else:
            unknown += 1
    if failed_init and spec.get("restartPolicy") == "Never":
        return "Failed"
    if pending_init and not started_regular:
        return "Pending"
    if failed_init and not started_regular:
        return "Pending"
    if waiting:
        return "Pending"
    if running and not unknown:
        return "Running"
    if running == 0 and stopped and not unknown:
        if terminal:
            return "Succeeded" if stopped == succeeded else "Failed"
        if restartable:
            return "Running"
        return "Succeeded" if stopped == succeeded else "Failed"
    return "Pending"


def condition(kind: str, status: bool, reason: str = "", message: str = "") -> dict[str, Any]:
    """One condition without its times."""
    result: dict[str, Any] = {"type": kind, "status": "True" if status else "False"}
    if reason:
        result["reason"] = reason
    if message:
        result["message"] = message
    return result


def initialized_condition(pod: Pod, statuses: Iterable[Mapping[str, Any]], phase_: str) -> dict[str, Any]:
    """Initialized: every init container is done, every sidecar started."""
    by_name = {s["name"]: s for s in statuses}
    unknown: list[str] = []
    incomplete: list[str] = []
    for container in pod["spec"].get("initContainers") or ():
        status = by_name.get(container["name"])
        if status is None:
            unknown.append(container["name"])
        elif is_sidecar(container):
            if not status.get("started"):
                incomplete.append(container["name"])
        elif not status.get("ready"):
            incomplete.append(container["name"])
    if phase_ == "Succeeded" and not unknown:
        return condition("Initialized", True, "PodCompleted")
    if any(
        "running" in (by_name.get(c["name"]) or {}).get("state", {})
        or (by_name.get(c["name"]) or {}).get("lastState", {}).get("terminated")
        or "terminated" in (by_name.get(c["name"]) or {}).get("state", {})
        for c in pod["spec"]["containers"]
    ):
        return condition("Initialized", True)
    problems = []
    if unknown:
        problems.append(f"containers with unknown status: [{' '.join(unknown)}]")
    if incomplete:
        problems.append(f"containers with incomplete status: [{' '.join(incomplete)}]")
    if problems:
        return condition("Initialized", False, "ContainersNotInitialized", ", ".join(problems))
    return condition("Initialized", True)


def ready_conditions(
    pod: Pod, statuses: Iterable[Mapping[str, Any]], phase_: str, others: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Ready and ContainersReady. others: conditions set by others, for readiness gates."""
    by_name = {s["name"]: s for s in statuses}
    if phase_ in ("Succeeded", "Failed"):
        reason = "PodCompleted" if phase_ == "Succeeded" else "PodFailed"
        return [condition("Ready", False, reason), condition("ContainersReady", False, reason)]
    names = [c["name"] for c in pod["spec"].get("initContainers") or () if is_sidecar(c)]
    names += [c["name"] for c in pod["spec"]["containers"]]
    unknown = [n for n in names if n not in by_name]
    unready = [n for n in names if n in by_name and not by_name[n].get("ready")]
    problems = []
    if unknown:
        problems.append(f"containers with unknown status: [{' '.join(unknown)}]")
    if unready:
        problems.append(f"containers with unready status: [{' '.join(unready)}]")
    containers = (
        condition("ContainersReady", False, "ContainersNotReady", ", ".join(problems))
        if problems
        else condition("ContainersReady", True)
    )
    if problems:
        return [{**containers, "type": "Ready"}, containers]
    known = {c["type"]: c for c in others}
    gates = []
    for gate in pod["spec"].get("readinessGates") or ():
        kind = gate["conditionType"]
        if kind not in known:
            gates.append(f'corresponding condition of pod readiness gate "{kind}" does not exist.')
        elif known[kind].get("status") != "True":
            gates.append(
                f'the status of pod readiness gate "{kind}" is not "True", but {known[kind].get("status", "")}'
            )
    if gates:
        return [condition("Ready", False, "ReadinessGatesNotReady", ", ".join(gates)), containers]
    return [condition("Ready", True), containers]


def merge_conditions(
    fresh: Iterable[dict[str, Any]], before: Iterable[Mapping[str, Any]], generation: int | None
) -> list[dict[str, Any]]:
    """Conditions with their transition times: kept where the status did not change; others' conditions stay."""
    old = {c["type"]: c for c in before}
    result: list[dict[str, Any]] = []
    seen: set[str] = set()
    for condition in fresh:
        last = old.get(condition["type"])
        when = timestamp()
        if last is not None and last.get("status") == condition["status"]:
            when = last.get("lastTransitionTime") or when
        entry = {"lastProbeTime": None, "lastTransitionTime": when, **condition}
        if generation:
            entry["observedGeneration"] = generation
        seen.add(condition["type"])
        result.append(entry)
    result += [dict(c) for kind, c in old.items() if kind not in seen]
    return result


def initialized(pod: Pod, state: PodState) -> bool:
    """Whether the pod's init phase is over."""
    return any_regular_started(pod, state)
