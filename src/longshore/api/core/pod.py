"""Pod, PodTemplate and ReplicationController: defaults, strategy and columns."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from longshore.api import printing, times
from longshore.api.core import pod_update, pod_validation, pod_warnings
from longshore.api.core.podspec import (
    default_host_ports,
    default_pod_spec,
    default_requests,
    default_template,
)
from longshore.api.core.qos import qos_class
from longshore.api.strategy import Object, Strategy, age, age_of
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.quantities import not_negative


class Pod(Strategy):
    """Containers that run together."""

    generation = True

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        default_requests(spec)
        default_pod_spec(spec)
        spec.setdefault("enableServiceLinks", True)
        if spec.get("hostNetwork"):
            default_host_ports(spec)

    def prepare_create(self, obj: Object) -> None:
        spec = obj["spec"]
        drop_disabled(spec)
        if spec.get("terminationGracePeriodSeconds", 0) < 0:
            spec["terminationGracePeriodSeconds"] = 1
        status: Object = {"phase": "Pending", "qosClass": qos_class(spec)}
        if spec.get("schedulingGates"):
            status["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                    "lastProbeTime": None,
                    "lastTransitionTime": times.now(),
                }
            ]
        obj["status"] = status
        match_label_keys(spec, obj["metadata"].get("labels") or {})

    def prepare_update(self, new: Object, old: Object) -> None:
        drop_disabled(new["spec"])

    def prepare_status(self, new: Object, old: Object) -> None:
        if not new["metadata"].get("deletionTimestamp"):
            new["metadata"].pop("deletionTimestamp", None)
        if "ownerReferences" in old["metadata"]:
            new["metadata"]["ownerReferences"] = old["metadata"]["ownerReferences"]
        else:
            new["metadata"].pop("ownerReferences", None)
        status, before = new["status"], old.get("status") or {}
        for key in ("qosClass", "resize"):
            if key in before and not status.get(key):
                status[key] = before[key]
        # Times of gated scheduling and of readiness stay with their condition.
        status.setdefault("qosClass", qos_class(new["spec"]))

    def prepare_subresource(self, new: Object, old: Object, subresource: str) -> None:
        if subresource == "ephemeralcontainers":
            added = new["spec"].get("ephemeralContainers")
            new["spec"] = {**old["spec"]}
            if added:
                new["spec"]["ephemeralContainers"] = added
            new["metadata"] = (
                {
                    **old["metadata"],
                    "managedFields": new["metadata"].get("managedFields", old["metadata"].get("managedFields")),
                }
                if "managedFields" in new["metadata"] or "managedFields" in old["metadata"]
                else {**old["metadata"]}
            )
            new["status"] = old["status"]
        elif subresource == "resize":
            keep_resources_only(new, old)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        pod_validation.validate_pod(obj, errors)

    def validate_meta_update(self, new: Object, old: Object, errors: Errors, namespaced: bool) -> None:
        super().validate_meta_update(new, old, errors, namespaced)
        metadata.common(errors, new["metadata"], "metadata")

    def validate_update(self, new: Object, old: Object, errors: Errors) -> None:
        pod_update.validate_update(new, old, errors)

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        pod_update.validate_status(new, old, errors)

    def validate_subresource(self, new: Object, old: Object, subresource: str, errors: Errors) -> None:
        if subresource == "ephemeralcontainers":
            pod_update.validate_ephemeral(new, old, errors)
        elif subresource == "resize":
            pod_update.validate_resize(new, old, errors)

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        found = pod_warnings.name_warnings(obj, "the Pod's hostname") if old is None else []
        return found + pod_warnings.pod_warnings(obj["spec"], obj["metadata"], "spec", old)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return pod_row(obj, now)

    def selectable(self, obj: Object) -> dict[str, str]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        ips = status.get("podIPs") or ()
        return {
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.restartPolicy": spec.get("restartPolicy", ""),
            "spec.schedulerName": spec.get("schedulerName", ""),
            "spec.serviceAccountName": spec.get("serviceAccountName", ""),
            "spec.hostNetwork": "true" if spec.get("hostNetwork") else "false",
            "status.phase": status.get("phase", ""),
            "status.podIP": ips[0].get("ip", "") if ips else status.get("podIP", ""),
            "status.nominatedNodeName": status.get("nominatedNodeName", ""),
        }


def keep_resources_only(new: Object, old: Object) -> None:
    """A resize takes the containers' resources and nothing else from what was sent."""
    sent = new["spec"]
    spec = {**old["spec"]}
    for kind in ("containers", "initContainers"):
        given = {c.get("name"): c for c in sent.get(kind) or ()}
        if len(given) != len(spec.get(kind) or ()):
            # Left for validation to refuse.
            spec[kind] = sent.get(kind) or []
            continue
        if spec.get(kind):
            spec[kind] = [_resized(c, given.get(c.get("name"))) for c in spec[kind]]
    new["spec"] = spec
    managed, version = new["metadata"].get("managedFields"), new["metadata"].get("resourceVersion")
    new["metadata"] = {**old["metadata"]}
    if managed is not None:
        new["metadata"]["managedFields"] = managed
    if version is not None:
        new["metadata"]["resourceVersion"] = version
    new["status"] = old["status"]


def _resized(container: Object, sent: Object | None) -> Object:
    if sent is None:
        return container
    out = {**container, "resources": sent.get("resources") or {}}
    if "resizePolicy" in sent:
        out["resizePolicy"] = sent["resizePolicy"]
    return out


def drop_disabled(spec: Object) -> None:
    """Take away fields of features that are off by default."""
    for volume in spec.get("volumes") or ():
        for part in (volume.get("projected") or {}).get("sources") or ():
            part.pop("clusterTrustBundle", None)


def match_label_keys(spec: Object, labels: dict[str, str]) -> None:
    """matchLabelKeys and mismatchLabelKeys become expressions over the pod's own labels, in affinity and spread terms."""
    affinity = spec.get("affinity") or {}
    terms: list[Object] = []
    for kind in ("podAffinity", "podAntiAffinity"):
        part = affinity.get(kind) or {}
        terms.extend(part.get("requiredDuringSchedulingIgnoredDuringExecution") or ())
        terms.extend(
            t.get("podAffinityTerm") or {} for t in part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        )
    for term in [*terms, *(spec.get("topologySpreadConstraints") or ())]:
        selector = term.get("labelSelector")
        if selector is None:
            continue
        for field, operator in (("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")):
            for key in term.get(field) or ():
                if key in labels:
                    selector.setdefault("matchExpressions", []).append(
                        {"key": key, "operator": operator, "values": [labels[key]]}
                    )


def pod_row(obj: Object, now: datetime) -> list[Any]:
    """The cells of a pod (printPod)."""
    spec, status, meta = obj["spec"], obj.get("status") or {}, obj["metadata"]
    restarts = 0
    restartable_restarts = 0
    total = len(spec.get("containers") or ())
    ready = 0
    last_restart: str = ""
    last_restartable: str = ""
    phase = status.get("phase", "")
    reason = status.get("reason") or phase
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "SchedulingGated":
            reason = "SchedulingGated"
    init = {c["name"]: c for c in spec.get("initContainers") or ()}

    def sidecar(container: Object | None) -> bool:
        return container is not None and container.get("restartPolicy") == "Always"

    total += sum(sidecar(c) for c in init.values())
    initializing = False
    for index, container in enumerate(status.get("initContainerStatuses") or ()):
        restarts += container.get("restartCount", 0)
        finished = ((container.get("lastState") or {}).get("terminated") or {}).get("finishedAt") or ""
        last_restart = max(last_restart, finished)
        state = container.get("state") or {}
        if sidecar(init.get(container.get("name", ""))):
            restartable_restarts += container.get("restartCount", 0)
            last_restartable = max(last_restartable, finished)
        terminated, waiting = state.get("terminated"), state.get("waiting")
        if terminated is not None and terminated.get("exitCode", 0) == 0:
            continue
        if sidecar(init.get(container.get("name", ""))) and container.get("started"):
            ready += bool(container.get("ready"))
            continue
        if terminated is not None:
            if not terminated.get("reason"):
                signal = terminated.get("signal", 0)
                reason = f"Init:Signal:{signal}" if signal else f"Init:ExitCode:{terminated.get('exitCode', 0)}"
            else:
                reason = "Init:" + terminated["reason"]
        elif waiting is not None and waiting.get("reason") and waiting["reason"] != "PodInitializing":
            reason = "Init:" + waiting["reason"]
        else:
            reason = f"Init:{index}/{len(init)}"
        initializing = True
        break
    initialized = any(
        c.get("type") == "Initialized" and c.get("status") == "True" for c in status.get("conditions") or ()
    )
    if not initializing or initialized:
        restarts, last_restart = restartable_restarts, last_restartable
        running = False
        for container in reversed(status.get("containerStatuses") or ()):
            restarts += container.get("restartCount", 0)
            last_restart = max(
                last_restart, ((container.get("lastState") or {}).get("terminated") or {}).get("finishedAt") or ""
            )
            state = container.get("state") or {}
            terminated, waiting = state.get("terminated"), state.get("waiting")
            if waiting is not None and waiting.get("reason"):
                reason = waiting["reason"]
            elif terminated is not None and terminated.get("reason"):
                reason = terminated["reason"]
            elif terminated is not None:
                signal = terminated.get("signal", 0)
                reason = f"Signal:{signal}" if signal else f"ExitCode:{terminated.get('exitCode', 0)}"
            elif container.get("ready") and state.get("running") is not None:
                running = True
                ready += 1
        if reason == "Completed" and running:
            ready_condition = any(
                c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()
            )
            reason = "Running" if ready_condition else "NotReady"
    if meta.get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            reason = "Unknown"
        elif phase not in ("Failed", "Succeeded"):
            reason = "Terminating"
    shown = str(restarts)
    if restarts and last_restart:
        shown = f"{restarts} ({age(last_restart, now)} ago)"
    ips = status.get("podIPs") or ()
    gates = spec.get("readinessGates") or ()
    gate_text = "<none>"
    if gates:
        true = {c.get("type") for c in status.get("conditions") or () if c.get("status") == "True"}
        gate_text = f"{sum(g.get('conditionType') in true for g in gates)}/{len(gates)}"
    return [
        meta["name"],
        f"{ready}/{total}",
        reason,
        shown,
        age_of(obj, now),
        (ips[0].get("ip") if ips else status.get("podIP")) or "<none>",
        spec.get("nodeName") or "<none>",
        status.get("nominatedNodeName") or "<none>",
        gate_text,
    ]


class PodTemplate(Strategy):
    """A template kept by itself."""

    generation = True

    def default(self, obj: Object) -> None:
        default_template(obj["template"])

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        pod_validation.validate_template(obj["template"], errors, "template")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        names, images = printing.containers(obj["template"]["spec"])
        return [obj["metadata"]["name"], names, images, printing.labels(obj["template"]["metadata"].get("labels"))]


class ReplicationController(Strategy):
    """The first of the workloads."""

    generation = True

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        template = spec.get("template")
        if template is not None:
            default_template(template)
            labels = template["metadata"].get("labels")
            if labels:
                if not spec.get("selector"):
                    spec["selector"] = dict(labels)
                if not obj["metadata"].get("labels"):
                    obj["metadata"]["labels"] = dict(labels)
        spec.setdefault("replicas", 1)

    def validate(self, obj: Object, errors: Errors, old: Object | None = None) -> None:
        spec = obj["spec"]
        not_negative(errors, spec.get("minReadySeconds"), "spec.minReadySeconds")
        selector = spec.get("selector") or {}
        if not selector:
            errors.required("spec.selector")
        not_negative(errors, spec.get("replicas"), "spec.replicas")
        template = spec.get("template")
        if template is None:
            errors.required("spec.template")
            return
        labels = template["metadata"].get("labels") or {}
        if selector and any(labels.get(k) != v for k, v in selector.items()):
            errors.invalid(
                "spec.template.metadata.labels", labels or None, "`selector` does not match template `labels`"
            )
        pod_validation.validate_template(template, errors, "spec.template")
        replicas = spec.get("replicas", 0)
        if replicas > 1:
            pod_validation.validate_rwo_disks(template["spec"], errors, "spec.template.spec.volumes")
        pod_validation.always_restart(template["spec"], errors, "spec.template.spec")

    def validate_status(self, new: Object, old: Object, errors: Errors) -> None:
        status_counts(new["status"], errors, "status")

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        template = obj["spec"].get("template")
        if old is not None and old["metadata"].get("generation") == obj["metadata"].get("generation"):
            return []
        found = pod_warnings.name_warnings(obj) if old is None else []
        if template:
            found += pod_warnings.pod_warnings(template["spec"], template["metadata"], "spec.template.spec", None)
        return found

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec, status = obj["spec"], obj["status"]
        names, images = printing.containers((spec.get("template") or {}).get("spec") or {})
        return [
            obj["metadata"]["name"],
            spec.get("replicas", 0),
            status.get("replicas", 0),
            status.get("readyReplicas", 0),
            age_of(obj, now),
            names,
            images,
            printing.labels(spec.get("selector")),
        ]

    def selectable(self, obj: Object) -> dict[str, str]:
        return {"status.replicas": str(obj["status"].get("replicas", 0))}


def status_counts(status: Object, errors: Errors, path: str) -> None:
    """The replica counts of a status: none negative, none above replicas."""
    for key in ("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"):
        not_negative(errors, status.get(key, 0), f"{path}.{key}")
    total = status.get("replicas", 0)
    for key in ("fullyLabeledReplicas", "readyReplicas", "availableReplicas"):
        if status.get(key, 0) > total:
            errors.invalid(f"{path}.{key}", status[key], "cannot be greater than status.replicas")
    if status.get("availableReplicas", 0) > status.get("readyReplicas", 0):
        errors.invalid(f"{path}.availableReplicas", status["availableReplicas"], "cannot be greater than readyReplicas")


__all__ = ["Pod", "PodTemplate", "ReplicationController", "status_counts"]
