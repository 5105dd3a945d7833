"""Checks of pods and pod templates (upstream ValidatePodSpec and its callers)."""

from __future__ import annotations

from typing import Any

from longshore.api.core import container_validation as containers
from longshore.api.core import scheduling_validation as scheduling
from longshore.api.core.security_validation import pod_security
from longshore.api.core.templates import Known, digest
from longshore.api.core.volume_validation import claim_name, pod_volumes
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors
from longshore.api.validation.names import dns1123_label, dns1123_subdomain, in_range, ip, qualified_name

Object = dict[str, Any]
_GOOD = Known()
_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")


def validate_spec(spec: Object, errors: Errors, path: str, *, update: bool = False, pod: str = "") -> None:
    """A pod's spec; pod: the pod's name, of which the names of its ephemeral claims are made."""
    volumes = pod_volumes(errors, spec.get("volumes") or [], f"{path}.volumes", pod)
    claims = (
        scheduling.resource_claims(errors, spec["resourceClaims"], f"{path}.resourceClaims")
        if spec.get("resourceClaims")
        else []
    )
    containers.containers(errors, spec, volumes, claims, path)
    if spec.get("initContainers"):
        containers.init_containers(errors, spec, volumes, claims, path)
    if spec.get("ephemeralContainers"):
        ephemeral_containers(errors, spec, volumes, claims, path)
    if spec.get("resources"):
        _pod_resources(errors, spec, f"{path}.resources")
    if spec.get("hostNetwork"):
        for kind in ("containers", "initContainers"):
            for index, container in enumerate(spec.get(kind) or ()):
                for at, port in enumerate(container.get("ports") or ()):
                    if port.get("hostPort", 0) != port.get("containerPort", 0):
                        errors.invalid(
                            f"{path}.{kind}[{index}].ports[{at}].hostPort",
                            port.get("hostPort", 0),
                            "must match `containerPort` when `hostNetwork` is true",
                        )
    restart = spec.get("restartPolicy", "")
    if not restart:
        errors.required(f"{path}.restartPolicy")
    elif restart not in ("Always", "OnFailure", "Never"):
        errors.unsupported(f"{path}.restartPolicy", restart, ("Always", "OnFailure", "Never"))
    policy = spec.get("dnsPolicy", "")
    if not policy:
        errors.required(f"{path}.dnsPolicy")
    elif policy not in _DNS_POLICIES:
        errors.unsupported(f"{path}.dnsPolicy", policy, _DNS_POLICIES)
    if spec.get("nodeSelector"):
        metadata.labels(errors, spec["nodeSelector"], f"{path}.nodeSelector")
    pod_security(errors, spec, path)
    scheduling.affinity(errors, spec.get("affinity"), f"{path}.affinity", strict_values=not update)
    _dns_config(errors, spec, f"{path}.dnsConfig")
    for index, gate in enumerate(spec.get("readinessGates") or ()):
        name = gate.get("conditionType", "")
        for message in qualified_name(name):
            errors.invalid(f"{path}.readinessGates[{index}].conditionType", name, message)
    if spec.get("schedulingGates"):
        scheduling.scheduling_gates(errors, spec["schedulingGates"], f"{path}.schedulingGates")
    if spec.get("topologySpreadConstraints"):
        scheduling.topology_spread(errors, spec["topologySpreadConstraints"], f"{path}.topologySpreadConstraints")
    if spec.get("hostUsers") is False:
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                errors.forbidden(f"{path}.{field}", "when `hostUsers` is false")
    _names(errors, spec, path)


def _names(errors: Errors, spec: Object, path: str) -> None:
    for field in ("serviceAccountName", "nodeName"):
        for message in dns1123_subdomain(spec[field]) if spec.get(field) else ():
            errors.invalid(f"{path}.{field}", spec[field], message)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2147483647:
        errors.invalid(f"{path}.activeDeadlineSeconds", deadline, in_range(1, 2147483647))
    for field in ("hostname", "subdomain"):
        for message in dns1123_label(spec[field]) if spec.get(field) else ():
            errors.invalid(f"{path}.{field}", spec[field], message)
    if spec.get("tolerations"):
        scheduling.tolerations(errors, spec["tolerations"], f"{path}.tolerations")
    for index, alias in enumerate(spec.get("hostAliases") or ()):
        for message in ip(alias.get("ip", "")):
            errors.invalid(f"{path}.hostAliases[{index}].ip", alias.get("ip", ""), message)
        for at, name in enumerate(alias.get("hostnames") or ()):
            for message in dns1123_subdomain(name):
                errors.invalid(f"{path}.hostAliases[{index}].hostnames[{at}]", name, message)
    for field in ("priorityClassName", "runtimeClassName"):
        for message in dns1123_subdomain(spec[field]) if spec.get(field) else ():
            errors.invalid(f"{path}.{field}", spec[field], message)
    preemption = spec.get("preemptionPolicy")
    if preemption is not None and preemption not in ("PreemptLowerPriority", "Never"):
        errors.unsupported(f"{path}.preemptionPolicy", preemption, ("PreemptLowerPriority", "Never"))
    if spec.get("overhead"):
        containers.resources(errors, {"limits": spec["overhead"]}, f"{path}.overhead", None)
    os = spec.get("os")
    if os is not None:
        _os(errors, spec, os.get("name", ""), f"{path}.os")


def _os(errors: Errors, spec: Object, name: str, path: str) -> None:
    if not name:
        errors.required(f"{path}.name")
        return
    if name not in ("linux", "windows"):
        errors.unsupported(path, name, ("linux", "windows"))
    base = path.rpartition(".")[0]
    security = spec.get("securityContext") or {}
    if name == "linux" and security.get("windowsOptions") is not None:
        errors.forbidden(f"{base}.securityContext.windowsOptions", "windows options cannot be set for a linux pod")
    if name == "windows":
        for field in (
            "seLinuxOptions",
            "seccompProfile",
            "fsGroup",
            "fsGroupChangePolicy",
            "sysctls",
            "runAsUser",
            "runAsGroup",
            "supplementalGroups",
        ):
            if security.get(field):
                errors.forbidden(f"{base}.securityContext.{field}", "cannot be set for a windows pod")
        for field in ("hostPID", "hostIPC", "shareProcessNamespace"):
            if spec.get(field):
                errors.forbidden(
                    f"{base}.securityContext.{field}" if field == "shareProcessNamespace" else f"{base}.{field}",
                    "cannot be set for a windows pod",
                )


def _pod_resources(errors: Errors, spec: Object, path: str) -> None:
    value = spec["resources"]
    for kind in ("limits", "requests"):
        for name in sorted(value.get(kind) or ()):
            if name not in ("cpu", "memory") and not name.startswith("hugepages-"):
                errors.unsupported(f"{path}.{kind}[{name}]", name, ("cpu", "memory"))
    containers.resources(errors, value, path, None)


def _dns_config(errors: Errors, spec: Object, path: str) -> None:
    value = spec.get("dnsConfig")
    if spec.get("dnsPolicy") == "None":
        if value is None:
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None")
            return
        if not value.get("nameservers"):
            errors.required(f"{path}.nameservers", "must provide at least one DNS nameserver when `dnsPolicy` is None")
            return
    if value is None:
        return
    servers, searches = value.get("nameservers") or [], value.get("searches") or []
    if len(servers) > 3:
        errors.invalid(f"{path}.nameservers", servers, "must not have more than 3 nameservers")
    for index, server in enumerate(servers):
        for message in ip(server):
            errors.invalid(f"{path}.nameservers[{index}]", server, message)
    if len(searches) > 32:
        errors.invalid(f"{path}.searches", searches, "must not have more than 32 search paths")
    if len(" ".join(searches)) > 2048:
        errors.invalid(
            f"{path}.searches",
            searches,
            "must not have more than 2048 characters (including spaces) in the search list",
        )
    for index, search in enumerate(searches):
        text = search.removesuffix(".")
        if search != ".":
            for message in scheduling.search_domain(text):
                errors.invalid(f"{path}.searches[{index}]", search, message)
    for index, option in enumerate(value.get("options") or ()):
        if not option.get("name"):
            errors.required(f"{path}.options[{index}]", "must not be empty")


# What an ephemeral container may not have.
_NOT_EPHEMERAL = (
    "ports",
    "resources",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
)
_GO = {
    "ports": "Ports",
    "resources": "Resources",
    "livenessProbe": "LivenessProbe",
    "readinessProbe": "ReadinessProbe",
    "startupProbe": "StartupProbe",
    "lifecycle": "Lifecycle",
}


def ephemeral_containers(
    errors: Errors, spec: Object, volumes: dict[str, Object], claims: list[str], path: str
) -> None:
    """Containers put into a running pod."""
    other = {c.get("name", "") for kind in ("containers", "initContainers") for c in spec.get(kind) or ()}
    targets = other | set()
    names: set[str] = set()
    for index, container in enumerate(spec["ephemeralContainers"]):
        here = f"{path}.ephemeralContainers[{index}]"
        containers.container(errors, container, volumes, claims, here, spec.get("hostUsers") is not False)
        name = container.get("name", "")
        if name in other or name in names:
            errors.duplicate(f"{here}.name", name)
        names.add(name)
        target = container.get("targetContainerName")
        if target and target not in targets:
            errors.not_found(f"{here}.targetContainerName", target)
        for field in _NOT_EPHEMERAL:
            if container.get(field):
                errors.forbidden(f"{here}.{field}", "cannot be set for an Ephemeral Container")
        for at, mount in enumerate(container.get("volumeMounts") or ()):
            for sub in ("subPath", "subPathExpr"):
                if mount.get(sub):
                    errors.forbidden(f"{here}.volumeMounts[{at}].{sub}", "cannot be set for an Ephemeral Container")


def validate_pod(obj: Object, errors: Errors) -> None:
    """A new pod, metadata excepted."""
    _annotations(obj, errors)
    spec = obj["spec"]
    known = digest(spec)
    name = obj["metadata"].get("name", "")
    if known in _GOOD and not _bad_claims(spec, name):
        return
    before = len(errors)
    validate_spec(spec, errors, "spec", pod=name)
    _only_pods(obj, errors)
    if spec.get("ephemeralContainers"):
        errors.forbidden("spec.ephemeralContainers", "cannot be set on create")
    if spec.get("schedulingGates") and spec.get("nodeName"):
        errors.forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared")
    if len(errors) == before:
        _GOOD.add(known)


def _bad_claims(spec: Object, name: str) -> Errors:
    """What is wrong with the names of ephemeral claims, which alone depend on the pod's name."""
    found = Errors()
    for volume in spec.get("volumes") or ():
        if "ephemeral" in volume:
            claim_name(found, volume["name"], "", name)
    return found


def _only_pods(obj: Object, errors: Errors) -> None:
    spec = obj["spec"]
    if not spec.get("serviceAccountName"):
        for index, volume in enumerate(spec.get("volumes") or ()):
            for at, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
                if source.get("serviceAccountToken") is not None:
                    errors.forbidden(
                        f"spec.volumes[{index}].projected.sources[{at}].serviceAccountToken",
                        "must not be specified when serviceAccountName is not set",
                    )
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(kind) or ()):
            image = container.get("image", "")
            if image != image.strip():
                errors.invalid(f"spec.{kind}[{index}].image", image, "must not have leading or trailing whitespace")


def _annotations(obj: Object, errors: Errors) -> None:
    annotations = obj["metadata"].get("annotations") or {}
    mirror = annotations.get("kubernetes.io/config.mirror")
    if mirror is not None and not obj["spec"].get("nodeName"):
        errors.invalid(
            "metadata.annotations[kubernetes.io/config.mirror]",
            mirror,
            "must set spec.nodeName if mirror pod annotation is set",
        )
    cost = annotations.get("controller.kubernetes.io/pod-deletion-cost")
    if cost is not None:
        digits = cost.removeprefix("-")
        if not (
            digits.isdigit()
            and (digits == "0" or not digits.startswith("0"))
            and cost != "-0"
            and -(2**31) <= int(cost) < 2**31
        ):
            errors.invalid(
                "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]", cost, "must be a 32bit integer"
            )


def validate_template(template: Object, errors: Errors, path: str) -> None:
    """A pod template."""
    meta = template.get("metadata") or {}
    metadata.labels(errors, meta.get("labels") or {}, f"{path}.labels")
    metadata.annotation_map(errors, meta.get("annotations") or {}, f"{path}.annotations")
    validate_spec(template["spec"], errors, f"{path}.spec")
    if template["spec"].get("ephemeralContainers"):
        errors.forbidden(f"{path}.spec.ephemeralContainers", "ephemeral containers not allowed in pod template")


def always_restart(spec: Object, errors: Errors, path: str) -> None:
    """Workloads that keep pods running want Always and no deadline."""
    if spec.get("restartPolicy") != "Always":
        errors.unsupported(f"{path}.restartPolicy", spec.get("restartPolicy", ""), ("Always",))
    if spec.get("activeDeadlineSeconds") is not None:
        errors.forbidden(f"{path}.activeDeadlineSeconds", "activeDeadlineSeconds in ReplicaSet is not Supported")


def validate_rwo_disks(spec: Object, errors: Errors, path: str) -> None:
    """Disks that only one pod may write cannot stand in a template of several."""
    for index, volume in enumerate(spec.get("volumes") or ()):
        disk = volume.get("gcePersistentDisk")
        if disk is not None and not disk.get("readOnly"):
            errors.invalid(
                f"{path}[{index}].gcePersistentDisk.readOnly",
                False,
                "must be true for replicated pods > 1; GCE PD can only be mounted on multiple machines if it is read-only",
            )
        if volume.get("awsElasticBlockStore") is not None:
            errors.forbidden(
                f"{path}[{index}].awsElasticBlockStore",
                "can not specify AWS Disk for replicated pods > 1; AWS disks can only be mounted on one machine",
            )
